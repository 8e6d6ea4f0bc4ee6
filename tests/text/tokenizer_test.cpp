// SPDX-License-Identifier: BSD-3-Clause
// Tokenizers: what the tokenizers library made of some texts (cases/, by compare_tokenizers.py), and
// what is refused.
#include "moe8/tokenizer.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "testing/compare.h"
#include "testing/folder.h"

namespace moe8 {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

std::string from_base64(const std::string& text) {
  static const std::string kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=') break;
    bits = bits << 6U | static_cast<uint32_t>(kDigits.find(c));
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> static_cast<uint32_t>(count) & 0xFFU);
  }
  return bytes;
}

std::vector<std::string> recorded_files() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(MOE8_TOKENIZER_CASES)) {
    names.push_back(entry.path().stem().string());
  }
  std::ranges::sort(names);
  return names;
}

json recorded(const std::string& name) {
  return json::parse(std::ifstream(std::string(MOE8_TOKENIZER_CASES) + "/" + name + ".json"));
}

class RecordedTokenizer : public ::testing::TestWithParam<std::string> {};

TEST_P(RecordedTokenizer, EncodesAndDecodesAsTheLibraryDid) {
  const json file = recorded(GetParam());
  const Tokenizer tokenizer = Tokenizer::parse(file["tokenizer"].dump());
  TokenEncoder encoder(tokenizer);
  ASSERT_GT(file["cases"].size(), 20U);
  for (const json& one : file["cases"]) {
    const std::string text = from_base64(one["base64"].get<std::string>());
    const auto expected = one["ids"].get<std::vector<uint32_t>>();
    std::vector<uint32_t> ids;
    encoder.encode(text, ids, {.add_special_tokens = true});
    EXPECT_EQ(ids, expected) << text;
    EXPECT_EQ(tokenizer.encode(text, {.add_special_tokens = true}), expected) << "without a memory";
    EXPECT_EQ(tokenizer.decode(expected, /*skip_special_tokens=*/true), one["text"]) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, RecordedTokenizer, ::testing::ValuesIn(recorded_files()),
                         [](const auto& test) { return test.param; });

// ---- a small one, part by part -----------------------------------------------
// Tokens: the letters for bytes 0 to 255, then "ab", "abc", "bc".
json small() {
  json vocabulary = json::object();
  std::vector<std::string> letters;
  for (int byte = 0, next = 0x100; byte < 256; ++byte) {
    const bool printable =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int letter = printable ? byte : next++;
    std::string text(1, static_cast<char>(letter));
    if (letter >= 128) {
      text = {static_cast<char>(0xC0 | letter >> 6), static_cast<char>(0x80 | (letter & 63))};
    }
    vocabulary[text] = byte;
  }
  vocabulary["ab"] = 256;
  vocabulary["abc"] = 257;
  vocabulary["bc"] = 258;
  return {{"model",
           {{"type", "BPE"},
            {"vocab", vocabulary},
            {"merges", {"b c", json::array({"a", "b"}), "ab c", "a bc"}}}},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"decoder", {{"type", "ByteLevel"}}}};
}

std::string refusal(const json& file) {
  return error_of([&] { Tokenizer::parse(file.dump(), "t.json"); });
}

TEST(TokenizerTest, MergesByRankFromTheLeft) {
  const Tokenizer tokenizer = Tokenizer::parse(small().dump());
  EXPECT_EQ(tokenizer.encode("ab"), std::vector<uint32_t>{256});
  EXPECT_EQ(tokenizer.encode("abc"), std::vector<uint32_t>{257}) << "a bc: b c comes first";
  EXPECT_EQ(tokenizer.encode("abbc"), (std::vector<uint32_t>{256, 258}));
  EXPECT_EQ(tokenizer.encode(""), std::vector<uint32_t>{});
  EXPECT_EQ(tokenizer.vocabulary_size(), 259U);
  EXPECT_EQ(tokenizer.id_of("abc"), 257U);
  EXPECT_EQ(tokenizer.token_of(258), "bc");
  EXPECT_EQ(tokenizer.token_of(259), std::nullopt);
}

// Many symbols go through a queue, few through a scan: the results must not tell.
TEST(TokenizerTest, LongPiecesAreMergedAsShortOnes) {
  const Tokenizer tokenizer = Tokenizer::parse(small().dump());
  for (size_t count : {47, 48, 49, 200}) {
    std::string text;
    std::vector<uint32_t> expected;
    for (size_t i = 0; i + 4 <= count; i += 4) {
      text += "abbc";
      expected.insert(expected.end(), {256, 258});
    }
    EXPECT_EQ(tokenizer.encode(text), expected) << count;
  }
}

TEST(TokenizerTest, BytesThatAreNoUtf8AreReplacedAndCounted) {
  const Tokenizer tokenizer = Tokenizer::parse(small().dump());
  TokenEncoder encoder(tokenizer);
  std::vector<uint32_t> ids;
  encoder.encode("ab\xff", ids);
  EXPECT_EQ(ids, (std::vector<uint32_t>{256, 0xEF, 0xBF, 0xBD}));
  EXPECT_EQ(encoder.replaced(), 1U);
  EXPECT_EQ(tokenizer.decode(std::vector<uint32_t>{256, 0xC3}), "ab\xEF\xBF\xBD")
      << "half of a character";
}

TEST(TokenizerTest, ThreadsShareOne) {
  const Tokenizer tokenizer = Tokenizer::parse(small().dump());
  std::vector<std::vector<uint32_t>> results(4);
  {
    std::vector<std::jthread> threads;
    threads.reserve(results.size());
    for (auto& result : results) {
      threads.emplace_back([&] { result = tokenizer.encode("abc abbc é"); });
    }
  }
  for (const auto& result : results) EXPECT_EQ(result, results.front());
}

TEST(TokenizerTest, ReadsAFileOrItsFolder) {
  const TemporaryFolder folder;
  const std::string file = folder.write("tokenizer.json", small().dump());
  EXPECT_EQ(Tokenizer(file).encode("abc"), Tokenizer(folder / "").encode("abc"));
  EXPECT_EQ(Tokenizer(file).fingerprint().size(), 32U);
  std::filesystem::remove(file);
  EXPECT_THAT(
      error_of([&] { Tokenizer(folder / ""); }),
      AllOf(HasSubstr("expected a folder with tokenizer.json"), HasSubstr("save_pretrained")));
  EXPECT_THAT(error_of([&] { Tokenizer(folder / "other.json"); }),
              HasSubstr("which does not exist"));
}

TEST(TokenizerTest, IdsThatAreNoTokensAreRefused) {
  const Tokenizer tokenizer = Tokenizer::parse(small().dump());
  EXPECT_EQ(error_of([&] { tokenizer.decode(std::vector<uint32_t>{259}); }),
            "[tokenizer] ids: expected ids of tokens, below 259, got 259");
}

// ---- what is refused ----------------------------------------------------------
TEST(TokenizerTest, UnknownPartsAreRefusedByName) {
  json file = small();
  file["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", ""}};
  EXPECT_THAT(refusal(file),
              AllOf(HasSubstr("[tokenizer] t.json: normalizer: expected one of Sequence, "),
                    HasSubstr("got 'Precompiled'. Make the token files with")));
  file = small();
  file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {{{"type", "UnicodeScripts"}}}}};
  EXPECT_THAT(refusal(file),
              HasSubstr("pre_tokenizer.pretokenizers[0]: expected one of Sequence, "));
  file = small();
  file["decoder"] = {{"type", "WordPiece"}};
  EXPECT_THAT(refusal(file), HasSubstr("decoder: expected one of Sequence, ByteLevel, "));
  file = small();
  file["model"] = {{"type", "Unigram"}, {"vocab", json::array()}};
  EXPECT_THAT(refusal(file), HasSubstr("t.json: model: expected the type 'BPE', got 'Unigram'"));
}

TEST(TokenizerTest, DamagedFilesAreRefusedInOneLine) {
  EXPECT_THAT(error_of([] { Tokenizer::parse("{\"model\": ", "t.json"); }),
              HasSubstr("[tokenizer] t.json: expected JSON, got: "));
  EXPECT_THAT(error_of([] { Tokenizer::parse("[]", "t.json"); }), HasSubstr("expected an object"));
  EXPECT_THAT(error_of([] { Tokenizer::parse("{}", "t.json"); }),
              HasSubstr("expected the key 'model', got none"));
  json file = small();
  file["model"]["merges"].push_back("a b c");
  EXPECT_THAT(refusal(file), HasSubstr("got \"a b c\" as merge 4"));
  file = small();
  file["model"]["merges"].push_back("a nothing");
  EXPECT_THAT(refusal(file),
              HasSubstr("expected tokens of the vocabulary, got 'nothing' in merge 4"));
  file = small();
  file["model"]["vocab"]["abc"] = 256;
  EXPECT_THAT(refusal(file), HasSubstr("expected every id once, got 256 for"));
  file = small();
  file["model"]["vocab"]["abc"] = -1;
  EXPECT_THAT(refusal(file), HasSubstr("whole numbers of 0 or more, got -1 for 'abc'"));
  file = small();
  file["model"]["dropout"] = 0.1;
  EXPECT_THAT(refusal(file), HasSubstr("A text has to have the same tokens each time"));
}

TEST(TokenizerTest, BracketsThatDoNotEndAreRefused) {
  const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  const auto with = [&](const std::string& part) {
    return error_of(
        [&] { Tokenizer::parse("{\"model\":{\"type\":\"BPE\"," + part + "}}", "t.json"); });
  };
  EXPECT_THAT(with("\"vocab\":{},\"merges\":[" + deep + "]"),
              HasSubstr("got [[[[[[[...]]]]]]] as merge 0"));
  EXPECT_THAT(with("\"merges\":[],\"vocab\":{\"a\":" + deep + "}"),
              HasSubstr("got [[[[[[[...]]]]]]] for 'a'"));
  EXPECT_THAT(with("\"vocab\":{},\"merges\":[],\"dropout\":" + deep),
              HasSubstr("expected null, got [[[[[[[...]]]]]]]"));
}

TEST(TokenizerTest, IdsOfAddedTokensFollowTheVocabulary) {
  json file = small();
  file["added_tokens"] = {{{"id", 259}, {"content", "<a>"}, {"special", true}},
                          {{"id", 261}, {"content", "<b>"}, {"special", false}}};
  EXPECT_THAT(refusal(file),
              HasSubstr("added_tokens[1].id: expected 260, which the tokenizers library "
                        "gives it, got 261 for '<b>'"));
  file["added_tokens"][1]["id"] = 260;
  const Tokenizer tokenizer = Tokenizer::parse(file.dump());
  EXPECT_EQ(tokenizer.vocabulary_size(), 261U);
  EXPECT_TRUE(tokenizer.is_special(259));
  EXPECT_FALSE(tokenizer.is_special(260));
  EXPECT_EQ(tokenizer.encode("ab<a>ab<b>"), (std::vector<uint32_t>{256, 259, 256, 260}));
  EXPECT_EQ(tokenizer.decode(std::vector<uint32_t>{256, 259, 260}, true), "ab<b>");
}

TEST(TokenizerTest, PatternsThatTakeTooLongAreRefused) {
  json file = small();
  file["pre_tokenizer"] = {
      {"type", "Split"}, {"pattern", {{"Regex", "(a+)+b|(?=c)x"}}}, {"behavior", "Isolated"}};
  const Tokenizer tokenizer = Tokenizer::parse(file.dump());
  EXPECT_THAT(error_of([&] { tokenizer.encode(std::string(60, 'a')); }),
              HasSubstr("expected a pattern that is quick to match"));
}

}  // namespace
}  // namespace moe8
