// SPDX-License-Identifier: BSD-3-Clause
// Kept keys and values beside computing everything again, for every kind of attention; the choice of
// tokens; documents that do not see each other.
#include "moe8/generate.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>

#include "moe8/quantize_model.h"
#include "moe8/transformer.h"
#include "nn/tiny_transformer.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::sqnr_db;

TransformerConfig small_config() {
  return testing::tiny_transformer();
}

TransformerConfig with_sinks_and_windows() {
  TransformerConfig config = small_config();
  config.attention_sinks = config.attention_bias = true;
  config.sliding_window = 5;
  config.full_attention_every = 2;
  config.rotary_pairs = RotaryPairs::HALVES;
  return config;
}

TransformerConfig latent(int64_t q_rank) {
  TransformerConfig config = small_config();
  config.n_kv_heads = config.n_heads;
  config.kv_rank = 32;
  config.q_rank = q_rank;
  config.rotary_dim = 16;
  config.plain_head_dim = 16;
  config.head_dim = 16;
  return config;
}

std::map<std::string, TransformerConfig> kinds() {
  TransformerConfig normed = small_config();
  normed.qk_norm = QkNorm::HEAD;
  TransformerConfig windows = small_config();
  windows.sliding_window = 3;
  return {{"grouped", small_config()}, {"normed", normed},
          {"windows", windows},        {"sinks", with_sinks_and_windows()},
          {"latent", latent(0)},       {"latent queries", latent(16)}};
}

Transformer model_of(const TransformerConfig& config) {
  Transformer model(config, 3, at::kFloat);
  torch::manual_seed(1);
  const torch::NoGradGuard no_grad;
  for (const auto& parameter : model->named_parameters()) {
    if (parameter.key().ends_with("sinks")) parameter.value().normal_();
  }
  model->eval();
  return model;
}

at::Tensor tokens_of(int64_t batch, int64_t length) {
  torch::manual_seed(2);
  return at::randint(40, {batch, length}, at::kLong);
}

// The logits of positions that come in pieces of these lengths.
at::Tensor in_pieces(Transformer& model, const at::Tensor& tokens,
                     const std::vector<int64_t>& lengths) {
  KvCache cache(tokens.size(1));
  std::vector<at::Tensor> logits;
  int64_t at = 0;
  for (const int64_t length : lengths) {
    logits.push_back(model->forward_with(tokens.narrow(1, at, length), {.cache = &cache}));
    at += length;
  }
  EXPECT_EQ(cache.length(), tokens.size(1));
  return at::cat(logits, 1);
}

TEST(KvCache, LogitsAreThoseOfAllPositionsAtOnce) {
  const torch::NoGradGuard no_grad;
  for (const auto& [name, config] : kinds()) {
    Transformer model = model_of(config);
    const at::Tensor tokens = tokens_of(2, 13);
    const at::Tensor whole = model->forward(tokens);
    EXPECT_GT(sqnr_db(whole, in_pieces(model, tokens, {6, 1, 1, 1, 1, 3})), 90) << name;
    EXPECT_GT(sqnr_db(whole, in_pieces(model, tokens, std::vector<int64_t>(13, 1))), 90) << name;
    const at::Tensor last = model->forward_with(tokens, {.last_position = true});
    EXPECT_GT(sqnr_db(whole.narrow(1, 12, 1), last), 100) << name;
  }
}

// A converted weight makes keys and values in its recipe with a cache as well.
TEST(KvCache, ConvertedWeightsComputeInTheirRecipe) {
  const torch::NoGradGuard no_grad;
  for (const TransformerConfig& config : {small_config(), latent(0)}) {
    Transformer model = model_of(config);
    const at::Tensor tokens = tokens_of(1, 9);
    const at::Tensor before = model->forward(tokens);
    quantize_(*model, FqnToConfig{{"re:.*attention\\.w.*weight", recipe("rowwise")}});
    const at::Tensor whole = model->forward(tokens);
    EXPECT_LT(sqnr_db(before, whole), 75);  // it does something
    EXPECT_GT(sqnr_db(whole, in_pieces(model, tokens, {4, 1, 1, 1, 2})), 80);
  }
}

TEST(KvCache, WrongUseIsSaid) {
  Transformer model = model_of(small_config());
  KvCache cache(4);
  EXPECT_THAT(error_of([&] { model->forward_with(tokens_of(1, 3), {.cache = &cache}); }),
              HasSubstr("expected none where gradients are recorded"));
  const torch::NoGradGuard no_grad;
  EXPECT_THAT(error_of([&] { model->forward_with(tokens_of(1, 5), {.cache = &cache}); }),
              HasSubstr("expected room for 5 positions, got 4"));
  KvCache large(100);
  model->forward_with(tokens_of(1, 20), {.cache = &large});
  EXPECT_THAT(error_of([&] { model->forward_with(tokens_of(1, 5), {.cache = &large}); }),
              HasSubstr("expected 1 to max_seq_len = 24 positions, got [1, 5] after 20"));
  EXPECT_THAT(error_of([&] {
                model->forward_with(tokens_of(1, 5), {.documents = at::zeros({1, 4}, at::kLong)});
              }),
              HasSubstr("documents: expected int64 [1, 5], got Long [1, 4]"));
}

// ---- documents ------------------------------------------------------------------
TEST(Documents, DoNotSeeEachOther) {
  for (const auto& [name, config] : kinds()) {
    Transformer model = model_of(config);
    const at::Tensor tokens = tokens_of(2, 13);
    const at::Tensor documents = at::zeros({2, 13}, at::kLong);
    documents[0].narrow(0, 5, 8).fill_(1);
    documents[1].narrow(0, 2, 4).fill_(7);
    documents[1].narrow(0, 6, 7).fill_(3);
    const at::Tensor packed = model->forward_with(tokens, {.documents = documents});
    const auto alone = [&](int64_t row, int64_t begin, int64_t length) {
      return model->forward(tokens.narrow(0, row, 1).narrow(1, begin, length));
    };
    const at::Tensor expected =
        at::cat({at::cat({alone(0, 0, 5), alone(0, 5, 8)}, 1),
                 at::cat({alone(1, 0, 2), alone(1, 2, 4), alone(1, 6, 7)}, 1)});
    EXPECT_GT(sqnr_db(expected, packed), 90) << name;
    packed.sum().backward();  // a mask of its own per sequence has gradients as well
    const auto grad = [&] { return model->tok_embeddings->weight.grad().clone(); };
    const at::Tensor of_packed = grad();
    model->zero_grad();
    expected.sum().backward();
    EXPECT_GT(sqnr_db(grad(), of_packed), 80) << name;
  }
}

// ---- tokens ---------------------------------------------------------------------
std::vector<int64_t> with_cache(Transformer& model, const SamplingOptions& sampling, bool cache) {
  const std::vector<int64_t> prompt{3, 17, 8};
  return generate(*model, prompt, {.sampling = sampling, .max_tokens = 18, .use_cache = cache});
}

TEST(Generate, TheCacheChangesNoToken) {
  for (const auto& [name, config] : kinds()) {
    Transformer model = model_of(config);
    for (const double temperature : {0.0, 1.0}) {
      const SamplingOptions sampling{.temperature = temperature, .top_p = 0.9, .seed = 4};
      const std::vector<int64_t> tokens = with_cache(model, sampling, true);
      EXPECT_EQ(tokens, with_cache(model, sampling, false)) << name;
      EXPECT_EQ(tokens.size(), 18U) << name;
    }
    EXPECT_FALSE(model->is_training());
  }
}

TEST(Generate, EndsWhereItShould) {
  Transformer model = model_of(small_config());
  model->train();
  const std::vector<int64_t> prompt{1, 2, 3, 4};
  const std::vector<int64_t> all = generate(*model, prompt, {.max_tokens = 1000});
  EXPECT_EQ(all.size(), 20U);  // max_seq_len - 4
  EXPECT_TRUE(model->is_training());
  const auto first = std::find(all.begin(), all.end(), all[3]);  // it may have come before
  const std::vector<int64_t> until =
      generate(*model, prompt, {.max_tokens = 1000, .end_tokens = {all[3]}});
  EXPECT_EQ(until, std::vector<int64_t>(all.begin(), first + 1));
  std::vector<int64_t> seen;
  generate(*model, prompt, {.on_token = [&](int64_t token) {
    seen.push_back(token);
    return seen.size() < 2;
  }});
  EXPECT_EQ(seen, std::vector<int64_t>(all.begin(), all.begin() + 2));
  EXPECT_THAT(error_of([&] { generate(*model, std::vector<int64_t>{}, {}); }),
              HasSubstr("expected 1 to 23 tokens, one fewer than max_seq_len, got 0"));
  EXPECT_THAT(error_of([&] { generate(*model, std::vector<int64_t>{40}, {}); }),
              HasSubstr("expected tokens below vocab_size = 40, got 40"));
}

TEST(SampleToken, GreedyAndNarrowChoicesAreTheLargestLogit) {
  const at::Tensor logits = at::tensor({0.0, 3.0, 1.0, 3.0});
  EXPECT_EQ(sample_token(logits, {}, 0), 1);
  for (int64_t position = 0; position < 50; ++position) {
    EXPECT_EQ(sample_token(logits, {.temperature = 1, .top_k = 1}, position), 1);
    EXPECT_EQ(sample_token(logits, {.temperature = 1, .top_p = 0.1}, position), 1);
    EXPECT_EQ(sample_token(logits, {.temperature = 1e-6, .top_k = 1}, position), 1);
    const int64_t of_two = sample_token(logits, {.temperature = 1, .top_k = 2}, position);
    EXPECT_TRUE(of_two == 1 || of_two == 3);
  }
}

TEST(SampleToken, ProbabilitiesAreThoseOfTheSoftmax) {
  const at::Tensor logits = at::tensor({0.5, 2.0, 1.0, -1.0, 0.0});
  const auto frequencies = [&](const SamplingOptions& options) {
    constexpr int64_t kDraws = 20000;
    at::Tensor counts = at::zeros({5}, at::kDouble);
    for (int64_t i = 0; i < kDraws; ++i) counts[sample_token(logits, options, i)] += 1.0 / kDraws;
    return counts;
  };
  const auto close = [](const at::Tensor& expected, const at::Tensor& got) {
    return (expected - got).abs().max().item<double>() < 0.015;  // 4 standard errors
  };
  EXPECT_TRUE(close(at::softmax(logits, 0), frequencies({.temperature = 1, .seed = 1})));
  EXPECT_TRUE(close(at::softmax(logits / 0.5, 0), frequencies({.temperature = 0.5, .seed = 2})));
  const double never = -std::numeric_limits<double>::infinity();
  // Of 0.55, 0.20, 0.12, ...: two reach 0.7.
  at::Tensor two = at::full({5}, never, at::kDouble);
  two[1] = 2.0, two[2] = 1.0;
  EXPECT_TRUE(close(at::softmax(two, 0), frequencies({.temperature = 1, .top_p = 0.7, .seed = 3})));
  EXPECT_TRUE(close(at::softmax(two, 0), frequencies({.temperature = 1, .top_k = 2, .seed = 4})));
  EXPECT_FALSE(at::equal(frequencies({.temperature = 1, .seed = 5}),
                         frequencies({.temperature = 1, .seed = 6})));
}

TEST(SampleToken, WhatIsWrongIsSaid) {
  const at::Tensor logits = at::tensor({0.0, std::nan("")});
  EXPECT_THAT(error_of([&] { sample_token(logits, {}, 0); }),
              HasSubstr("logits: expected finite numbers, got NaN"));
  EXPECT_THAT(error_of([&] { sample_token(at::ones({2}), {.top_p = 0}, 0); }),
              HasSubstr("top_p: expected more than 0, at most 1, got 0"));
  EXPECT_THAT(error_of([&] { sample_token(at::ones({2}), {.temperature = -1}, 0); }),
              HasSubstr("temperature: expected 0 or more, got -1"));
}

}  // namespace
}  // namespace moe8
