// SPDX-License-Identifier: BSD-3-Clause
#include "text/normalizer.h"

#include <algorithm>

#include "text/byte_letters.h"
#include "text/utf8.h"

namespace moe8 {
namespace {

// A normalizer from a function with the signature of apply().
template <typename Apply>
class NormalizerOf : public Normalizer {
 public:
  explicit NormalizerOf(Apply apply) : apply_(std::move(apply)) {}
  bool apply(std::string_view text, std::string& out) const override { return apply_(text, out); }

 private:
  Apply apply_;
};

template <typename Apply>
std::unique_ptr<Normalizer> normalizer(Apply apply) {
  return std::make_unique<NormalizerOf<Apply>>(std::move(apply));
}

// From a function that appends what becomes of one code point.
template <typename Append>
std::unique_ptr<Normalizer> by_code_point(Append append) {
  return normalizer([append](std::string_view text, std::string& out) {
    out.clear();
    for_each_code_point(text, [&](CodePoint point, size_t) { append(out, point.value); });
    return out != text;
  });
}

void append_plain(std::string& out, char32_t c) {
  const bool removed = (c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) ||
                       c == 0x7F || c == 0x8F || c == 0x9F;
  if (removed) return;
  const bool blank = c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 ||
                     (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                     c == 0xFEFF || c == 0xFFFD;
  append_utf8(out, blank ? U' ' : c);
}

// How many bytes of whitespace stand at the front, and from where on whitespace stands at the end.
size_t leading_whitespace(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const CodePoint point = code_point_at(text, at);
    if (!is_whitespace(point.value)) break;
    at += point.length;
  }
  return at;
}
size_t trailing_whitespace(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t begin = end - 1;
    while (begin > 0 && (text[begin] & 0xC0) == 0x80) --begin;
    if (!is_whitespace(code_point_at(text, begin).value)) break;
    end = begin;
  }
  return end;
}

}  // namespace

std::string_view NormalizedText::apply(const Normalizers& normalizers, std::string_view text) {
  std::string_view current = text;
  size_t next = 0;
  for (const auto& one : normalizers) {
    if (!one->apply(current, buffers_[next])) continue;
    current = buffers_[next];
    next = 1 - next;
  }
  return current;
}

std::unique_ptr<Normalizer> normalize_unicode(NormalForm form) {
  return normalizer(
      [&normalization = Normalization::of(form)](std::string_view text, std::string& out) {
        return normalization.apply(text, out);
      });
}

std::unique_ptr<Normalizer> replace_found(std::unique_ptr<Finder> finder, std::string content) {
  return normalizer([finder = std::shared_ptr<Finder>(std::move(finder)),
                     content = std::move(content)](std::string_view text, std::string& out) {
    Match first{};
    if (!finder->find(text, 0, first)) return false;
    out.clear();
    for_each_part(*finder, text, [&](size_t begin, size_t end, bool matched) {
      out += matched ? std::string_view(content) : text.substr(begin, end - begin);
    });
    return true;
  });
}

std::unique_ptr<Normalizer> prepend_text(std::string content) {
  return normalizer([content = std::move(content)](std::string_view text, std::string& out) {
    if (text.empty()) return false;
    out = content;
    out += text;
    return true;
  });
}

std::unique_ptr<Normalizer> strip_whitespace(bool left, bool right) {
  return normalizer([left, right](std::string_view text, std::string& out) {
    const size_t end = right ? trailing_whitespace(text) : text.size();
    const size_t begin = left ? std::min(leading_whitespace(text), end) : 0;
    if (begin == 0 && end == text.size()) return false;
    out = text.substr(begin, end - begin);
    return true;
  });
}

std::unique_ptr<Normalizer> strip_accents() {
  return by_code_point([](std::string& out, char32_t c) {
    if (!is_mark(c)) append_utf8(out, c);
  });
}

std::unique_ptr<Normalizer> lower_case() {
  return by_code_point(append_lower);
}

std::unique_ptr<Normalizer> bytes_to_letters() {
  return normalizer([](std::string_view text, std::string& out) {
    out.clear();
    append_as_letters(out, text);
    return true;
  });
}

std::unique_ptr<Normalizer> plain_characters() {
  return by_code_point(append_plain);
}

}  // namespace moe8
