// SPDX-License-Identifier: BSD-3-Clause
// UTF-8, normalization beside utf8proc's own, and patterns from Oniguruma's syntax to PCRE2's.
#include "text/unicode.h"

#include <utf8proc.h>

#include <cstdlib>
#include <memory>
#include <random>

#include "testing/compare.h"
#include "text/byte_letters.h"
#include "text/regex.h"
#include "text/split.h"
#include "text/utf8.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

std::string lossy(std::string_view bytes) {
  size_t replaced = 0;
  return to_valid_utf8(bytes, replaced);
}

TEST(Utf8Test, EveryCodePointComesBack) {
  std::string text;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c < 0xD800 || c > 0xDFFF) append_utf8(text, c);
  }
  EXPECT_EQ(valid_utf8_prefix(text), text.size());
  char32_t expected = 0;
  size_t wrong = 0;
  for_each_code_point(text, [&](CodePoint point, size_t) {
    wrong += point.value != expected;
    expected = expected == 0xD7FF ? 0xE000 : expected + 1;
  });
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(expected, 0x110000U);
}

// The examples of Unicode 15, section 3.9, tables 3-8 to 3-11.
TEST(Utf8Test, MaximalPartsAreReplacedOnce) {
  const auto times = [](size_t count) {
    std::string text;
    for (size_t i = 0; i < count; ++i) text += kReplacement;
    return text;
  };
  EXPECT_EQ(lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), times(8) + "A");
  EXPECT_EQ(lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), times(8) + "A");
  EXPECT_EQ(lossy("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), times(5) + "A" + times(2) + "B");
  EXPECT_EQ(lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), times(4) + "A");
  EXPECT_EQ(lossy("a\xE2\x82"), "a" + times(1)) << "cut at the end";
}

TEST(UnicodeTest, NormalizesAsUtf8procDoesWholeTexts) {
  struct Form {
    NormalForm form;
    utf8proc_uint8_t* (*whole)(const utf8proc_uint8_t*);
  };
  const Form forms[] = {{NormalForm::NFC, utf8proc_NFC},
                        {NormalForm::NFD, utf8proc_NFD},
                        {NormalForm::NFKC, utf8proc_NFKC},
                        {NormalForm::NFKD, utf8proc_NFKD}};
  constexpr char32_t kOften[] = {'a',    'e',    'o',    ' ',    0x300,  0x301,  0x327,
                                 0x323,  0x1100, 0x1161, 0x11A8, 0xAC00, 0x3099, 0x30AB,
                                 0xFB01, 0x345,  0x1E9B, 0x212B, 0x2F801};
  std::mt19937 random(7);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (size_t i = random() % 24; i > 0; --i) {
      const bool often = random() % 4 != 0;
      char32_t c = often ? kOften[random() % std::size(kOften)] : random() % 0x30000;
      if (c == 0 || (c >= 0xD800 && c <= 0xDFFF)) c = 'x';
      append_utf8(text, c);
    }
    for (const Form& form : forms) {
      const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> expected(
          form.whole(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str())), &std::free);
      std::string out;
      const bool changed = Normalization::of(form.form).apply(text, out);
      ASSERT_EQ(changed ? out : text, reinterpret_cast<const char*>(expected.get())) << text;
    }
  }
}

TEST(UnicodeTest, KindsOfCharacters) {
  EXPECT_TRUE(is_whitespace(0x3000) && is_whitespace('\v') && !is_whitespace(0x200B));
  EXPECT_FALSE(is_whitespace(0x180E)) << "was a space once";
  EXPECT_TRUE(is_numeric(0xBD) && is_numeric('7') && is_numeric(0x2167) && !is_numeric('x'));
  EXPECT_TRUE(is_punctuation('$') && is_punctuation(0x3002) && !is_punctuation(0x20AC));
  std::string lower;
  append_lower(lower, 0x130);
  append_lower(lower, 0xC9);
  EXPECT_EQ(lower, "i\xCC\x87\xC3\xA9");
}

TEST(UnicodeTest, ByteLettersAreThoseOfGpt2) {
  std::string letters;
  append_as_letters(letters, std::string_view(" \n\0a\xAD", 5));
  EXPECT_EQ(letters, "\xC4\xA0\xC4\x8A\xC4\x80\x61\xC5\x83")
      << "the letters of U+0120, 10A, 100, a, 143";
  EXPECT_EQ(bytes_of_letters(letters), std::string(" \n\0a\xAD", 5));
  EXPECT_EQ(bytes_of_letters("a b"), std::nullopt) << "a space is no letter";
}

// ---- patterns -----------------------------------------------------------------
std::vector<std::string> matches(const std::string& pattern, const std::string& text) {
  std::vector<std::string> found;
  for_each_part(*find_pattern(pattern, "p"), text, [&](size_t begin, size_t end, bool matched) {
    if (matched) found.push_back(text.substr(begin, end - begin));
  });
  return found;
}
using Texts = std::vector<std::string>;

TEST(RegexTest, ReadsPatternsAsOnigurumaDoes) {
  EXPECT_EQ(matches("a{2}+", "aaaaa"), (Texts{"aaaa"})) << "twice two, not possessive";
  EXPECT_EQ(matches("\\h+", "xbeefy"), (Texts{"beef"})) << "hexadecimal digits";
  EXPECT_EQ(matches("\\s", "a\xE1\xA0\x8E z"), (Texts{" "})) << "U+180E is no space";
  EXPECT_EQ(matches("\\w+", "a\xCC\x81_b-c"), (Texts{"a\xCC\x81_b", "c"})) << "marks are of words";
  const std::string squared = "x\xC2\xB2 \xE2\x81\xB5";  // of Latin-1, and a superscript beyond it
  EXPECT_EQ(matches("\\w", squared), (Texts{"x", "\xC2\xB2"})) << "numbers of Latin-1 alone";
  EXPECT_EQ(matches("[\\w]", squared), (Texts{"x"})) << "and not in brackets";
  EXPECT_EQ(matches("\\W", squared), (Texts{" ", "\xE2\x81\xB5"}));
  EXPECT_EQ(matches("\\b.", squared), (Texts{"x", " "})) << "words of the same characters";
  EXPECT_EQ(matches("\\B.", "x\xCC\x81-"), (Texts{"\xCC\x81"})) << "a mark goes on with a word";
  EXPECT_EQ(matches("^b$", "a\nb\nc"), (Texts{"b"})) << "lines";
  EXPECT_EQ(matches("(?m:a.b)", "a\nb"), (Texts{"a\nb"})) << "m is what s is elsewhere";
  EXPECT_EQ(matches("\\u0061\\v?", "ab"), (Texts{"a"}));
  EXPECT_EQ(matches("(?i:'s|'ll)", "'S 'Ll '\xC5\xBF"), (Texts{"'S", "'Ll", "'\xC5\xBF"}))
      << "long s";
  EXPECT_EQ(matches("[[:upper:]]", "a\xE2\x85\xAE"), (Texts{"\xE2\x85\xAE"})) << "a Roman numeral";
  EXPECT_EQ(matches("(?=b)", "abb"), (Texts{"", ""})) << "empty ones";
  EXPECT_EQ(pcre2_pattern("\\p{Han}\\p{L}[^\\P{Lu}]", "p"), "\\p{sc:Han}\\p{L}[^\\P{Lu}]");
}

TEST(RegexTest, RefusesWhatItCannotSay) {
  const auto refusal = [](const char* pattern) { return error_of([&] { Regex(pattern, "p"); }); };
  EXPECT_THAT(refusal("[a-z&&[^b]]"), HasSubstr("an intersection '&&'"));
  EXPECT_THAT(refusal("[a[b]]"), HasSubstr("a class within a class"));
  EXPECT_THAT(refusal("(?~a)"), HasSubstr("an absent operator"));
  EXPECT_THAT(refusal("(a"),
              HasSubstr("[tokenizer] p: expected a pattern, got an error at byte 2"));
  EXPECT_THAT(refusal("\\C"), HasSubstr("expected a pattern"));
}

}  // namespace
}  // namespace moe8
