// SPDX-License-Identifier: BSD-3-Clause
// Names, shapes, counts, causality, rotary positions, initial weights and misuse of the
// transformer.
#include "moe8/transformer.h"

#include <algorithm>
#include <cmath>

#include "nn/tiny_transformer.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using testing::same_bits;
using testing::sqnr_db;

TransformerConfig small_config() {
  TransformerConfig config = testing::tiny_transformer();
  config.dense_hidden_dim = 48;
  config.hidden_dim = 16;
  return config;
}

std::vector<ParameterShape> shapes_of(const torch::nn::Module& model) {
  std::vector<ParameterShape> list;
  for (const auto& parameter : model.named_parameters()) {
    list.push_back({parameter.key(), parameter.value().sizes().vec()});
  }
  return list;
}

at::Tensor tokens_of(int64_t batch, int64_t length, uint64_t seed = 0) {
  torch::manual_seed(seed);
  return at::randint(40, {batch, length}, at::kLong);
}

TEST(Transformer, ParameterNamesAreTorchtitans) {
  Transformer model(small_config());
  std::vector<std::string> names;
  for (const auto& parameter : model->named_parameters()) names.push_back(parameter.key());
  for (const char* name :
       {"tok_embeddings.weight", "layers.0.attention.wq.weight", "layers.0.attention.wk.weight",
        "layers.0.attention.wv.weight", "layers.0.attention.wo.weight",
        "layers.0.attention_norm.weight", "layers.0.ffn_norm.weight",
        "layers.0.feed_forward.w1.weight", "layers.0.feed_forward.w2.weight",
        "layers.0.feed_forward.w3.weight", "layers.1.moe.router.gate.weight",
        "layers.1.moe.experts.w1", "layers.1.moe.experts.w2", "layers.1.moe.experts.w3",
        "layers.2.moe.shared_experts.w1.weight", "layers.2.moe.shared_experts.w2.weight",
        "layers.2.moe.shared_experts.w3.weight", "norm.weight", "output.weight"}) {
    EXPECT_NE(std::find(names.begin(), names.end(), name), names.end()) << name;
  }
  const auto buffers = model->named_buffers();
  EXPECT_EQ(buffers.size(), 4u);
  EXPECT_TRUE(buffers.contains("layers.1.moe.expert_bias"));
  EXPECT_TRUE(buffers.contains("layers.2.moe.tokens_per_expert"));
  const auto parameters = model->named_parameters();
  EXPECT_EQ(parameters["layers.1.moe.experts.w1"].sizes(), (std::vector<int64_t>{4, 16, 32}));
  EXPECT_EQ(parameters["layers.1.moe.experts.w2"].sizes(), (std::vector<int64_t>{4, 32, 16}));
  EXPECT_EQ(parameters["layers.1.moe.experts.w3"].sizes(), (std::vector<int64_t>{4, 16, 32}));
}

TEST(ParameterShapes, AreThoseOfTheModel) {
  for (const int64_t shared : {0, 2}) {
    TransformerConfig config = small_config();
    config.n_shared_experts = shared;
    config.n_dense_layers = shared;
    config.head_dim = 6 * shared;  // 0: dim / n_heads
    Transformer model(config);
    EXPECT_EQ(parameter_shapes(config), shapes_of(*model));
  }
}

// What published models have beside the rest.
std::vector<TransformerConfig> with_options() {
  std::vector<TransformerConfig> list(4, small_config());
  list[0].qk_norm = QkNorm::HEAD;
  list[0].tied_embeddings = true;
  list[1].qk_norm = QkNorm::WIDTH;
  list[1].attention_bias = true;
  list[2].attention_sinks = list[2].attention_bias = list[2].router_bias = true;
  list[2].expert_biases = true;
  list[2].activation = Activation::CLAMPED_SWIGLU;
  list[2].sliding_window = 5;
  list[2].full_attention_every = 2;
  list[3].n_kv_heads = 4;
  list[3].head_dim = 8;
  list[3].kv_rank = 16;
  list[3].q_rank = 24;
  list[3].rotary_dim = 4;
  list[3].plain_head_dim = 6;
  list[3].n_expert_groups = 2;
  list.push_back(list[3]);
  list[4].q_rank = 0;
  return list;
}

TEST(ParameterShapes, OfOptionsAreThoseOfTheModel) {
  for (const TransformerConfig& config : with_options()) {
    Transformer model(config);
    EXPECT_EQ(parameter_shapes(config), shapes_of(*model));
  }
}

TEST(Transformer, OptionsLearnAndSeeNothingAhead) {
  for (const TransformerConfig& config : with_options()) {
    for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
      Transformer model(config, 1, dtype);
      const at::Tensor tokens = tokens_of(2, 20);
      const at::Tensor logits = model(tokens);
      logits.to(at::kFloat).square().mean().backward();
      for (const auto& parameter : model->named_parameters()) {
        ASSERT_TRUE(parameter.value().grad().defined()) << parameter.key();
        EXPECT_TRUE(at::isfinite(parameter.value().grad()).all().item<bool>()) << parameter.key();
      }
      at::Tensor changed = tokens.clone();
      changed[0][12] = (changed[0][12] + 1).remainder(40);
      EXPECT_GT(sqnr_db(logits.narrow(1, 0, 12), model(changed).narrow(1, 0, 12)), 60);
    }
  }
}

TEST(Transformer, AWindowEndsBehindItsPositions) {
  TransformerConfig config = small_config();
  config.n_layers = 1;
  config.n_dense_layers = 0;
  config.sliding_window = 5;
  Transformer model(config, 1, at::kFloat);
  const at::Tensor tokens = tokens_of(1, 20);
  at::Tensor changed = tokens.clone();
  changed[0][3] = (changed[0][3] + 1).remainder(40);
  const at::Tensor a = model(tokens), b = model(changed);
  EXPECT_LT(sqnr_db(a.select(1, 7), b.select(1, 7)), 80);  // its window holds 3 to 7
  EXPECT_GT(sqnr_db(a.narrow(1, 8, 12), b.narrow(1, 8, 12)), 100);
}

TEST(TransformerConfig, OptionsThatDoNotFitAreRefused) {
  const auto message = [](const std::function<void(TransformerConfig&)>& change) {
    TransformerConfig config = small_config();
    change(config);
    return error_of([&] { config.validate(); });
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(message([](auto& c) { c.full_attention_every = 2; }),
              HasSubstr("full_attention_every: expected 0 without sliding_window, got 2"));
  EXPECT_THAT(message([](auto& c) { c.rope_scaling = RopeScaling::YARN; }),
              HasSubstr("rope_original_len: expected 1 to "));
  EXPECT_THAT(message([](auto& c) { c.q_rank = 8; }),
              HasSubstr("q_rank: expected 0 without kv_rank, got 8"));
  EXPECT_THAT(message([](auto& c) { c.kv_rank = 8, c.rotary_dim = 4; }),
              HasSubstr("n_kv_heads: expected n_heads = 4 beside kv_rank, got 2"));
  EXPECT_THAT(message([](auto& c) { c.n_expert_groups = 3; }),
              HasSubstr("n_expert_groups: expected a divisor of n_experts = 4, got 3"));
  EXPECT_THAT(message([](auto& c) { c.n_expert_groups = 2, c.top_k = 3; }),
              HasSubstr("top_k_groups: expected groups that hold top_k = 3 experts, got 1"));
}

TEST(CountParameters, TotalAndActive) {
  const TransformerConfig config = small_config();  // 2 of 4 experts
  int64_t total = 0, routed = 0;
  for (const auto& parameter : Transformer(config)->named_parameters()) {
    total += parameter.value().numel();
    if (parameter.key().find(".experts.") != std::string::npos) routed += parameter.value().numel();
  }
  EXPECT_EQ(count_parameters(config).total, total);
  EXPECT_EQ(count_parameters(config).active, total - routed / 2);
}

TEST(CountParameters, SizesBeyondAnyModelAreRefused) {
  TransformerConfig config = small_config();
  config.dim = config.hidden_dim = 1 << 30;
  config.n_experts = 1 << 20;
  EXPECT_THAT(
      error_of([&] { count_parameters(config); }),
      ::testing::HasSubstr("parameters: expected at most 1e+16 in all, got more by layers."));
}

TEST(Transformer, LogitsHaveShapeAndDtype) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    Transformer model(small_config(), 0, dtype);
    const at::Tensor logits = model(tokens_of(3, 11));
    EXPECT_EQ(logits.sizes(), (std::vector<int64_t>{3, 11, 40}));
    EXPECT_EQ(logits.scalar_type(), dtype);
    EXPECT_TRUE(at::isfinite(logits).all().item<bool>());
  }
}

TEST(Transformer, ATokenChangesNothingBeforeIt) {
  Transformer model(small_config(), 1, at::kFloat);
  model->eval();
  const at::Tensor tokens = tokens_of(1, 20);
  at::Tensor changed = tokens.clone();
  changed[0][12] = (changed[0][12] + 1).remainder(40);
  const at::Tensor a = model(tokens), b = model(changed);
  EXPECT_GT(sqnr_db(a.narrow(1, 0, 12), b.narrow(1, 0, 12)), 100);
  for (int64_t position = 12; position < 20; ++position) {
    EXPECT_LT(sqnr_db(a.select(1, position), b.select(1, position)), 80) << position;
  }
}

// Attention over equal tokens sees only distances: shifting a whole sequence changes nothing.
TEST(Rotary, ScoresDependOnDistanceOnly) {
  const at::Tensor freqs = rotary_frequencies(8, 50, 10000.0);
  EXPECT_EQ(freqs.sizes(), (std::vector<int64_t>{50, 4}));
  EXPECT_NEAR(at::real(freqs)[3][1].item<double>(), std::cos(3 * std::pow(10000.0, -0.25)), 1e-6);
  EXPECT_NEAR(at::imag(freqs)[3][1].item<double>(), std::sin(3 * std::pow(10000.0, -0.25)), 1e-6);
  torch::manual_seed(5);
  const at::Tensor q = at::view_as_complex(at::randn({4, 2})),
                   k = at::view_as_complex(at::randn({4, 2}));
  const auto score = [&](int64_t i, int64_t j) {
    return at::real((q * freqs[i] * (k * freqs[j]).conj()).sum()).item<double>();
  };
  EXPECT_NEAR(score(7, 3), score(45, 41), 1e-4);
  EXPECT_GT(std::abs(score(7, 3) - score(7, 4)), 1e-3);
}

TEST(Attention, GroupedQueryEqualsRepeatedKeyValueHeads) {
  TransformerConfig config = small_config();
  Attention grouped(config);
  config.n_kv_heads = config.n_heads;
  Attention full(config);
  {
    const torch::NoGradGuard no_grad;
    const auto repeat = [](const at::Tensor& w) {  // [2*8, 32]: each head's rows twice
      return w.view({2, 8, 32}).repeat_interleave(2, 0).reshape({32, 32});
    };
    full->wq->weight.copy_(grouped->wq->weight);
    full->wk->weight.copy_(repeat(grouped->wk->weight));
    full->wv->weight.copy_(repeat(grouped->wv->weight));
    full->wo->weight.copy_(grouped->wo->weight);
  }
  const at::Tensor x = at::randn({2, 10, 32});
  const Positions positions{.freqs = rotary_frequencies(8, 10, 10000.0), .window = {}};
  EXPECT_GT(sqnr_db(full(x, positions), grouped(x, positions)), 100);
}

TEST(RMSNorm, IsItsFormula) {
  RMSNorm norm(16, 1e-5);
  {
    const torch::NoGradGuard no_grad;
    norm->weight.uniform_(0.5, 2);
  }
  const at::Tensor x = at::randn({5, 16});
  const at::Tensor expected = x / at::sqrt(x.square().mean(-1, true) + 1e-5) * norm->weight;
  EXPECT_GT(sqnr_db(expected, norm(x)), 120);
}

TEST(InitialWeights, DependOnTheSeedAlone) {
  Transformer a(small_config(), 7);
  torch::manual_seed(99);
  at::rand({5});
  Transformer b(small_config(), 7), wide(small_config(), 7, at::kFloat), other(small_config(), 8);
  const auto theirs = b->named_parameters(), wides = wide->named_parameters(),
             others = other->named_parameters();
  for (const auto& parameter : a->named_parameters()) {
    const at::Tensor& value = parameter.value();
    EXPECT_TRUE(same_bits(value, theirs[parameter.key()])) << parameter.key();
    EXPECT_TRUE(same_bits(value, wides[parameter.key()].to(at::kBFloat16))) << parameter.key();
    const bool constant = value.dim() == 1;  // norms are ones whatever the seed
    EXPECT_EQ(at::equal(value, others[parameter.key()]), constant) << parameter.key();
  }
}

// Modules make room for weights that nobody has written; LibTorch can fill such memory with NaN.
TEST(InitialWeights, AreAllWritten) {
  at::Context& context = at::globalContext();
  const bool filled = context.deterministicFillUninitializedMemory();
  context.setDeterministicAlgorithms(true, /*warn_only=*/true);
  context.setDeterministicFillUninitializedMemory(true);
  TransformerConfig config = small_config(), other = small_config();
  config.qk_norm = QkNorm::HEAD;
  config.attention_bias = config.attention_sinks = config.expert_biases = config.router_bias = true;
  other.n_kv_heads = other.n_heads, other.kv_rank = 8, other.q_rank = 8, other.plain_head_dim = 4,
  other.rotary_dim = 4;
  ASSERT_TRUE(at::isnan(at::empty({3})).all().item<bool>());
  for (const TransformerConfig& c : {config, other}) {
    Transformer model(c, 7, at::kFloat);
    for (const auto& parameter : model->named_parameters()) {
      EXPECT_FALSE(at::isnan(parameter.value()).any().item<bool>()) << parameter.key();
    }
    EXPECT_EQ(model->output->options.in_features(), c.dim);
    EXPECT_EQ(model->output->options.out_features(), c.vocab_size);
    EXPECT_EQ(model->tok_embeddings->options.embedding_dim(), c.dim);
  }
  context.setDeterministicAlgorithms(false, /*warn_only=*/false);
  context.setDeterministicFillUninitializedMemory(filled);
}

TEST(InitialWeights, DoNotDependOnTheNumberOfThreads) {
  TransformerConfig config = small_config();
  config.hidden_dim = 1024;  // enough for several tasks
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  Transformer alone(config, 7);
  at::set_num_threads(3);
  Transformer shared(config, 7);
  at::set_num_threads(threads);
  const auto theirs = shared->named_parameters();
  for (const auto& parameter : alone->named_parameters()) {
    EXPECT_TRUE(same_bits(parameter.value(), theirs[parameter.key()])) << parameter.key();
  }
}

// Not as the machine's own erf and log would have it: those differ in their last bits.
TEST(InitialWeights, AreNormalAndCutOff) {
  TransformerConfig config = small_config();
  config.hidden_dim = 8192;
  Transformer model(config, 7, at::kFloat);
  const at::Tensor sorted = std::get<0>(
      (model->named_parameters()["layers.1.moe.experts.w1"].detach() / 0.02).flatten().sort());
  const int64_t n = sorted.numel();
  constexpr double kBelowThree = 0.00134989803163;
  const at::Tensor p =
      kBelowThree + (at::arange(n, at::kDouble) + 0.5) / double(n) * (1 - 2 * kBelowThree);
  const at::Tensor expected = at::special_ndtri(p);
  EXPECT_LT((sorted - expected).abs().max().item<double>(), 0.05);
  EXPECT_LT((sorted - expected).abs().mean().item<double>(), 0.005);
}

TEST(InitialWeights, HaveTheirSpreads) {
  TransformerConfig config = small_config();
  config.dim = 128;
  config.hidden_dim = 64;
  Transformer model(config, 3, at::kFloat);
  const auto p = model->named_parameters();
  const auto spread = [&](const char* name) { return p[name].std().item<double>(); };
  const double cut = 0.9866;  // the spread of a normal distribution that is cut at 3
  EXPECT_NEAR(spread("tok_embeddings.weight"), 1, 0.05);
  EXPECT_NEAR(spread("layers.2.moe.experts.w1"), 0.02 * cut, 0.001);
  EXPECT_NEAR(spread("layers.2.moe.experts.w2"), 0.02 / std::sqrt(6.0) * cut, 0.0005);
  EXPECT_NEAR(spread("output.weight"), 1 / std::sqrt(128.0) * cut, 0.005);
  EXPECT_LE(p["layers.2.moe.experts.w1"].abs().max().item<double>(), 0.0600001);
}

TEST(Transformer, TrainsEveryParameter) {
  Transformer model(small_config(), 2);
  const at::Tensor tokens = tokens_of(4, 24);
  model(tokens).to(at::kFloat).log_softmax(-1).select(-1, 3).sum().backward();
  for (const auto& parameter : model->named_parameters()) {
    ASSERT_TRUE(parameter.value().grad().defined()) << parameter.key();
    EXPECT_GT(parameter.value().grad().abs().max().item<double>(), 0) << parameter.key();
  }
}

TEST(CastParameters, KeepsIdentityAndBuffers) {
  Transformer model(small_config(), 2);
  const at::Tensor held = model->output->weight;
  cast_parameters_(*model, at::kFloat);
  EXPECT_EQ(held.scalar_type(), at::kFloat);
  for (const at::Tensor& buffer : model->buffers()) EXPECT_EQ(buffer.scalar_type(), at::kFloat);
}

TEST(Transformer, RefusesWrongTokens) {
  Transformer model(small_config());
  EXPECT_EQ(error_of([&] { model(at::zeros({3}, at::kLong)); }),
            "[Transformer] tokens: expected int64 [batch, sequence], got Long [3]");
  EXPECT_EQ(error_of([&] {
              model(at::zeros({1, 3}));
            }),
            "[Transformer] tokens: expected int64 [batch, sequence], got Float [1, 3]");
  EXPECT_EQ(error_of([&] {
              model(at::zeros({1, 25}, at::kLong));
            }),
            "[Transformer] tokens: expected 1 to max_seq_len = 24 positions, got [1, 25]");
  EXPECT_EQ(error_of([&] {
              model(at::zeros({0, 5}, at::kLong));
            }),
            "[Transformer] tokens: expected 1 to max_seq_len = 24 positions, got [0, 5]");
  EXPECT_EQ(error_of([] { Transformer(small_config(), 0, at::kHalf); }),
            "[Transformer] dtype: expected bfloat16 or float32, got Half");
}

TEST(TransformerConfig, RefusesWhatCannotBe) {
  const auto message = [](const std::function<void(TransformerConfig&)>& change) {
    TransformerConfig config;
    change(config);
    return error_of([&] { config.validate(); });
  };
  EXPECT_EQ(message([](auto&) {}), "(no error)");
  EXPECT_EQ(message([](auto& c) { c.vocab_size = 0; }),
            "[TransformerConfig] vocab_size: expected 1 to 1073741824, got 0");
  EXPECT_EQ(
      message([](auto& c) { c.dim = 100; }),
      "[TransformerConfig] dim: expected a multiple of 8 (rows of 16 bytes in bf16), got 100");
  EXPECT_EQ(message([](auto& c) { c.n_heads = 3; }),
            "[TransformerConfig] n_heads: expected a divisor of dim = 256 that leaves an even head "
            "width, got 3. Set head_dim for another width.");
  EXPECT_EQ(message([](auto& c) { c.n_heads = 256; }),
            "[TransformerConfig] n_heads: expected a divisor of dim = 256 that leaves an even head "
            "width, got 256. Set head_dim for another width.");
  EXPECT_EQ(message([](auto& c) { c.n_heads = 3, c.n_kv_heads = 1, c.head_dim = 32; }),
            "(no error)");
  EXPECT_EQ(message([](auto& c) { c.head_dim = 33; }),
            "[TransformerConfig] head_dim: expected an even number, got 33");
  EXPECT_EQ(message([](auto& c) { c.n_kv_heads = 3; }),
            "[TransformerConfig] n_kv_heads: expected a divisor of n_heads = 4, got 3");
  EXPECT_EQ(message([](auto& c) { c.n_dense_layers = 4; }),
            "[TransformerConfig] n_dense_layers: expected 0 to 3, got 4");
  EXPECT_EQ(message([](auto& c) { c.top_k = 9; }),
            "[TransformerConfig] top_k: expected 1 to 8, got 9");
  EXPECT_EQ(message([](auto& c) { c.hidden_dim = 20; }),
            "[TransformerConfig] hidden_dim: expected a multiple of 8 (rows of 16 bytes in bf16), "
            "got 20");
  EXPECT_EQ(message([](auto& c) { c.route_scale = NAN; }),
            "[TransformerConfig] route_scale: expected a finite number > 0, got nan");
  EXPECT_EQ(message([](auto& c) { c.load_balance_coeff = -1; }),
            "[TransformerConfig] load_balance_coeff: expected a finite number >= 0, got -1");
  EXPECT_EQ(message([](auto& c) { c.norm_eps = 0; }),
            "[TransformerConfig] norm_eps: expected a finite number > 0, got 0");
}

}  // namespace
}  // namespace moe8
