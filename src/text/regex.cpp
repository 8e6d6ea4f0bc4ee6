// SPDX-License-Identifier: BSD-3-Clause
#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "base/printable.h"

namespace moe8 {
namespace {

constexpr const char* kTokenizerOp = "tokenizer";

// ---- from Oniguruma's syntax to PCRE2's --------------------------------------
// White_Space. PCRE2's own \s takes U+180E for a space, as Unicode did once.
constexpr std::string_view kSpaces =
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"
    "\\x{3000}";
// Letters, marks, decimal digits, connectors. PCRE2's own \w lacks marks and connectors.
constexpr std::string_view kWordCharacters =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}"
    "\\x{1f170}-\\x{1f189}";
// Of Latin-1's numbers that are no digits Oniguruma counts these to \w and to the words of \b, but not
// within [...].
constexpr std::string_view kWordNumbers = "\\xb2\\xb3\\xb9\\xbc-\\xbe";
constexpr std::string_view kHexDigits = "0-9A-Fa-f";

constexpr uint32_t kCompileOptions =
    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_MULTILINE;

using CompileContext =
    std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)>;

CompileContext line_feeds() {
  CompileContext context(pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  TORCH_CHECK(context, "out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 100);
  return context;
}

pcre2_code* compile(std::string_view pattern, int& error, size_t& position) {
  static const CompileContext context = line_feeds();
  return pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                       kCompileOptions, &error, &position, context.get());
}

bool compiles(const std::string& pattern) {
  int error = 0;
  size_t position = 0;
  pcre2_code* code = compile(pattern, error, position);
  pcre2_code_free(code);
  return code != nullptr;
}

class Translation {
 public:
  Translation(std::string_view pattern, const std::string& where) : in_(pattern), where_(where) {}

  std::string result() {
    while (at_ < in_.size()) item();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail(kTokenizerOp, where_,
         concat("expected a pattern that PCRE2 can match, got ", what, " at byte ", at_, " of '",
                printable(in_), "'. Write it in another way, for example without it."));
  }
  bool next_is(std::string_view text) const { return in_.substr(at_).starts_with(text); }
  char take() { return in_[at_++]; }
  void copy(size_t count) {
    out_ += in_.substr(at_, count);
    at_ = std::min(at_ + count, in_.size());
  }
  void begin_atom() { atom_ = out_.size(); }

  void item() {
    const char c = in_[at_];
    if (c == '(') return open_group();
    if (c == ')') return close_group();
    if (c == '{' && quantifier()) return;
    if (c == '*' || c == '+' || c == '?' || c == '|') return copy(1);
    begin_atom();
    if (c == '[') return bracket();
    if (c == '\\') return escape();
    do {  // one code point
      copy(1);
    } while (at_ < in_.size() && (in_[at_] & 0xC0) == 0x80);
  }

  // ---- groups
  void open_group() {
    groups_.push_back(out_.size());
    copy(1);
    if (!next_is("?")) return;
    copy(1);
    if (next_is("~")) refuse("an absent operator '(?~'");
    if (next_is("#")) {  // a comment
      while (at_ < in_.size() && in_[at_] != ')') copy(1);
      return;
    }
    // Flags, up to ':' or ')'. In Ruby's syntax m is what s is in Perl's.
    while (at_ < in_.size() &&
           (std::isalpha(static_cast<unsigned char>(in_[at_])) != 0 || in_[at_] == '-')) {
      const char flag = take();
      if (flag == 'x') refuse("the flag x");
      out_ += flag == 'm' ? 's' : flag;
    }
  }
  void close_group() {
    copy(1);
    if (groups_.empty()) return;  // PCRE2 says what is wrong
    atom_ = groups_.back();
    groups_.pop_back();
  }

  // {n,m} as PCRE2 reads it. A '+' behind is a second repetition in Ruby's syntax, as is a '?'
  // behind {n}.
  bool quantifier() {
    size_t end = at_ + 1;
    while (end < in_.size() &&
           (std::isdigit(static_cast<unsigned char>(in_[end])) != 0 || in_[end] == ',')) {
      ++end;
    }
    if (end == at_ + 1 || end >= in_.size() || in_[end] != '}') return false;
    std::string body(in_.substr(at_ + 1, end - at_ - 1));
    const bool exact = body.find(',') == std::string::npos;
    if (body.front() == ',') body.insert(0, "0");
    at_ = end + 1;
    out_ += "{" + body + "}";
    if (next_is("+") || (exact && next_is("?"))) {
      out_.insert(atom_, "(?:");
      out_ += ")";
    }
    return true;
  }

  // ---- escapes
  void escape() {
    if (at_ + 1 >= in_.size()) return copy(1);
    switch (in_[at_ + 1]) {
      case 's':
        return replace(2, "[", kSpaces, "]");
      case 'S':
        return replace(2, "[^", kSpaces, "]");
      case 'w':
        return replace(2, "[", word(), "]");
      case 'W':
        return replace(2, "[^", word(), "]");
      case 'b':
        return boundary("(?<!", "(?=", "(?<=", "(?!");
      case 'B':
        return boundary("(?<!", "(?!", "(?<=", "(?=");
      case 'h':
        return replace(2, "[", kHexDigits, "]");
      case 'H':
        return replace(2, "[^", kHexDigits, "]");
      default:
        return plain_escape();
    }
  }
  static std::string word() { return concat(kWordCharacters, kWordNumbers); }
  // PCRE2's own has other words.
  void boundary(const char* not_behind, const char* then, const char* behind, const char* or_then) {
    const std::string one = "[" + word() + "])";
    replace(2, "(?:", concat(not_behind, one, then, one, "|", behind, one, or_then, one), ")");
  }
  void plain_escape() {
    switch (in_[at_ + 1]) {
      case 'v':
        return replace(2, "", "\\x0b", "");
      case 'u':
        return unicode_escape();
      case 'p':
      case 'P':
        return property();
      default:
        copy(2);
        while (at_ < in_.size() && (in_[at_] & 0xC0) == 0x80) copy(1);
    }
  }
  void replace(size_t count, std::string_view open, std::string_view body, std::string_view close) {
    at_ += count;
    out_ += open;
    out_ += body;
    out_ += close;
  }
  // \uHHHH
  void unicode_escape() {
    const std::string_view digits = in_.substr(std::min(at_ + 2, in_.size()), 4);
    if (digits.size() != 4 ||
        digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      refuse("\\u without four hexadecimal digits");
    }
    replace(6, "\\x{", digits, "}");
  }
  // The name of a script means its extensions too in PCRE2, not in Oniguruma.
  void property() {
    const size_t end = in_.find('}', at_);
    if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || end == std::string_view::npos) {
      return copy(2);
    }
    std::string_view name = in_.substr(at_ + 3, end - at_ - 3);
    std::string start(in_.substr(at_, 3));
    if (name.starts_with("^")) {
      start += "^";
      name.remove_prefix(1);
    }
    const bool is_category = name.size() <= 2;
    if (!is_category && compiles(concat("\\p{sc:", name, "}"))) start += "sc:";
    replace(end + 1 - at_, start, name, "}");
  }

  // ---- [...]
  void bracket() {
    copy(1);
    if (next_is("^")) copy(1);
    if (next_is("]")) copy(1);
    while (at_ < in_.size() && in_[at_] != ']') {
      if (next_is("[:")) {
        posix_class();
      } else if (in_[at_] == '[') {
        refuse("a class within a class");
      } else if (next_is("&&")) {
        refuse("an intersection '&&'");
      } else if (in_[at_] == '\\' && at_ + 1 < in_.size()) {
        class_escape();
      } else {
        copy(1);
      }
    }
    copy(1);
  }
  // [:upper:]. PCRE2 takes categories where Oniguruma takes properties, which hold more.
  void posix_class() {
    struct Name {
      std::string_view posix, property;
    };
    constexpr std::array kNames{
        Name{"[:upper:]", "\\p{Uppercase}"},  Name{"[:lower:]", "\\p{Lowercase}"},
        Name{"[:alpha:]", "\\p{Alphabetic}"}, Name{"[:alnum:]", "\\p{Alphabetic}\\p{Nd}"},
        Name{"[:digit:]", "\\p{Nd}"},         Name{"[:space:]", kSpaces},
        Name{"[:word:]", kWordCharacters}};
    for (const Name& name : kNames) {
      if (next_is(name.posix)) return replace(name.posix.size(), "", name.property, "");
    }
    if (next_is("[:^")) refuse("a negated class of POSIX");
    const size_t end = in_.find(":]", at_);
    copy(end == std::string_view::npos ? in_.size() - at_ : end + 2 - at_);
  }
  void class_escape() {
    switch (in_[at_ + 1]) {
      case 's':
        return replace(2, "", kSpaces, "");
      case 'w':
        return replace(2, "", kWordCharacters, "");
      case 'h':
        return replace(2, "", kHexDigits, "");
      case 'W':
      case 'H':
        refuse("\\W or \\H within a class");
      default:
        return plain_escape();
    }
  }

  std::string_view in_;
  const std::string& where_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_ = 0;  // where in out_ the last thing that can be repeated begins
  std::vector<size_t> groups_;
};

// ---- matching ---------------------------------------------------------------
// What a thread needs to match: a place for the result, and the stack of compiled code.
class MatchScratch {
 public:
  MatchScratch() {
    constexpr size_t kFirstStack = size_t{32} << 10;
    constexpr size_t kMostStack = size_t{16} << 20;
    constexpr uint32_t kMatchLimit = 50'000'000;
    TORCH_CHECK(data_ && context_, "out of memory");
    stack_.reset(pcre2_jit_stack_create(kFirstStack, kMostStack, nullptr));
    pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
    pcre2_set_match_limit(context_.get(), kMatchLimit);
  }

  int match(const pcre2_code* code, std::string_view text, size_t from, bool has_jit) {
    const auto* bytes = reinterpret_cast<PCRE2_SPTR>(text.data());
    return has_jit ? pcre2_jit_match(code, bytes, text.size(), from, PCRE2_NO_UTF_CHECK,
                                     data_.get(), context_.get())
                   : pcre2_match(code, bytes, text.size(), from, PCRE2_NO_UTF_CHECK, data_.get(),
                                 context_.get());
  }
  Match result() const {
    const size_t* ends = pcre2_get_ovector_pointer(data_.get());
    return {ends[0], ends[1]};
  }

 private:
  struct Free {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
    void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
  };
  std::unique_ptr<pcre2_match_data, Free> data_{pcre2_match_data_create(1, nullptr)};
  std::unique_ptr<pcre2_match_context, Free> context_{pcre2_match_context_create(nullptr)};
  std::unique_ptr<pcre2_jit_stack, Free> stack_;
};

std::string regex_error(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

}  // namespace

std::string pcre2_pattern(std::string_view oniguruma, const std::string& where) {
  return Translation(oniguruma, where).result();
}

Regex::Regex(std::string_view pattern, const std::string& where) : where_(where) {
  const std::string translated = pcre2_pattern(pattern, where);
  int error = 0;
  size_t position = 0;
  code_.reset(compile(translated, error, position));
  MOE8_CHECK(code_, kTokenizerOp, where_, "expected a pattern, got an error at byte ", position,
             " of '", printable(translated), "': ", regex_error(error));
  has_jit_ = pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE) == 0;
}

bool Regex::find(std::string_view text, size_t from, Match& match) const {
  thread_local MatchScratch scratch;
  const int result = scratch.match(code_.get(), text, from, has_jit_);
  if (result >= 0) {
    match = scratch.result();
    // \K in a look-ahead can put the beginning behind the end.
    MOE8_CHECK(match.begin >= from && match.begin <= match.end, kTokenizerOp, where_,
               "expected a pattern whose matches follow each other, got one with \\K");
    return true;
  }
  MOE8_CHECK(result == PCRE2_ERROR_NOMATCH, kTokenizerOp, where_,
             "expected a pattern that is quick to match, got '", regex_error(result),
             "'. Nested repetitions such as (a+)+ try exponentially many ways");
  return false;
}

void Regex::FreeCode::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}

}  // namespace moe8
