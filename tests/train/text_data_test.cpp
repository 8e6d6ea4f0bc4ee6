// SPDX-License-Identifier: BSD-3-Clause
// Text as tokens: the split, both kinds of windows, the bigram baseline, and what is refused.
#include "train/text_data.h"

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <set>

#include "testing/compare.h"
#include "testing/folder.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::same_bits;
using testing::TemporaryFolder;

// Every byte tells its position: 0, 1, ... 250, 0, 1, ...
std::string counting(size_t size, size_t from = 0) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>((from + i) % 251);
  return text;
}

std::vector<int64_t> values(const at::Tensor& x) {
  return {x.const_data_ptr<int64_t>(), x.const_data_ptr<int64_t>() + x.numel()};
}

class TextDataTest : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
};

TEST_F(TextDataTest, HoldsBackTheEndOfEachFile) {
  const TextData data({folder_.write("a", counting(200)), folder_.write("b", counting(101))}, 0.1);
  EXPECT_EQ(data.validation_tokens(), 20 + 11) << "rounded up: no file is without";
  EXPECT_EQ(data.train_tokens(), 180 + 90);

  // 4 bytes a window: a gives (20 - 1) / 4 = 4 from 180 on, b gives (11 - 1) / 4 = 2 from 90 on.
  ASSERT_EQ(data.validation_batches(2, 4), 3);
  EXPECT_EQ(values(data.validation_batch(0, 2, 4).tokens),
            (std::vector<int64_t>{180, 181, 182, 183, 184, 185, 186, 187}));
  EXPECT_EQ(values(data.validation_batch(0, 2, 4).targets),
            (std::vector<int64_t>{181, 182, 183, 184, 185, 186, 187, 188}));
  EXPECT_EQ(values(data.validation_batch(2, 2, 4).tokens),
            (std::vector<int64_t>{90, 91, 92, 93, 94, 95, 96, 97}));
  EXPECT_EQ(data.validation_batches(4, 4), 1) << "6 windows: one full batch, 2 left over";
}

TEST_F(TextDataTest, ReadsBytesNotCharacters) {
  const TextData data({folder_.write("a", std::string("\xff\x00\x80\n", 4))}, 0.5);
  const Batch batch = data.validation_batch(0, 1, 1);
  EXPECT_EQ(batch.tokens.scalar_type(), at::kLong);
  EXPECT_EQ(values(batch.tokens), std::vector<int64_t>{128});
  EXPECT_EQ(values(batch.targets), std::vector<int64_t>{10});
  EXPECT_EQ(values(data.train_batch(0, 0, 1, 1).tokens), std::vector<int64_t>{255});
}

TEST_F(TextDataTest, DrawsTrainingWindowsFromTheTrainingPartOnly) {
  // Training bytes are below 100, validation bytes above: a window must never see the latter.
  const std::string a = counting(60) + std::string(60, '\xc8');
  const std::string b = counting(40, 60) + std::string(40, '\xc8');
  const TextData data({folder_.write("a", a), folder_.write("b", b)}, 0.5);
  std::set<int64_t> starts;
  for (int64_t index = 0; index < 200; ++index) {
    const Batch batch = data.train_batch(7, index, 4, 8);
    ASSERT_EQ(batch.tokens.sizes(), at::IntArrayRef({4, 8}));
    for (int64_t row = 0; row < 4; ++row) {
      const auto tokens = values(batch.tokens[row].contiguous());
      const auto targets = values(batch.targets[row].contiguous());
      const int64_t last = tokens[0] < 60 ? 60 : 100;  // no window from one file into the other
      for (int64_t i = 0; i < 8; ++i) {
        ASSERT_EQ(tokens[i], tokens[0] + i);
        ASSERT_EQ(targets[i], tokens[i] + 1);
        ASSERT_LT(targets[i], last);
      }
      starts.insert(tokens[0]);
    }
  }
  EXPECT_EQ(starts.size(), 52 + 32) << "800 draws should hit each of the 84 positions";
}

TEST_F(TextDataTest, DrawsEachPositionEquallyOften) {
  const TextData data({folder_.write("a", counting(200))}, 0.5);
  constexpr int64_t kDraws = 50000;
  constexpr int64_t kPositions = 50;  // 100 training bytes, windows of 50 + 1
  std::vector<double> count(kPositions, 0);
  for (int64_t index = 0; index < kDraws / 100; ++index) {
    for (const int64_t start :
         values(data.train_batch(1, index, 100, 50).tokens.select(1, 0).contiguous())) {
      count.at(start) += 1;
    }
  }
  const double expected = static_cast<double>(kDraws) / kPositions;
  double chi_square = 0;
  for (const double n : count) chi_square += (n - expected) * (n - expected) / expected;
  EXPECT_LT(chi_square, 85.4) << "the 99.9 % quantile for 49 degrees of freedom";
}

TEST_F(TextDataTest, GivesTheSameBatchForTheSameArguments) {
  const std::string path = folder_.write("a", counting(5000));
  const TextData data({path});
  const TextData again({path});
  const Batch batch = data.train_batch(3, 17, 8, 32);
  data.train_batch(3, 18, 8, 32);  // leaves no trace
  EXPECT_TRUE(same_bits(batch.tokens, data.train_batch(3, 17, 8, 32).tokens));
  EXPECT_TRUE(same_bits(batch.targets, again.train_batch(3, 17, 8, 32).targets));
  EXPECT_FALSE(same_bits(batch.tokens, data.train_batch(3, 18, 8, 32).tokens));
  EXPECT_FALSE(same_bits(batch.tokens, data.train_batch(4, 17, 8, 32).tokens));
}

TEST_F(TextDataTest, KeepsItsRandomSequence) {
  // Expected: Philox4x32-10 written independently. A change here breaks the repeatability of runs.
  const TextData data({folder_.write("a", counting(251))}, 0.01);
  const auto draws = [&](uint64_t seed, int64_t index) {
    return values(data.train_batch(seed, index, 4, 1).tokens);
  };
  EXPECT_EQ(draws(42, 0), (std::vector<int64_t>{151, 18, 243, 126}));
  EXPECT_EQ(draws(42, 1), (std::vector<int64_t>{2, 57, 31, 26}));
  EXPECT_EQ(draws((uint64_t{1} << 40) + 5, int64_t{1} << 33),
            (std::vector<int64_t>{152, 239, 111, 65}));
}

TEST_F(TextDataTest, BigramLossIsTheMeanUnderTheTable) {
  // Training text abababab: 4 pairs ab, 3 pairs ba. Validation text abcabcab.
  const TextData data({folder_.write("a",
                                     "ababababab"
                                     "abcabcabca")},
                      0.5);
  const double ab = -std::log((5.0 + 1) / (5 + 256));
  const double bc = -std::log((0.0 + 1) / (4 + 256));
  const double ca = -std::log((0.0 + 1) / (0 + 256));
  EXPECT_NEAR(data.bigram_loss(1, 3, 3), (3 * ab + 3 * bc + 3 * ca) / 9, 1e-12);
  EXPECT_NEAR(data.bigram_loss(1, 1, 2), (ab + bc) / 2, 1e-12);
  EXPECT_NEAR(data.bigram_loss(2, 1, 2), (ab + bc + ca + ab) / 4, 1e-12);
  EXPECT_THAT(error_of([&] { data.bigram_loss(5, 1, 2); }),
              HasSubstr("batches: expected 1 to 4, got 5"));
}

// Long texts are counted in pieces.
TEST_F(TextDataTest, BigramsAreCountedAcrossPieces) {
  constexpr size_t kSize =
      (size_t{1} << 20) + 2;  // of the training text: a piece and one pair more
  std::string text(2 * kSize, 'a');
  text[kSize - 1] = 'b';
  const TextData data({folder_.write("a", text)}, 0.5);
  const double aa = -std::log((kSize - 2.0 + 1) / (kSize - 1 + 256));
  EXPECT_NEAR(data.bigram_loss(1, 1, 4), aa, 1e-12);
}

TEST_F(TextDataTest, RefusesBadFiles) {
  const std::string good = folder_.write("a", counting(100));
  const auto open = [](std::vector<std::string> paths, double fraction = 0.05) {
    return error_of([&] { TextData(paths, fraction); });
  };
  EXPECT_EQ(open({good}), "(no error)");
  EXPECT_EQ(open({}), "[text_data] paths: expected at least one text file, got none");
  EXPECT_THAT(open({good, folder_ / "none"}),
              HasSubstr("none: expected a readable file, got: No such file"));
  EXPECT_THAT(open({folder_ / ""}), HasSubstr("expected a regular file, got a directory"));
  EXPECT_THAT(open({good, folder_.write("empty", "")}),
              HasSubstr("empty: expected text, got an empty file"));
  for (const double fraction : {0.0, 1.0, -0.1, 2.0, std::nan("")}) {
    EXPECT_THAT(open({good}, fraction),
                HasSubstr("validation_fraction: expected more than 0 and less than 1"));
  }
}

TEST_F(TextDataTest, RefusesTextOfTwoBytesPerCharacter) {
  const std::string path = folder_.write("a", std::string("\xFF\xFEh\0i\0", 6));
  EXPECT_EQ(error_of([&] { TextData({path}, 0.5); }),
            "[text_data] " + path +
                ": expected text of one byte per letter or in UTF-8, got UTF-16. Convert it: iconv "
                "-f UTF-16 -t UTF-8 FILE > NEW-FILE");
  folder_.write("a", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n");
  EXPECT_THAT(error_of([&] { TextData({path}, 0.5); }), HasSubstr("got a Git LFS pointer. "));
  folder_.write("a", std::string(100, '\0'));  // tokens like all others
  EXPECT_EQ(error_of([&] { TextData({path}, 0.5); }), "(no error)");
}

TEST_F(TextDataTest, AFileThatOthersShortenIsNamed) {
  const std::string path = folder_.write("a", counting(5000));
  const TextData data({path}, 0.5);
  std::filesystem::resize_file(path, 100);
  const std::string message = path + ": expected ";
  for (const std::function<void()>& call : std::vector<std::function<void()>>{
           [&] { data.train_batch(1, 0, 4, 2000); }, [&] { data.validation_batch(0, 1, 8); },
           [&] { data.bigram_loss(1, 1, 8); }, [&] { data.fingerprints(); }}) {
    EXPECT_THAT(
        error_of(call),
        ::testing::AllOf(HasSubstr(message), HasSubstr("the file became shorter while it was")));
  }
}

TEST_F(TextDataTest, SaysHowManyBytesAreNeeded) {
  const TextData data({folder_.write("a", counting(100)), folder_.write("b", counting(60))}, 0.25);
  EXPECT_EQ(error_of([&] { data.check_sizes(5, 7); }), "(no error)");  // 3 + 2 windows
  EXPECT_THAT(
      error_of([&] { data.check_sizes(6, 7); }),
      HasSubstr(
          "[text_data] validation text: expected at least 43 bytes for one batch of 6 windows "
          "of 7, got 40 in 2 files (windows stay within one). Give a longer text"));
  EXPECT_THAT(
      error_of([&] { data.train_batch(0, 0, 1, 75); }),
      HasSubstr("[text_data] training text: expected at least 76 bytes in one file for sequence "
                "length 75, got 75"));
  EXPECT_THAT(error_of([&] { data.train_batch(0, 0, 1, 1 << 30); }), HasSubstr("1073741825 bytes"));
  EXPECT_THAT(error_of([&] { data.train_batch(0, 0, 0, 4); }),
              HasSubstr("batch_size: expected 1 to"));
  EXPECT_THAT(error_of([&] { data.train_batch(0, 0, 1, INT64_MAX); }),
              HasSubstr("seq_len: expected 1 to"));
  EXPECT_THAT(error_of([&] { data.train_batch(0, -1, 1, 4); }),
              HasSubstr("index: expected 0 or more, got -1"));
  EXPECT_THAT(error_of([&] { data.validation_batch(5, 1, 7); }),
              HasSubstr("index: expected 0 to 4, got 5"));
  EXPECT_THAT(error_of([&] { TextData({folder_.write("one", "x")}).check_sizes(1, 1); }),
              HasSubstr("expected at least 2 bytes in one file for sequence length 1, got 0"));
}

TEST(TextData, FingerprintsFollowTheBytesAndNotTheNames) {
  const TemporaryFolder folder;
  const std::string a = folder.write("a", "some text"), b = folder.write("b", "some text"),
                    c = folder.write("c", "some texT");
  EXPECT_EQ(TextData({a}, 0.5).fingerprints(), TextData({b}, 0.5).fingerprints());
  EXPECT_NE(TextData({a}, 0.5).fingerprints(), TextData({c}, 0.5).fingerprints());
  EXPECT_NE(TextData({a, c}, 0.5).fingerprints(), TextData({c, a}, 0.5).fingerprints());
}

// ---- token files --------------------------------------------------------------
// Tokens 1000, 1001, ...: every one tells its position.
std::string counting_tokens(size_t count, uint16_t from) {
  std::string bytes;
  for (size_t i = 0; i < count; ++i) {
    const auto id = static_cast<uint16_t>(from + i);
    bytes.append(reinterpret_cast<const char*>(&id), sizeof id);
  }
  return bytes;
}

TEST_F(TextDataTest, FlatFilesHoldTokens) {
  const DataConfig config{.files = {folder_.write("a.bin", counting_tokens(100, 1000))},
                          .tokens = DataTokens::UINT16,
                          .validation_fraction = 0.1};
  const TextData data(config, 50257);
  EXPECT_EQ(data.train_tokens(), 90);
  EXPECT_EQ(values(data.validation_batch(0, 1, 4).targets),
            (std::vector<int64_t>{1091, 1092, 1093, 1094}));
  const Batch batch = data.train_batch(1, 0, 8, 5);
  for (int64_t row = 0; row < 8; ++row) {
    EXPECT_EQ(batch.targets[row][0].item<int64_t>(), batch.tokens[row][0].item<int64_t>() + 1);
  }
  EXPECT_THAT(error_of([&] { TextData(config, 1050).validation_batch(0, 1, 4); }),
              HasSubstr("expected ids below 1050, the model's vocabulary, got 1090 at token 90"));
  EXPECT_NE(data.fingerprints(),
            TextData({.files = config.files, .tokens = DataTokens::BYTES}, 256).fingerprints())
      << "other tokens, the same bytes";
}

TEST_F(TextDataTest, FilesThatSayTheyHoldTokensAreReadAsSuch) {
  folder_.write("tokens.bin", counting_tokens(50, 300));
  const uint64_t end = 50;
  folder_.write("documents.u64", {reinterpret_cast<const char*>(&end), sizeof end});
  const std::string index =
      R"({"format": "moe8 tokens", "version": 1, "dtype": "uint16", "tokens": 50,
      "documents": 1, "vocabulary": 400, "tokenizer": "one"})";
  folder_.write("index.json", index);
  const DataConfig config{.files = {folder_ / ""}, .validation_fraction = 0.2};
  EXPECT_EQ(values(TextData(config, 400).validation_batch(0, 1, 2).tokens),
            (std::vector<int64_t>{340, 341}));
  EXPECT_THAT(error_of([&] { TextData(config, 399); }),
              HasSubstr("model.vocab_size: expected at least 400, as the tokenizer of"));
  const DataConfig both{.files = {folder_ / "", folder_.write("text", "some text")}};
  EXPECT_THAT(error_of([&] { TextData(both, 400); }),
              HasSubstr("text: expected tokens of the same tokenizer as those of"));
  EXPECT_THAT(error_of([&] { TextData({folder_.write("x.bin", counting_tokens(9, 1))}); }),
              HasSubstr("Say data.tokens = \"uint16\" or \"uint32\""));
}

TEST_F(TextDataTest, WeightsSayHowOftenAFileIsDrawn) {
  DataConfig config{.files = {folder_.write("a", std::string(50, 'a')),
                              folder_.write("b", std::string(5000, 'b')),
                              folder_.write("c", std::string(500, 'c')),
                              folder_.write("d", std::string(10, 'd'))},
                    .weights = {3, 1, 0.5, 0},
                    .validation_fraction = 0.1};
  const TextData data(config, 256);
  std::map<int64_t, int> drawn;
  constexpr int64_t kBatches = 100, kRows = 90;
  for (int64_t i = 0; i < kBatches; ++i) {
    for (const int64_t byte : values(data.train_batch(5, i, kRows, 1).tokens)) ++drawn[byte];
  }
  constexpr double kAll = kBatches * kRows;
  EXPECT_NEAR(drawn['a'] / kAll, 3 / 4.5, 0.02);
  EXPECT_NEAR(drawn['b'] / kAll, 1 / 4.5, 0.02);
  EXPECT_NEAR(drawn['c'] / kAll, 0.5 / 4.5, 0.02);
  EXPECT_EQ(drawn.count('d'), 0U);
  // A rank's rows are those of the whole batch.
  EXPECT_TRUE(same_bits(data.train_batch(5, 3, 8, 4, {2, 3}).tokens,
                        data.train_batch(5, 3, 8, 4).tokens.slice(0, 2, 5)));

  config.weights = {1, 1};
  EXPECT_THAT(error_of([&] { TextData(config, 256); }),
              HasSubstr("expected as many as files, 4, or none, got 2"));
  config.weights = {0, 0, 0, 0};
  EXPECT_THAT(error_of([&] { TextData(config, 256); }), HasSubstr("expected one above 0"));
  config.weights = {1, 1, 1, 1};
  EXPECT_THAT(
      error_of([&] { TextData(config, 256).train_batch(1, 0, 1, 20); }),
      HasSubstr(
          "d: expected at least 21 bytes for sequence length 20 in a file with a weight, got 9"));
}

TEST_F(TextDataTest, OneFileWithAWeightIsDrawnFromAlone) {
  const TextData data({.files = {folder_.write("a", std::string(50, 'a')),
                                 folder_.write("b", std::string(50, 'b'))},
                       .weights = {0, 0.1},
                       .validation_fraction = 0.5},
                      256);
  for (const int64_t byte : values(data.train_batch(5, 0, 64, 2).tokens)) EXPECT_EQ(byte, 'b');
}

}  // namespace
}  // namespace moe8
