// SPDX-License-Identifier: BSD-3-Clause
// Losses of a model on texts: against one forward of the whole text, and their errors against the
// formula; tokens, bytes and answers that count.
#include "train/evaluate.h"

#include <torch/torch.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "moe8/transformer.h"
#include "testing/compare.h"
#include "testing/folder.h"
#include "text/tokenize_job.h"
#include "train/tiny_run.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

class EvaluateTest : public ::testing::Test {
 protected:
  EvaluateTest() : model_(testing::tiny_config(folder_).model, 5, at::kFloat) {
    model_->eval();
    source_.path = "here";
    source_.model = model_->config();
    source_.reads_bytes = true;
  }

  // -log p of each token but the first of ids, of which `back` at most are seen.
  std::vector<double> losses(const std::vector<int64_t>& ids, int64_t begin, int64_t length) {
    const torch::NoGradGuard no_grad;
    const at::Tensor all = at::tensor(at::ArrayRef<int64_t>(ids), at::kLong);
    const at::Tensor logits = model_->forward(all.narrow(0, begin, length).unsqueeze(0))[0];
    const at::Tensor of_targets = at::log_softmax(logits.to(at::kDouble), 1)
                                      .gather(1, all.narrow(0, begin + 1, length).unsqueeze(1))
                                      .squeeze(1)
                                      .neg()
                                      .contiguous();
    const auto* const data = of_targets.const_data_ptr<double>();
    return {data, data + length};
  }
  std::vector<TextLoss> measure(const EvalTextOptions& texts, const EvaluateOptions& options,
                                const Tokenizer* tokenizer = nullptr) {
    return evaluate(*model_, open_eval_texts(texts, source_, tokenizer), options,
                    source_.reads_bytes, tokenizer);
  }

  TemporaryFolder folder_;
  Transformer model_;
  ModelSource source_;
};

double sum_of(const std::vector<double>& values, size_t from = 0) {
  return std::accumulate(values.begin() + static_cast<int64_t>(from), values.end(), 0.0);
}

TEST_F(EvaluateTest, EveryTokenButTheFirstCountsOnce) {
  const std::string bytes = "in the beginning was the word, and the word was long";
  const std::vector<int64_t> ids(bytes.begin(), bytes.end());
  const std::string file = folder_.write("text", bytes);
  const TextLoss whole = measure({.files = {file}}, {.seq_len = 20, .batch_size = 2}).front();
  ASSERT_EQ(whole.tokens, 51);
  EXPECT_EQ(whole.bytes, 51);
  const double by_hand =
      sum_of(losses(ids, 0, 20)) + sum_of(losses(ids, 20, 20)) + sum_of(losses(ids, 40, 11));
  EXPECT_NEAR(whole.nats, by_hand, 1e-4);
  EXPECT_NEAR(*bits_per_byte({whole}), by_hand / 51 / std::numbers::ln2, 1e-6);
  EXPECT_EQ(whole.blocks.size(), 3U);

  // Windows begin at 0, 8, 16, 24 and 32; behind the first 12 tokens are seen by whatever counts.
  const TextLoss more = measure({.files = {file}}, {.seq_len = 20, .stride = 8}).front();
  EXPECT_EQ(more.tokens, 51);
  const double overlapping = sum_of(losses(ids, 0, 20)) + sum_of(losses(ids, 8, 20), 12) +
                             sum_of(losses(ids, 16, 20), 12) + sum_of(losses(ids, 24, 20), 12) +
                             sum_of(losses(ids, 32, 19), 12);
  EXPECT_NEAR(more.nats, overlapping, 1e-4);

  const TextLoss part = measure({.files = {file}, .most_tokens = 21}, {.seq_len = 20}).front();
  EXPECT_EQ(part.tokens, 20);
  EXPECT_NEAR(part.nats, sum_of(losses(ids, 0, 20)), 1e-4);
}

TEST_F(EvaluateTest, ARunsOwnValidationText) {
  const std::string file = folder_.write("text", std::string(60, 'a') + "bcdefghijklmnopqrstu");
  source_.run = testing::tiny_config(folder_);
  source_.run->data.files = {file};
  source_.run->data.validation_fraction = 0.25;
  const TextLoss loss = measure({}, {.seq_len = 32}).front();
  EXPECT_EQ(loss.tokens, 19);
  EXPECT_THAT(loss.name, HasSubstr("text (validation)"));
  std::vector<int64_t> ids;
  for (const char c : std::string("bcdefghijklmnopqrstu")) ids.push_back(c);
  EXPECT_NEAR(loss.nats, sum_of(losses(ids, 0, 19)), 1e-4);
}

TEST(Estimates, ErrorsComeFromBlocks) {
  const TextLoss first{.name = "a", .blocks = {{10, 4}, {9, 3}, {2, 1}}, .tokens = 8, .nats = 21};
  const TextLoss second{.name = "b", .blocks = {{4, 2}, {8, 2}}, .tokens = 4, .nats = 12};
  const Estimate loss = mean_loss({first, second});
  EXPECT_DOUBLE_EQ(loss.value, 33.0 / 12);
  const double a = 21.0 / 8, b = 3;
  const double of_a =
      (std::pow(10 - 4 * a, 2) + std::pow(9 - 3 * a, 2) + std::pow(2 - a, 2)) * 3 / 2;
  const double of_b = (std::pow(4 - 2 * b, 2) + std::pow(8 - 2 * b, 2)) * 2;
  EXPECT_DOUBLE_EQ(*loss.error, std::sqrt(of_a + of_b) / 12);
  EXPECT_FALSE(mean_loss({{.name = "", .blocks = {{10, 4}}, .tokens = 4, .nats = 10}}).error);

  // What both find hard is not in the error of their difference.
  TextLoss other = first;
  for (LossBlock& block : other.blocks) block.nats += 0.5 * static_cast<double>(block.tokens);
  const std::optional<Estimate> same = difference({other}, {first});
  ASSERT_TRUE(same);
  EXPECT_DOUBLE_EQ(same->value, 0.5);
  EXPECT_NEAR(*same->error, 0, 1e-12);
  EXPECT_FALSE(difference({second}, {first}));
  other.fingerprint = "another text";
  EXPECT_FALSE(difference({other}, {first}));
}

// The error of a mean of blocks that are drawn at random is what such means differ by.
TEST(Estimates, ErrorsAreThoseOfRepeatedMeasurements) {
  torch::manual_seed(0);
  constexpr int kTimes = 400;
  double squares = 0, variances = 0;
  for (int i = 0; i < kTimes; ++i) {
    TextLoss text{.name = "", .blocks = {}};
    const at::Tensor draws = at::randn({30, 2}, at::kDouble);
    for (int64_t b = 0; b < 30; ++b) {
      const int64_t tokens = 10 + b % 5;
      const double mean = 2 + draws[b][0].item<double>();
      text.blocks.push_back({mean * static_cast<double>(tokens), tokens});
      text.tokens += tokens;
    }
    const Estimate loss = mean_loss({text});
    squares += std::pow(loss.value - 2, 2) / kTimes;
    variances += std::pow(*loss.error, 2) / kTimes;
  }
  EXPECT_NEAR(std::sqrt(variances / squares), 1, 0.1);
}

// ---- tokens of a tokenizer --------------------------------------------------------
class EvaluateTokensTest : public EvaluateTest {
 protected:
  EvaluateTokensTest() {
    const auto recorded = nlohmann::json::parse(
        std::ifstream(std::string(MOE8_TOKENIZER_CASES) + "/byte_level_prefix.json"));
    file_ = folder_.write("tokenizer.json", recorded["tokenizer"].dump());
    folder_.write("tokenizer_config.json", R"({"eos_token": "<mask>"})");
    TransformerConfig config = model_->config();
    config.vocab_size = Tokenizer(file_).vocabulary_size();
    model_ = Transformer(config, 5, at::kFloat);
    model_->eval();
    source_.model = config;
    source_.tokenizer = file_;
    source_.reads_bytes = false;
  }
  TokenizeJob job_of(const std::string& lines) const {
    TokenizeJob job;
    job.files = {lines};
    job.tokenizer = file_;
    job.out = folder_ / "tokens";
    return job;
  }

  std::string file_;
};

TEST_F(EvaluateTokensTest, TextAndItsTokenFilesAreTheSame) {
  const Tokenizer tokenizer(file_);
  const std::string lines = folder_.write(
      "a.jsonl", "{\"text\": \"one two three é\"}\n{\"text\": \"four five six seven eight\"}\n");
  const TokenizeJob job = job_of(lines);
  tokenize_files(job);
  const TextLoss text = measure({.files = {lines}}, {.seq_len = 8}, &tokenizer).front();
  const TextLoss tokens = measure({.files = {job.out}}, {.seq_len = 8}, &tokenizer).front();
  EXPECT_EQ(text.nats, tokens.nats);
  EXPECT_EQ(text.tokens, tokens.tokens);
  // All of the text but its first token; the end tokens are none of it.
  std::vector<uint32_t> ids = tokenizer.encode("one two three é");
  for (const uint32_t id : tokenizer.encode("four five six seven eight")) ids.push_back(id);
  ids.erase(ids.begin());
  EXPECT_EQ(text.bytes, static_cast<int64_t>(tokenizer.decode(ids).size()));
  EXPECT_EQ(tokens.bytes, text.bytes);
  const TextLoss unknown = measure({.files = {job.out}}, {.seq_len = 8}).front();
  EXPECT_FALSE(unknown.bytes);
  EXPECT_FALSE(bits_per_byte({unknown}));
  EXPECT_THAT(error_of([&] { measure({.files = {lines}}, {.seq_len = 8}); }),
              HasSubstr("expected tokens, or a tokenizer to make them with"));
  EXPECT_THAT(error_of([&] { measure({.files = {job.out}}, {.seq_len = 33}); }),
              HasSubstr("--seq-len: expected 1 to max_seq_len = 32, got 33"));
}

TEST_F(EvaluateTokensTest, AnswersAloneCount) {
  const Tokenizer tokenizer(file_);
  const std::string lines =
      folder_.write("a.jsonl", R"({"prompt": "one two", "completion": " three four"}
{"prompt": "five", "completion": " six"}
)");
  const EvalTextOptions options{.files = {lines}, .documents = {.answers = true}};
  const TextLoss loss = measure(options, {.seq_len = 32}, &tokenizer).front();
  double nats = 0;
  int64_t tokens = 0;
  const auto add = [&](const std::string& prompt, const std::string& completion) {
    std::vector<int64_t> ids;
    for (const uint32_t id : tokenizer.encode(prompt)) ids.push_back(id);
    const size_t given = ids.size();
    for (const uint32_t id : tokenizer.encode(completion)) ids.push_back(id);
    ids.push_back(*tokenizer.id_of("<mask>"));
    nats += sum_of(losses(ids, 0, static_cast<int64_t>(ids.size()) - 1), given - 1);
    tokens += static_cast<int64_t>(ids.size() - given);
  };
  add("one two", " three four");
  add("five", " six");
  EXPECT_EQ(loss.tokens, tokens);
  EXPECT_NEAR(loss.nats, nats, 1e-4);
  EXPECT_EQ(loss.blocks.size(), 2U);
  EXPECT_EQ(loss.bytes, 15);
  TokenizeJob job = job_of(lines);
  job.documents.answers = true;
  tokenize_files(job);
  EXPECT_EQ(measure({.files = {job.out}}, {.seq_len = 32}, &tokenizer).front().nats, loss.nats);
}

}  // namespace
}  // namespace moe8
