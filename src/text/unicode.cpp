// SPDX-License-Identifier: BSD-3-Clause
#include "text/unicode.h"

#include <utf8proc.h>

#include <array>
#include <memory>
#include <vector>

#include "base/check.h"
#include "text/utf8.h"

namespace moe8 {
namespace {

int category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

int options_of(NormalForm form) {
  constexpr int kCompose = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
  constexpr int kDecompose = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
  switch (form) {
    case NormalForm::NFC:
      return kCompose;
    case NormalForm::NFD:
      return kDecompose;
    case NormalForm::NFKC:
      return kCompose | UTF8PROC_COMPAT;
    case NormalForm::NFKD:
      return kDecompose | UTF8PROC_COMPAT;
  }
  return 0;
}

// The longest decomposition of one code point has 18.
using Decomposed = std::array<utf8proc_int32_t, 32>;

bool is_surrogate(char32_t c) {
  return c >= 0xD800 && c <= 0xDFFF;
}

bool combines(char32_t c) {
  return utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class != 0;
}

}  // namespace

bool is_whitespace(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_numeric(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  const int kind = category(c);
  return kind >= UTF8PROC_CATEGORY_ND && kind <= UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t c) {
  if (c < 0x80) {
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
           (c >= '{' && c <= '~');
  }
  const int kind = category(c);
  return kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO;
}

bool is_mark(char32_t c) {
  const int kind = category(c);
  return kind >= UTF8PROC_CATEGORY_MN && kind <= UTF8PROC_CATEGORY_ME;
}

bool is_control(char32_t c) {
  if (c == '\t' || c == '\n' || c == '\r') return false;
  const int kind = category(c);
  return kind == UTF8PROC_CATEGORY_CC || kind == UTF8PROC_CATEGORY_CF ||
         kind == UTF8PROC_CATEGORY_CN || kind == UTF8PROC_CATEGORY_CO;
}

void append_lower(std::string& text, char32_t c) {
  constexpr char32_t kDottedI = 0x130;  // the one whose lower case is two code points
  if (c == kDottedI) {
    text += "i\xCC\x87";
  } else {
    append_utf8(text, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

// ---- normalization ----------------------------------------------------------
Normalization::Normalization(NormalForm form) : options_(options_of(form)) {
  for (char32_t c = 0x80; c < kLimit; ++c) {
    if (is_surrogate(c)) continue;
    Decomposed parts{};
    int boundary = 0;
    const auto option = static_cast<utf8proc_option_t>(options_);
    const auto count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts.data(),
                                static_cast<utf8proc_ssize_t>(parts.size()), option, &boundary);
    // What may stand second in a composition is what stands second in a decomposition.
    for (utf8proc_ssize_t i = 1; i < count; ++i) {
      if (parts[i] < static_cast<utf8proc_int32_t>(kLimit)) may_change_[parts[i]] = true;
    }
    const auto composed = utf8proc_normalize_utf32(parts.data(), count, option);
    const bool same = composed == 1 && parts[0] == static_cast<utf8proc_int32_t>(c);
    if (!same || combines(c)) may_change_[c] = true;
  }
}

void Normalization::normalize_run(std::string_view run, std::string& out) const {
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(run.data());
  const auto size = static_cast<utf8proc_ssize_t>(run.size());
  const auto option = static_cast<utf8proc_option_t>(options_);
  std::array<utf8proc_int32_t, 64> few{};  // most runs are two or three characters
  std::vector<utf8proc_int32_t> many;
  utf8proc_int32_t* points = few.data();
  auto count = utf8proc_decompose(bytes, size, points, few.size(), option);
  if (count > static_cast<utf8proc_ssize_t>(few.size())) {
    many.resize(static_cast<size_t>(count) + 1);
    points = many.data();
    count = utf8proc_decompose(bytes, size, points, count, option);
  }
  MOE8_CHECK(count >= 0, "tokenizer", "text",
             "expected text that can be normalized, got: ", utf8proc_errmsg(count));
  count = utf8proc_normalize_utf32(points, count, option);
  for (utf8proc_ssize_t i = 0; i < count; ++i) append_utf8(out, static_cast<char32_t>(points[i]));
}

bool Normalization::apply(std::string_view text, std::string& out) const {
  size_t done = 0;      // bytes that are in `out`
  size_t previous = 0;  // where the code point before `at` begins
  bool changed = false;
  for (size_t at = 0; at < text.size();) {
    if (static_cast<signed char>(text[at]) >= 0) {  // ASCII never changes
      previous = at++;
      continue;
    }
    const CodePoint point = code_point_at(text, at);
    if (!may_change(point.value)) {
      previous = at;
      at += point.length;
      continue;
    }
    // A run: from the code point before, with which this one may combine, to the next that neither
    // changes nor combines with what stands before it.
    if (!changed) out.clear();
    changed = true;
    out += text.substr(done, previous - done);
    while (at < text.size()) {
      const CodePoint next = code_point_at(text, at);
      if (!may_change(next.value)) break;
      at += next.length;
    }
    normalize_run(text.substr(previous, at - previous), out);
    done = previous = at;
  }
  if (changed) out += text.substr(done);
  return changed;
}

const Normalization& Normalization::of(NormalForm form) {
  const auto make = [](NormalForm of_form) { return std::make_unique<Normalization>(of_form); };
  switch (form) {
    case NormalForm::NFC: {
      static const auto nfc = make(NormalForm::NFC);
      return *nfc;
    }
    case NormalForm::NFD: {
      static const auto nfd = make(NormalForm::NFD);
      return *nfd;
    }
    case NormalForm::NFKC: {
      static const auto nfkc = make(NormalForm::NFKC);
      return *nfkc;
    }
    default: {
      static const auto nfkd = make(NormalForm::NFKD);
      return *nfkd;
    }
  }
}

}  // namespace moe8
