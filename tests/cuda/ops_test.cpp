// SPDX-License-Identifier: BSD-3-Clause
// Every operation on a GPU against the CPU: quantizers bit for bit, products by SQNR against the
// float64 reference, exactly for small integers; ragged and empty groups, odd sizes, graphs,
// streams, lack of memory. Skipped where there is no GPU.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/torch.h>

#include <array>
#include <cstdlib>
#include <exception>
#include <random>
#include <string_view>
#include <thread>

#include "autograd/training_formats.h"
#include "cuda/graph.h"
#include "device/cuda_backend.h"
#include "device/implementation.h"
#include "gemm/block_scaled_gemm.h"
#include "moe8/moe8.h"
#include "testing/compare.h"
#include "testing/fill.h"
#include "testing/problem.h"

namespace moe8 {
namespace {

using testing::Graph;
using testing::offs_of;
using testing::same_bits;
using testing::same_values;
using testing::sqnr_db;

at::Tensor gpu(const at::Tensor& x) {
  return x.to(at::kCUDA);
}
std::optional<at::Tensor> gpu(const std::optional<at::Tensor>& x) {
  return x ? std::optional(x->to(at::kCUDA)) : std::nullopt;
}

// What the next allocations find: a kernel that leaves bytes unwritten shows NaN.
void poison_memory() {
  const auto bytes = at::TensorOptions().dtype(at::kByte).device(at::kCUDA);
  std::vector<at::Tensor> blocks;
  for (int64_t size : {512, 4096, 1 << 16, 1 << 20, 1 << 24}) {
    for (int i = 0; i < 8; ++i) blocks.push_back(at::full({size}, 0xFF, bytes));
  }
}

class OnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto failure = load_cuda_backend())
      GTEST_SKIP() << "no GPU for these tests: " << *failure;
    set_weight_cache(WeightCache::OFF);
    set_weight_cache(WeightCache::AUTO);
  }
};

// ---- quantizers -------------------------------------------------------------
struct Layout {
  std::vector<int64_t> sizes;
  int64_t axis;
  std::optional<at::Tensor> offs;
};

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = {
      {{5, 70}, 1, std::nullopt},
      {{64, 256}, 1, std::nullopt},
      {{70, 6}, 0, std::nullopt},
      {{3, 40, 7}, 1, std::nullopt},
      {{4, 96, 64}, 1, std::nullopt},
      {{2, 3, 33}, 2, std::nullopt},
      {{7}, 0, std::nullopt},
      {{0, 8}, 1, std::nullopt},
      {{545, 48}, 0, offs_of({0, 1, 31, 32, 33, 0, 127, 128, 129, 64})},
      {{50, 10}, 0, offs_of({20, 0, 17})},
      {{9, 4}, 0, offs_of({0, 0})},
  };
  return all;
}

TEST_F(OnGpu, MxQuantizersAreBitForBitTheCpus) {
  for (const Layout& layout : layouts()) {
    for (ElemDtype elem :
         {ElemDtype::E4M3, ElemDtype::E5M2, ElemDtype::E2M3, ElemDtype::E3M2, ElemDtype::E2M1}) {
      for (auto mode : {ScaleCalculationMode::FLOOR, ScaleCalculationMode::RCEIL,
                        ScaleCalculationMode::CEIL, ScaleCalculationMode::EVEN}) {
        for (at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
          const at::Tensor x = testing::hard_values(layout.sizes, dtype, 5, true);
          const MXTensor expected = quantize_mx(x, elem, mode, layout.axis, layout.offs);
          poison_memory();
          const MXTensor got = quantize_mx(gpu(x), elem, mode, layout.axis, gpu(layout.offs));
          const std::string what = c10::str(to_string(elem), " ", to_string(mode), " ", dtype, " ",
                                            at::IntArrayRef(layout.sizes), " axis ", layout.axis);
          ASSERT_TRUE(same_bits(expected.data.view(at::kByte), got.data.cpu().view(at::kByte)))
              << what;
          ASSERT_TRUE(same_bits(expected.scale.view(at::kByte), got.scale.cpu().view(at::kByte)))
              << what;
          ASSERT_TRUE(same_values(dequantize(expected), dequantize(got).cpu())) << what;
          ASSERT_TRUE(same_values(
              fake_quantize_mx(x, elem, mode, layout.axis, layout.offs),
              fake_quantize_mx(gpu(x), elem, mode, layout.axis, gpu(layout.offs)).cpu()))
              << what;
        }
      }
    }
  }
}

void expect_float8_as_on_the_cpu(const Layout& layout, const Float8Granularity& granularity,
                                 ElemDtype elem, bool pow2, at::ScalarType dtype) {
  const at::Tensor x = testing::hard_values(layout.sizes, dtype, 6, true);
  const Float8Tensor expected = quantize_float8(x, granularity, elem, pow2, layout.offs);
  poison_memory();
  const Float8Tensor got = quantize_float8(gpu(x), granularity, elem, pow2, gpu(layout.offs));
  const bool whole = granularity.kind == ScalingGranularity::TENSORWISE;
  const std::string what =
      c10::str(to_string(elem), pow2 ? " pow2 " : " ", dtype, " ", at::IntArrayRef(layout.sizes),
               whole ? " tensorwise" : " axis ", layout.axis);
  ASSERT_TRUE(same_values(expected.scale, got.scale.cpu())) << what;
  ASSERT_TRUE(same_bits(expected.data.view(at::kByte), got.data.cpu().view(at::kByte))) << what;
  ASSERT_TRUE(same_values(dequantize(expected), dequantize(got).cpu())) << what;
}

TEST_F(OnGpu, Float8QuantizersAreBitForBitTheCpus) {
  for (const Layout& layout : layouts()) {
    std::vector<Float8Granularity> granularities = {Float8Granularity::axiswise(layout.axis)};
    if (!layout.offs) granularities.push_back(Float8Granularity::tensorwise());
    for (const Float8Granularity& granularity : granularities) {
      for (ElemDtype elem : {ElemDtype::E4M3, ElemDtype::E5M2}) {
        for (bool pow2 : {false, true}) {
          for (at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
            expect_float8_as_on_the_cpu(layout, granularity, elem, pow2, dtype);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// Parts that the kernels read where they lie, against a copy with the parts side by side; and weights
// that lie transposed, against a contiguous copy. Odd sizes, so that parts begin at any row.
TEST_F(OnGpu, CodesOfJoinedAndOfTransposedWeightsAreThoseOfACopy) {
  const Float8Format format{ElemDtype::E4M3, ScalingGranularity::AXISWISE, true};
  const std::vector<FormKey> keys = {{format, 2, Encoding::FLOAT8}, {format, 1, Encoding::FLOAT8}};
  const auto expect_same = [&](const Operand& made, const at::Tensor& copy, bool together) {
    const Operand expected(copy);
    for (const FormKey& key : keys) {
      if (together) made.expect(key);
    }
    for (const FormKey& key : keys) {
      const Form form = made.form(key, {}), want = expected.form(key, {});
      EXPECT_TRUE(same_bits(form.data, want.data)) << "axis " << key.axis;
      EXPECT_TRUE(same_bits(form.decode_scale, want.decode_scale)) << "axis " << key.axis;
    }
  };
  for (const auto& [E, N1, N2, K] : std::vector<std::array<int64_t, 4>>{
           {3, 64, 64, 128}, {2, 17, 40, 72}, {1, 5, 1, 33}, {4, 128, 96, 4096}, {2, 1, 16, 16}}) {
    SCOPED_TRACE(c10::str(E, " x ", N1, " + ", N2, " x ", K));
    const at::Tensor a = gpu(testing::wide_normal({E, N1, K}, at::kBFloat16, 5));
    const at::Tensor b = gpu(testing::wide_normal({E, N2, K}, at::kBFloat16, 6));
    for (const bool together : {true, false}) {
      poison_memory();
      expect_same(Operand::joined({a, b}, make_form_store()), at::cat({a, b}, 1), together);
      const at::Tensor turned = a.transpose(1, 2);
      expect_same(Operand(turned), turned.contiguous(), together);
    }
  }
}

TEST_F(OnGpu, BlockedScalesAreBitForBitTheCpus) {
  for (int64_t rows : {1, 32, 127, 128, 300}) {
    for (int64_t cols : {1, 3, 4, 17}) {
      const at::Tensor scale =
          torch::arange(rows * cols, at::kInt).remainder(256).to(at::kByte).view({rows, cols});
      EXPECT_TRUE(same_bits(to_blocked(scale), to_blocked(gpu(scale)).cpu()));
      const at::Tensor m_groups = offs_of({rows / 3, 0, rows - rows / 3});
      const at::Tensor k_groups = offs_of({0, cols / 2, cols - cols / 2});
      const BlockedGroups m = to_blocked_m_groups(gpu(scale), gpu(m_groups));
      const BlockedGroups k = to_blocked_k_groups(gpu(scale), gpu(k_groups));
      EXPECT_TRUE(same_bits(to_blocked_m_groups(scale, m_groups).blocked, m.blocked.cpu()));
      EXPECT_TRUE(same_bits(to_blocked_k_groups(scale, k_groups).blocked, k.blocked.cpu()));
      EXPECT_TRUE(
          same_bits(scale, from_blocked_m_groups(m.blocked, gpu(m_groups), rows, cols).cpu()));
      EXPECT_TRUE(
          same_bits(scale, from_blocked_k_groups(k.blocked, gpu(k_groups), rows, cols).cpu()));
    }
  }
}

// ---- grouped products -------------------------------------------------------
struct Sizes {
  std::vector<int64_t> groups;
  int64_t tail;
  int64_t N, K;

  int64_t M() const {
    int64_t rows = tail;
    for (int64_t size : groups) rows += size;
    return rows;
  }
};

std::vector<Sizes> ladder() {
  std::vector<Sizes> all = {
      {{0, 1, 31, 32, 33, 127, 128, 129}, 0, 48, 80},
      {{0, 1, 31, 32, 33, 7}, 11, 17, 33},
      {{300}, 0, 64, 64},
      {{0, 0, 64, 0}, 5, 32, 16},
      {{0, 0}, 3, 8, 8},
      {{0, 0, 0}, 0, 48, 80},  // no token at all
      {{5, 3}, 0, 1, 1},
      {{1000}, 24, 256, 384},
      {{0, 700, 0, 1}, 0, 130, 258},
  };
  for (int64_t experts : {64, 512}) {
    Sizes many{{}, 3, 40, 72};
    for (int64_t e = 0; e < experts; ++e) many.groups.push_back(e * 7 % 23);
    all.push_back(many);
  }
  return all;
}

struct Results {
  at::Tensor out, grad_A, grad_W;
};

struct Layer {
  at::Tensor A, W, offs, grad_out;

  Layer(const Sizes& s, at::ScalarType dtype, uint64_t seed)
      : A(testing::wide_normal({s.M(), s.K}, dtype, seed, 2)),
        W(testing::wide_normal({static_cast<int64_t>(s.groups.size()), s.N, s.K}, dtype, seed + 1,
                               2)),
        offs(offs_of(s.groups)),
        grad_out(testing::wide_normal({s.M(), s.N}, dtype, seed + 2, 2)) {}

  Results run(const Config& config, const at::Device& device) const {
    const at::Tensor a = A.detach().to(device).requires_grad_();
    const at::Tensor w = W.detach().to(device).requires_grad_();
    const at::Tensor out =
        quantize_then_scaled_grouped_mm(a, w.transpose(1, 2), offs.to(device), config);
    out.backward(grad_out.to(device).to(out.scalar_type()));
    return {out.detach().cpu(), a.grad().cpu(), w.grad().cpu()};
  }
};

// FP8 accumulates out and grad_input in the tensor cores, with fewer bits than float32.
void expect_close(const at::Tensor& expected, const at::Tensor& got, double bar,
                  const std::string& what) {
  ASSERT_EQ(expected.sizes(), got.sizes()) << what;
  if (expected.ne(0).any().item<bool>()) {
    ASSERT_GE(sqnr_db(expected, got), bar) << what;
  } else {
    ASSERT_TRUE(got.eq(0).all().item<bool>()) << what;
  }
}

TEST_F(OnGpu, GroupedProductsAgreeWithTheCpu) {
  for (const Sizes& sizes : ladder()) {
    for (const RecipeInfo& recipe : all_recipes()) {
      if (!is_grouped(recipe.config)) continue;
      for (at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
        const Layer layer(sizes, dtype, 10);
        const Results expected = layer.run(recipe.config, at::kCPU);
        poison_memory();
        const Results got = layer.run(recipe.config, at::kCUDA);
        const std::string what = c10::str(recipe.name, " ", dtype, " groups ", sizes.groups.size(),
                                          " N ", sizes.N, " K ", sizes.K);
        expect_close(expected.out, got.out, 44, what + " out");
        expect_close(expected.grad_A, got.grad_A, 44, what + " grad_A");
        expect_close(expected.grad_W, got.grad_W, 44, what + " grad_W");
      }
    }
  }
}

int64_t number_from_environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoll(text, nullptr, 10) : otherwise;
}

TEST_F(OnGpu, RandomShapesAgreeWithTheCpuAndRepeat) {
  const int64_t count = number_from_environment("MOE8_RANDOM_SHAPES", 200);
  std::mt19937 random(static_cast<uint32_t>(number_from_environment("MOE8_RANDOM_SEED", 17)));
  const auto pick = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % (high - low + 1));
  };
  for (int64_t i = 0; i < count; ++i) {
    const RecipeInfo& recipe = all_recipes()[i % 6];  // the grouped ones come first
    ASSERT_TRUE(is_grouped(recipe.config));
    Sizes sizes{{}, pick(0, 40), pick(1, 300), pick(1, 300)};
    for (int64_t e = pick(1, 12); e > 0; --e) sizes.groups.push_back(pick(0, 3) ? pick(0, 200) : 0);
    const Layer layer(sizes, at::kBFloat16, random());
    const Results expected = layer.run(recipe.config, at::kCPU);
    const Results got = layer.run(recipe.config, at::kCUDA);
    const std::string what = c10::str("shape ", i, ": ", recipe.name, " M ", sizes.M(), " N ",
                                      sizes.N, " K ", sizes.K, " E ", sizes.groups.size());
    expect_close(expected.out, got.out, 44, what + " out");
    expect_close(expected.grad_A, got.grad_A, 44, what + " grad_A");
    expect_close(expected.grad_W, got.grad_W, 44, what + " grad_W");
    const Results again = layer.run(recipe.config, at::kCUDA);
    ASSERT_TRUE(same_bits(got.out, again.out) && same_bits(got.grad_A, again.grad_A) &&
                same_bits(got.grad_W, again.grad_W))
        << "not the same twice: " << what;
  }
}

TEST_F(OnGpu, SmallIntegersAreExact) {
  for (const Sizes& sizes : ladder()) {
    for (const RecipeInfo& recipe : all_recipes()) {
      if (!is_grouped(recipe.config) || recipe.name.starts_with("mxfp4")) continue;
      Layer layer(sizes, at::kBFloat16, 0);
      layer.A = testing::small_integers(layer.A.sizes(), at::kBFloat16, 1);
      layer.W = testing::small_integers(layer.W.sizes(), at::kBFloat16, 2);
      layer.grad_out = testing::small_integers(layer.grad_out.sizes(), at::kBFloat16, 3);
      const Results expected = layer.run(recipe.config, at::kCPU);
      const Results got = layer.run(recipe.config, at::kCUDA);
      ASSERT_TRUE(same_values(expected.out, got.out)) << recipe.name;
      ASSERT_TRUE(same_values(expected.grad_A, got.grad_A)) << recipe.name;
      ASSERT_TRUE(same_values(expected.grad_W, got.grad_W)) << recipe.name;
    }
  }
}

// ---- linears ----------------------------------------------------------------
TEST_F(OnGpu, LinearsAgreeWithTheCpu) {
  for (const RecipeInfo& recipe : all_recipes()) {
    if (is_grouped(recipe.config)) continue;
    for (const auto& [M, N, K] :
         {std::array<int64_t, 3>{64, 128, 256}, {33, 17, 40}, {1, 16, 16}}) {
      for (at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
        const at::Tensor x = testing::wide_normal({M, K}, dtype, 20, 2);
        const at::Tensor weight = testing::wide_normal({N, K}, dtype, 21, 2);
        const auto run = [&](const at::Device& device) {
          const at::Tensor a = x.to(device).detach().requires_grad_();
          const at::Tensor w = weight.to(device).detach().requires_grad_();
          const at::Tensor out = quantize_then_linear(a, w, std::nullopt, recipe.config);
          out.square().sum().backward();
          return Results{out.detach().cpu(), a.grad().cpu(), w.grad().cpu()};
        };
        const Results expected = run(at::kCPU);
        const Results got = run(at::kCUDA);
        const std::string what = c10::str(recipe.name, " ", dtype, " ", M, " ", N, " ", K);
        // The gradients start from each side's own out: they differ by its rounding, too.
        expect_close(expected.out, got.out, 44, what + " out");
        expect_close(expected.grad_A, got.grad_A, 25, what + " grad_A");
        expect_close(expected.grad_W, got.grad_W, 25, what + " grad_W");
      }
    }
  }
}

// ---- Blackwell's arguments, made here ---------------------------------------
TEST_F(OnGpu, BlockScaledArgumentsAreBitForBitTheCpus) {
  const at::Tensor offs = offs_of({40, 0, 1, 88});
  const TrainingFormats formats = training_formats(recipe("mxfp8_rceil"));
  const at::Tensor A = testing::wide_normal({135, 160}, at::kBFloat16, 1, 6);
  const at::Tensor dO = testing::wide_normal({135, 96}, at::kBFloat16, 2, 6);
  const at::Tensor W = testing::wide_normal({4, 96, 160}, at::kBFloat16, 3, 6);
  const auto call = [&](Gemm gemm, bool on_gpu) {
    const at::Tensor& left = gemm == Gemm::OUT ? A : dO;
    const at::Tensor& right = gemm == Gemm::GRAD_WEIGHT ? A : W;
    return block_scaled_call({.gemm = gemm,
                              .left = on_gpu ? gpu(left) : left,
                              .right = on_gpu ? gpu(right) : right,
                              .groups = on_gpu ? gpu(offs) : offs,
                              .formats = gemm == Gemm::OUT          ? formats.out
                                         : gemm == Gemm::GRAD_INPUT ? formats.grad_input
                                                                    : formats.grad_weight,
                              .out_dtype = at::kBFloat16});
  };
  const auto same = [](const at::Tensor& a, const at::Tensor& b) {
    return same_bits(a.contiguous().view(at::kByte), b.cpu().contiguous().view(at::kByte));
  };
  for (const Gemm gemm : {Gemm::OUT, Gemm::GRAD_INPUT, Gemm::GRAD_WEIGHT}) {
    const BlockScaledCall expected = call(gemm, false), got = call(gemm, true);
    SCOPED_TRACE(to_string(gemm));
    EXPECT_TRUE(same(expected.a, got.a));
    EXPECT_TRUE(same(expected.b, got.b));
    EXPECT_TRUE(same(expected.scale_a, got.scale_a));
    EXPECT_TRUE(same(expected.scale_b, got.scale_b));
    EXPECT_TRUE(at::equal(expected.tokens.ends, got.tokens.ends.cpu()));
    EXPECT_TRUE(at::equal(expected.tokens.position, got.tokens.position.cpu()));
  }
}

// ---- graphs, streams, memory ------------------------------------------------
TEST_F(OnGpu, AGraphOfForwardAndBackwardReplaysWithOtherGroups) {
  if (!kernels_wanted()) GTEST_SKIP() << "MOE8_KERNELS=off: the next test";
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil"}) {
    const Layer layer({{40, 0, 70, 18}, 0, 64, 96}, at::kBFloat16, 30);
    const at::Tensor a = gpu(layer.A).requires_grad_();
    const at::Tensor w = gpu(layer.W).requires_grad_();
    const at::Tensor offs = gpu(layer.offs);
    const at::Tensor grad_out = gpu(layer.grad_out);
    at::Tensor out, grad_a, grad_w;
    const Graph graph([&] {
      out = quantize_then_scaled_grouped_mm(a, w.transpose(1, 2), offs, recipe(name));
      const auto grads = torch::autograd::grad({out}, {a, w}, {grad_out});
      grad_a = grads[0];
      grad_w = grads[1];
    });
    for (const std::vector<int64_t>& groups :
         {std::vector<int64_t>{40, 0, 70, 18}, {0, 128, 0, 0}, {1, 31, 33, 63}}) {
      Layer other = layer;
      other.offs = offs_of(groups);
      offs.copy_(other.offs);
      c10::cuda::device_synchronize();
      graph.replay();
      const Results expected = other.run(recipe(name), at::kCUDA);
      EXPECT_TRUE(same_bits(expected.out, out.cpu())) << name;
      EXPECT_TRUE(same_bits(expected.grad_A, grad_a.cpu())) << name;
      EXPECT_TRUE(same_bits(expected.grad_W, grad_w.cpu())) << name;
    }
  }
}

// What wrong end rows give is not said, but they must not reach outside a tensor.
TEST_F(OnGpu, WrongEndRowsDoNoHarmOrAreTold) {
  const char* const setting = std::getenv("MOE8_CHECK_OFFS");
  const bool is_told = (setting && std::string_view(setting) == "on") || !kernels_wanted();
  const Layer layer({{10, 20, 20}, 0, 64, 96}, at::kBFloat16, 33);
  const Results expected = layer.run(recipe("mxfp8_rceil"), at::kCUDA);
  for (const std::vector<int>& wrong : {std::vector<int>{5, 3, 9}, {-7, 3, 9}, {5, 7, 1000}}) {
    Layer other = layer;
    other.offs = torch::tensor(wrong, at::kInt);
    const std::string told =
        testing::error_of([&] { other.run(recipe("mxfp8_rceil"), at::kCUDA); });
    EXPECT_EQ(told != "(no error)", is_told) << told;
    if (is_told) {
      EXPECT_THAT(told, ::testing::HasSubstr("offs: expected"));
    }
    c10::cuda::device_synchronize();
  }
  EXPECT_TRUE(same_bits(expected.out, layer.run(recipe("mxfp8_rceil"), at::kCUDA).out));
}

// One block of the metadata kernel scans 4096 groups; LibTorch's operations take more.
TEST_F(OnGpu, MoreGroupsThanTheKernelsTake) {
  Sizes sizes{std::vector<int64_t>(4100, 1), 2, 16, 16};
  sizes.groups[7] = 0;
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil"}) {
    Layer layer(sizes, at::kBFloat16, 0);
    layer.A = testing::small_integers(layer.A.sizes(), at::kBFloat16, 1);
    layer.W = testing::small_integers(layer.W.sizes(), at::kBFloat16, 2);
    layer.grad_out = testing::small_integers(layer.grad_out.sizes(), at::kBFloat16, 3);
    const Results expected = layer.run(recipe(name), at::kCPU);
    const Results got = layer.run(recipe(name), at::kCUDA);
    EXPECT_TRUE(same_values(expected.out, got.out)) << name;
    EXPECT_TRUE(same_values(expected.grad_A, got.grad_A)) << name;
    EXPECT_TRUE(same_values(expected.grad_W, got.grad_W)) << name;
  }
}

// A backward runs in a thread of its own, and may have nothing to quantize before it multiplies.
TEST_F(OnGpu, AProductMayBeTheFirstWorkOfAThread) {
  const Layer layer({{40, 24}, 0, 64, 96}, at::kBFloat16, 34);
  const GemmProblem problem{.gemm = Gemm::GRAD_WEIGHT,
                            .left = gpu(layer.grad_out),
                            .right = gpu(layer.A),
                            .groups = gpu(layer.offs),
                            .formats = {HighPrecision{}, HighPrecision{}},
                            .out_dtype = at::kBFloat16};
  const at::Tensor expected = low_precision_gemm(problem);  // and what it keeps of the groups
  at::Tensor got;
  std::thread([&] { got = low_precision_gemm(problem); }).join();
  EXPECT_TRUE(same_bits(expected.cpu(), got.cpu()));
}

// Without kernels a product reads offs on the host, and says so instead of breaking the capture.
TEST_F(OnGpu, AGraphIsRefusedInWordsWhereThereAreNoKernels) {
  if (kernels_wanted()) GTEST_SKIP() << "for MOE8_KERNELS=off";
  const Layer layer({{40, 0, 70, 18}, 0, 64, 96}, at::kBFloat16, 31);
  const at::Tensor a = gpu(layer.A), w = gpu(layer.W), offs = gpu(layer.offs);
  const auto product = [&] {
    const torch::NoGradGuard no_grad;
    return quantize_then_scaled_grouped_mm(a, w.transpose(1, 2), offs, recipe("mxfp8_rceil"));
  };
  EXPECT_THAT(testing::error_of([&] { const Graph graph(product); }),
              ::testing::HasSubstr("it reads offs on the host, which a CUDA graph cannot capture"));
  EXPECT_EQ(product().size(0), layer.A.size(0));  // and the process goes on
}

// Kernels start while the ones before them end (cuda/launch.cuh), and memory goes from one to the
// next at once: steps in a row must give what each gives alone.
TEST_F(OnGpu, StepsInARowAreBitForBitStepsAlone) {
  struct Step {
    Layer layer;
    const char* recipe;
    at::Tensor a, w, offs, grad_out;
    std::vector<at::Tensor> expected;

    std::vector<at::Tensor> run() const {
      const at::Tensor out =
          quantize_then_scaled_grouped_mm(a, w.transpose(1, 2), offs, moe8::recipe(recipe));
      std::vector<at::Tensor> results = torch::autograd::grad({out}, {a, w}, {grad_out});
      results.push_back(out.detach());
      return results;
    }
  };
  std::vector<Step> steps;
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil", "mxfp8_rceil_wgrad_with_hp"}) {
    for (const Sizes& sizes : {Sizes{{40, 0, 70, 18}, 0, 64, 96},
                               {{300, 1, 211}, 9, 272, 144},
                               {{1000, 0, 24}, 0, 512, 256}}) {
      Step step{Layer(sizes, at::kBFloat16, 60), name, {}, {}, {}, {}, {}};
      step.a = gpu(step.layer.A).requires_grad_();
      step.w = gpu(step.layer.W).requires_grad_();
      step.offs = gpu(step.layer.offs);
      step.grad_out = gpu(step.layer.grad_out);
      step.expected = step.run();
      c10::cuda::device_synchronize();
      steps.push_back(std::move(step));
    }
  }
  std::vector<std::vector<at::Tensor>> got;
  for (int round = 0; round < 20; ++round) {
    for (const Step& step : steps) got.push_back(step.run());
  }
  for (size_t i = 0; i < got.size(); ++i) {
    const Step& step = steps[i % steps.size()];
    for (size_t r = 0; r < got[i].size(); ++r) {
      ASSERT_TRUE(same_bits(step.expected[r].cpu(), got[i][r].cpu()))
          << step.recipe << ", step " << i << ", result " << r;
    }
  }
}

TEST_F(OnGpu, CachedWeightsStayOnTheirStream) {
  set_weight_cache(WeightCache::ON);
  const Layer layer({{30, 34}, 0, 48, 64}, at::kBFloat16, 40);
  const at::Tensor w = gpu(layer.W);
  const at::Tensor a = gpu(layer.A), offs = gpu(layer.offs);
  const auto out = [&] {
    const torch::NoGradGuard no_grad;
    return quantize_then_scaled_grouped_mm(a, w.transpose(1, 2), offs, recipe("fp8_rowwise"));
  };
  const at::Tensor expected = out().cpu();
  c10::cuda::device_synchronize();
  const int64_t misses = weight_cache_use().misses;
  const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
  EXPECT_TRUE(same_bits(expected, out().cpu()));
  EXPECT_EQ(weight_cache_use().misses, misses + 1);
}

TEST_F(OnGpu, LackOfMemoryIsAnExceptionAndTheProcessGoesOn) {
  const Layer layer({{30, 34}, 0, 48, 64}, at::kBFloat16, 50);
  const Results expected = layer.run(recipe("fp8_rowwise"), at::kCUDA);
  const auto bf16 = at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA);
  const auto too_large = [&] {
    // Views of one element: the operands fit, the quantized forms cannot.
    const at::Tensor a = at::zeros({1}, bf16).expand({1 << 20, 1 << 20});
    const at::Tensor w = at::zeros({1}, bf16).expand({1, 64, 1 << 20});
    const at::Tensor offs = at::full({1}, 1 << 20, bf16.dtype(at::kInt));
    quantize_then_scaled_grouped_mm(a, w.transpose(1, 2), offs, recipe("fp8_rowwise"));
  };
  EXPECT_THROW(too_large(), c10::OutOfMemoryError);
  EXPECT_TRUE(same_bits(expected.out, layer.run(recipe("fp8_rowwise"), at::kCUDA).out));
}

TEST_F(OnGpu, ASecondGpuComputesOnItself) {
  if (at::getNumGPUs() < 2) GTEST_SKIP() << "one GPU";
  const at::Device second(at::kCUDA, 1);
  const Layer layer({{30, 34}, 0, 48, 64}, at::kBFloat16, 60);
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil"}) {
    const Results expected = layer.run(recipe(name), at::kCUDA);
    EXPECT_TRUE(same_bits(expected.grad_W, layer.run(recipe(name), second).grad_W)) << name;
  }
}

// ---- models -----------------------------------------------------------------
TEST_F(OnGpu, ModelsMayMoveBeforeAndAfterConversion) {
  for (bool convert_first : {false, true}) {
    torch::manual_seed(3);
    torch::nn::Linear linear(torch::nn::LinearOptions(64, 32).bias(false));
    linear->to(at::kBFloat16);
    if (convert_first) quantize_(*linear, recipe("rowwise"));
    linear->to(at::kCUDA);
    if (!convert_first) quantize_(*linear, recipe("rowwise"));
    const at::Tensor x = torch::randn({16, 64}).to(at::kBFloat16).to(at::kCUDA);
    const at::Tensor expected =
        quantize_then_linear(x, linear->weight, std::nullopt, recipe("rowwise"));
    EXPECT_TRUE(same_bits(expected.detach().cpu(), linear->forward(x).detach().cpu()));
    dequantize_(*linear);
    EXPECT_FALSE(at::equal(expected, linear->forward(x)));
  }
}

}  // namespace
}  // namespace moe8
