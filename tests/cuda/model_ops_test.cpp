// SPDX-License-Identifier: BSD-3-Clause
// The operations of moe8/model_ops.h on a GPU: rotary positions bit for bit the CPU's, others by
// SQNR against float64; repeats, CUDA graphs, memory of the loss, edges. Skipped where there is no
// GPU.
#include <c10/cuda/CUDACachingAllocator.h>
#include <torch/torch.h>

#include "cuda/graph.h"
#include "device/cuda_backend.h"
#include "moe8/moe8.h"
#include "moe8/transformer.h"
#include "nn/attention.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using testing::same_bits;
using testing::sqnr_db;
using torch::autograd::grad;
using torch::autograd::variable_list;

constexpr at::ScalarType kDtypes[] = {at::kBFloat16, at::kFloat};

class ModelOpsOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto failure = load_cuda_backend())
      GTEST_SKIP() << "no GPU for these tests: " << *failure;
    torch::manual_seed(1);
  }
};

at::Tensor random(at::IntArrayRef sizes, at::ScalarType dtype, double spread = 1) {
  return (at::randn(sizes) * spread).to(dtype).requires_grad_();
}
at::Tensor gpu(const at::Tensor& x) {
  return x.detach().to(at::kCUDA).requires_grad_(x.requires_grad());
}
at::Tensor in_float64(const at::Tensor& x) {
  return x.detach().to(at::kDouble).requires_grad_();
}
double bar(at::ScalarType dtype) {
  return dtype == at::kFloat ? 115 : 50;  // a rounding to bf16 leaves 56 dB
}

// What an operation makes of some inputs, and their gradients for fixed upstream ones.
using Operation = std::function<variable_list(const variable_list&)>;

variable_list results_of(const Operation& run, const variable_list& inputs,
                         const variable_list& upstream) {
  variable_list out = run(inputs);
  variable_list grads = grad(out, inputs, upstream);
  for (at::Tensor& x : out) x = x.detach();
  out.insert(out.end(), grads.begin(), grads.end());
  return out;
}

variable_list each(const variable_list& all,
                   const std::function<at::Tensor(const at::Tensor&)>& f) {
  variable_list made;
  for (const at::Tensor& x : all) made.push_back(f(x));
  return made;
}

// On the GPU: near float64's results of `exact`, and the same bits again, also from a graph that
// was captured with other numbers.
void expect_near_float64(const Operation& run, const Operation& exact,
                         const variable_list& inputs) {
  const at::ScalarType dtype = inputs[0].scalar_type();
  const variable_list wide = each(inputs, in_float64);
  const variable_list upstream =
      each(exact(wide), [&](const at::Tensor& x) { return at::randn(x.sizes()).to(dtype); });
  const auto results = [&](const variable_list& of, const variable_list& up) {
    return results_of(run, of, up);
  };
  const variable_list expected = results_of(
      exact, wide, each(upstream, [](const at::Tensor& x) { return x.to(at::kDouble); }));
  const variable_list here = each(inputs, gpu), up = each(upstream, gpu);
  const variable_list got = results(here, up), again = results(here, up);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_GT(sqnr_db(expected[i], got[i].cpu()), bar(dtype)) << i;
    EXPECT_TRUE(same_bits(got[i], again[i])) << i;
  }
  const variable_list others =
      each(here, [](const at::Tensor& x) { return at::randn_like(x.detach()).requires_grad_(); });
  variable_list captured;
  const testing::Graph graph([&] { captured = results(others, up); });
  {
    const torch::NoGradGuard no_grad;
    for (size_t i = 0; i < others.size(); ++i) others[i].copy_(here[i]);
  }
  at::Tensor(captured[0]).zero_();
  C10_CUDA_CHECK(cudaDeviceSynchronize());
  graph.replay();
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bits(got[i], captured[i])) << i;
}

// ---- rotary -------------------------------------------------------------------
TEST_F(ModelOpsOnGpu, RotaryIsBitForBitTheCpus) {
  for (const at::ScalarType dtype : kDtypes) {
    for (const RotaryPairs pairs : {RotaryPairs::NEIGHBOURS, RotaryPairs::HALVES}) {
      for (const int64_t width : {2, 24, 64, 90, 128}) {
        SCOPED_TRACE(c10::str(dtype, " ", width, " ", int(pairs)));
        const variable_list inputs{random({2, 33, 12, width}, dtype),
                                   random({2, 33, 4, width}, dtype)};
        const at::Tensor freqs = rotary_frequencies(width, 40, 10000.0);
        // Gradients come transposed, as scaled_dot_product_attention leaves them.
        const auto run = [&](const at::Tensor& angles) {
          return [&pairs, angles](const variable_list& x) -> variable_list {
            const RotatedHeads out = rotary_embedding(x[0], x[1], angles, pairs);
            return {out.q.transpose(1, 2), out.k.transpose(1, 2)};
          };
        };
        const variable_list upstream = each(inputs, [](const at::Tensor& x) {
          return at::randn_like(x.transpose(1, 2).contiguous()).detach();
        });
        const variable_list expected = results_of(run(freqs), inputs, upstream);
        const variable_list got =
            results_of(run(gpu(freqs)), each(inputs, gpu), each(upstream, gpu));
        for (size_t i = 0; i < got.size(); ++i) {
          EXPECT_TRUE(same_bits(expected[i], got[i].cpu())) << i;
        }
      }
    }
  }
}

// ---- norms and gate ---------------------------------------------------------------
at::Tensor norm_in_float64(const at::Tensor& x, const at::Tensor& w) {
  return x / at::sqrt(x.square().mean(-1, true) + 1e-5) * w;
}

TEST_F(ModelOpsOnGpu, NormsAreNearFloat64) {
  for (const at::ScalarType dtype : kDtypes) {
    for (const int64_t width : {8, 100, 768, 2048, 5000}) {
      SCOPED_TRACE(c10::str(dtype, " ", width));
      const variable_list inputs{random({3, 50, width}, dtype, 2), random({width}, dtype)};
      expect_near_float64(
          [](const variable_list& x) -> variable_list { return {rms_norm(x[0], x[1], 1e-5)}; },
          [](const variable_list& x) -> variable_list { return {norm_in_float64(x[0], x[1])}; },
          inputs);
      expect_near_float64(
          [](const variable_list& x) -> variable_list {
            const NormedSum out = add_rms_norm(x[0], {}, x[1], 1e-5);
            return {out.sum * 2, out.normed};
          },
          [](const variable_list& x) -> variable_list {
            return {x[0] * 2, norm_in_float64(x[0], x[1])};
          },
          inputs);
      expect_near_float64(
          [](const variable_list& x) -> variable_list {
            const NormedSum out = add_rms_norm(x[0], x[2], x[1], 1e-5);
            return {out.sum, out.normed};
          },
          [](const variable_list& x) -> variable_list {
            const at::Tensor sum = x[0] + x[2];
            return {sum, norm_in_float64(sum, x[1])};
          },
          {inputs[0], inputs[1], random({3, 50, width}, dtype)});
    }
  }
}

TEST_F(ModelOpsOnGpu, TheGateIsNearFloat64) {
  for (const at::ScalarType dtype : kDtypes) {
    for (const int64_t width : {1, 77, 640}) {
      expect_near_float64(
          [](const variable_list& x) -> variable_list { return {swiglu(x[0], x[1])}; },
          [](const variable_list& x) -> variable_list { return {at::silu(x[0]) * x[1]}; },
          {random({60, width}, dtype, 3), random({60, width}, dtype)});
    }
  }
}

// ---- loss -----------------------------------------------------------------------
TEST_F(ModelOpsOnGpu, TheLossIsNearFloat64) {
  for (const at::ScalarType dtype : kDtypes) {
    for (const int64_t columns : {2, 256, 5001}) {
      SCOPED_TRACE(c10::str(dtype, " ", columns));
      const at::Tensor x = random({4, 30, 16}, dtype), w = random({columns, 16}, dtype, 0.5);
      at::Tensor targets = at::randint(columns, {4, 30}, at::kLong);
      targets[1].narrow(0, 3, 20).fill_(-100);
      const at::Tensor wide_x = in_float64(x), wide_w = in_float64(w);
      const at::Tensor exact =
          at::cross_entropy_loss(at::linear(wide_x, wide_w).flatten(0, 1), targets.flatten());
      const variable_list expected = grad({exact}, {wide_x, wide_w});
      const at::Tensor here = gpu(x), weight = gpu(w), there = gpu(targets);
      for (const int64_t rows : {0, 7, 64}) {
        const auto run = [&] {
          const at::Tensor loss =
              linear_cross_entropy(here, weight, there, {.rows_per_chunk = rows});
          variable_list all = grad({loss}, {here, weight});
          all.push_back(loss.detach());
          return all;
        };
        const variable_list got = run(), again = run();
        EXPECT_NEAR(got[2].item<double>(), exact.item<double>(), dtype == at::kFloat ? 1e-5 : 2e-2);
        for (size_t i = 0; i < 2; ++i) {
          EXPECT_GT(sqnr_db(expected[i], got[i].cpu()), dtype == at::kFloat ? 100 : 38) << i;
          EXPECT_TRUE(same_bits(got[i], again[i])) << i;
        }
      }
    }
  }
}

TEST_F(ModelOpsOnGpu, TheGradientTakesTheMemoryOfItsLogits) {
  const at::Tensor x = gpu(random({64, 32}, at::kBFloat16)),
                   w = gpu(random({999, 32}, at::kBFloat16));
  const at::Tensor targets = gpu(at::randint(999, {64}, at::kLong));
  const auto grad_of = [&](bool overwrites) {
    const at::Tensor logits = at::linear(x, w);
    const void* const memory = logits.const_data_ptr();
    const at::Tensor loss = cross_entropy(logits, targets, {.overwrite_logits = overwrites});
    const at::Tensor of_logits = grad({loss}, {logits}, {}, /*retain_graph=*/true)[0];
    EXPECT_EQ(of_logits.const_data_ptr() == memory, overwrites);
    const std::string again = error_of([&] { grad({loss}, {logits}, {}, /*retain_graph=*/true); });
    EXPECT_EQ(again, overwrites ? "[cross_entropy] overwrite_logits: the first backward wrote the "
                                  "gradient over the logits. Set it to false to go through a graph "
                                  "twice."
                                : "(no error)");
    return of_logits;
  };
  EXPECT_TRUE(same_bits(grad_of(false), grad_of(true)));
}

TEST_F(ModelOpsOnGpu, TargetsThatDoNotExistGiveNaN) {
  const at::Tensor logits = gpu(random({5, 40}, at::kBFloat16));
  at::Tensor targets = at::tensor({1, 40, -100, -1, 3}, at::kLong).to(at::kCUDA);
  const at::Tensor loss = cross_entropy(logits, targets);
  EXPECT_TRUE(at::isnan(loss).item<bool>());
  const at::Tensor nan = at::isnan(grad({loss}, {logits})[0]).all(1).cpu();
  EXPECT_TRUE(same_bits(at::tensor({0, 1, 0, 1, 0}).to(at::kBool), nan));
}

// 16,384 tokens of a vocabulary of 151,936: 4.64 GiB of logits in bf16, 9.3 in float32.
TEST_F(ModelOpsOnGpu, ALargeVocabularyFits) {
  namespace allocator = c10::cuda::CUDACachingAllocator;
  constexpr int64_t kTokens = 16384, kVocabulary = 151936, kDim = 64;
  const at::TensorOptions options = at::dtype(at::kBFloat16).device(at::kCUDA);
  const at::Tensor x = at::randn({kTokens, kDim}, options).requires_grad_();
  const at::Tensor w = (at::randn({kVocabulary, kDim}, options) * 0.1).detach().requires_grad_();
  const at::Tensor targets = at::randint(kVocabulary, {kTokens}, options.dtype(at::kLong));
  const auto peak_gib = [&](int64_t rows) {
    const auto now = [] { return allocator::getDeviceStats(0).allocated_bytes[0]; };
    allocator::resetPeakStats(0);
    const int64_t before = now().current;
    const auto grads =
        grad({linear_cross_entropy(x, w, targets, {.rows_per_chunk = rows})}, {x, w});
    EXPECT_TRUE(at::isfinite(grads[1]).all().item<bool>());
    return double(now().peak - before) / double(1 << 30);
  };
  const double whole = peak_gib(0), chunks = peak_gib(2048);
  std::printf("peak above the inputs: %.2f GiB at once, %.2f in chunks of 2,048 rows\n", whole,
              chunks);
  EXPECT_LT(whole, 5.0);
  EXPECT_LT(chunks, 1.0);
}

// ---- attention ----------------------------------------------------------------------
/// Asks LibTorch for deterministic algorithms, as training does.
class Deterministic {
 public:
  Deterministic() { at::globalContext().setDeterministicAlgorithms(true, false); }
  ~Deterministic() { at::globalContext().setDeterministicAlgorithms(false, false); }
};

TEST_F(ModelOpsOnGpu, AttentionIsNearFloat64AndRepeatsItself) {
  struct Shape {
    int64_t heads, kv_heads, positions, width;
  };
  const Deterministic on;
  for (const Shape& s : {Shape{12, 4, 130, 64}, {4, 4, 257, 128}, {6, 1, 64, 40}, {2, 2, 1, 64}}) {
    SCOPED_TRACE(c10::str(s.heads, " ", s.kv_heads, " ", s.positions, " ", s.width));
    const auto heads = [&](int64_t count) {
      return random({2, s.positions, count, s.width}, at::kBFloat16);
    };
    const variable_list inputs{heads(s.heads), heads(s.kv_heads), heads(s.kv_heads)};
    const variable_list wide = each(inputs, in_float64), here = each(inputs, gpu);
    const at::Tensor up = at::randn({2, s.positions, s.heads, s.width}).to(at::kBFloat16);
    const auto turned = [](const at::Tensor& x) { return x.transpose(1, 2); };
    const auto exact = [&](const variable_list& x) -> variable_list {
      return {turned(at::scaled_dot_product_attention(turned(x[0]), turned(x[1]), turned(x[2]), {},
                                                      0.0, true, std::nullopt, true))};
    };
    const auto run = [&](const variable_list& x) -> variable_list {
      return {turned(causal_attention(turned(x[0]), turned(x[1]), turned(x[2])))};
    };
    const variable_list expected = results_of(exact, wide, {up.to(at::kDouble)});
    const variable_list got = results_of(run, here, {gpu(up)});
    const variable_list again = results_of(run, here, {gpu(up)});
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_TRUE(same_bits(got[i], again[i])) << i;
      if (s.positions == 1 && (i == 1 || i == 2)) {  // one position is all that it can attend to
        EXPECT_LT(got[i].abs().max().item<double>(), 0.1) << i;
        continue;
      }
      EXPECT_GT(sqnr_db(expected[i], got[i].cpu()), 42) << i;
    }
  }
}

// ---- router -------------------------------------------------------------------------
// Choice, scores, and gradients: by kernels, to be differentiated again, and the second ones.
TEST_F(ModelOpsOnGpu, RouterIsThatOfTheCpu) {
  const at::Tensor logits = random({200, 40}, at::kFloat, 2), bias = at::randn({40}) * 0.1;
  const at::Tensor weights = at::randn({200, 3});
  for (const ScoreFunction function : {ScoreFunction::SOFTMAX, ScoreFunction::SIGMOID}) {
    for (const bool normalize : {false, true}) {
      const RouterOptions options{
          .top_k = 3, .score_function = function, .normalize = normalize, .scale = 1.5};
      const auto results = [&](const at::Tensor& x) -> variable_list {
        const Routing routing = route_tokens(x, options, bias.to(x.device()));
        const at::Tensor sum = (routing.scores * weights.to(x.device())).sum();
        const at::Tensor plain = grad({sum}, {x}, {}, /*retain_graph=*/true)[0];
        const at::Tensor first =
            grad({sum}, {x}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
        const at::Tensor second = grad({first.square().sum()}, {x})[0];
        return {routing.scores.detach(),  plain, first.detach(), second, routing.experts,
                routing.tokens_per_expert};
      };
      const variable_list expected = results(logits), got = results(gpu(logits));
      for (size_t i = 0; i < 4; ++i) EXPECT_GT(sqnr_db(expected[i], got[i].cpu()), 110) << i;
      for (size_t i = 4; i < 6; ++i) EXPECT_TRUE(same_bits(expected[i], got[i].cpu())) << i;
    }
  }
}

// ---- the model ---------------------------------------------------------------------
TEST_F(ModelOpsOnGpu, TheTransformerTrainsAsOnTheCpuAndRepeatsItself) {
  TransformerConfig config;
  config.vocab_size = 300, config.dim = 128, config.n_layers = 3, config.n_heads = 4;
  config.n_kv_heads = 2, config.max_seq_len = 64, config.hidden_dim = 64, config.n_experts = 4;
  config.n_shared_experts = 1;
  const at::Tensor tokens = at::randint(300, {2, 64}, at::kLong);
  const auto run = [&](const at::Device& device) {
    Transformer model(config, 3);
    model->to(device);
    const at::Tensor on = tokens.to(device);
    const at::Tensor loss = cross_entropy(model(on), on, {.overwrite_logits = true});
    loss.backward();
    variable_list all{loss.detach().cpu()};
    for (const at::Tensor& p : model->parameters()) all.push_back(p.grad().cpu());
    return all;
  };
  const variable_list cpu = run(at::kCPU), once = run(at::kCUDA), again = run(at::kCUDA);
  EXPECT_NEAR(cpu[0].item<float>(), once[0].item<float>(), 0.02);
  for (size_t i = 1; i < once.size(); ++i) {
    EXPECT_GT(sqnr_db(cpu[i], once[i]), 15) << i;
    EXPECT_TRUE(same_bits(once[i], again[i])) << i;
  }
}

}  // namespace
}  // namespace moe8
