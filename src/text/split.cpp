// SPDX-License-Identifier: BSD-3-Clause
#include "text/split.h"

namespace moe8 {
namespace {

class PatternFinder : public Finder {
 public:
  PatternFinder(std::string_view pattern, const std::string& where) : regex_(pattern, where) {}
  bool find(std::string_view text, size_t from, Match& match) const override {
    return regex_.find(text, from, match);
  }

 private:
  Regex regex_;
};

class TextFinder : public Finder {
 public:
  explicit TextFinder(std::string text) : text_(std::move(text)) {}
  bool find(std::string_view text, size_t from, Match& match) const override {
    const size_t at = text_.empty() ? std::string_view::npos : text.find(text_, from);
    if (at == std::string_view::npos) return false;
    match = {at, at + text_.size()};
    return true;
  }

 private:
  std::string text_;
};

class CharacterFinder : public Finder {
 public:
  explicit CharacterFinder(bool (*is_one)(char32_t)) : is_one_(is_one) {}
  bool find(std::string_view text, size_t from, Match& match) const override {
    while (from < text.size()) {
      const CodePoint point = code_point_at(text, from);
      if (is_one_(point.value)) {
        match = {from, from + point.length};
        return true;
      }
      from += point.length;
    }
    return false;
  }

 private:
  bool (*is_one_)(char32_t);
};

}  // namespace

std::unique_ptr<Finder> find_pattern(std::string_view pattern, const std::string& where) {
  return std::make_unique<PatternFinder>(pattern, where);
}
std::unique_ptr<Finder> find_text(std::string text) {
  return std::make_unique<TextFinder>(std::move(text));
}
std::unique_ptr<Finder> find_characters(bool (*is_one)(char32_t)) {
  return std::make_unique<CharacterFinder>(is_one);
}

}  // namespace moe8
