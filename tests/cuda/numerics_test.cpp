// SPDX-License-Identifier: BSD-3-Clause
// Samples that kernels take of a GPU's tensors against those that LibTorch's operations take of the
// same tensors on a CPU: bit for bit, sums in float64 but for their order.
#include <ATen/ATen.h>

#include <cmath>
#include <string>
#include <vector>

#include "device/cuda_backend.h"
#include "numerics/sample.h"
#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

using testing::offs_of;
using testing::wide_normal;

struct Case {
  std::string name;
  std::vector<int64_t> sizes;  // of the groups; one: no offs
  int64_t tail = 0;            // rows in no group
  int64_t N, K;
  at::ScalarType dtype = at::kBFloat16;
  bool is_transposed = false;  // weights (E, K, N) as views
  Sampling sampling = {4096, 512, 8, 0.3};
};

std::vector<Case> cases() {
  return {
      {"ragged", {64, 0, 33, 3, 1100}, 5, 200, 136},
      {"float32", {64, 0, 33, 3, 100}, 0, 40, 72, at::kFloat},
      {"transposed", {7, 90, 33}, 3, 48, 80, at::kBFloat16, true},
      {"odd", {1, 2, 3, 129}, 1, 37, 29},
      {"linear", {5000}, 0, 320, 192},
      {"linear in float32", {257}, 0, 33, 65, at::kFloat},
      {"more experts than a launch has room for",
       std::vector<int64_t>(128, 9),
       0,
       40,
       24,
       at::kBFloat16,
       false,
       {4096, 4096, 128, 0.7}},
      {"everything", {40, 3, 64}, 2, 24, 40, at::kBFloat16, false, {1 << 20, 1 << 20, 64, 0}},
  };
}

// Operands, groups and a result, which need not be that of the operands.
struct Problem {
  at::Tensor left, right, result;
  TokenGroups groups;
};

Problem problem_of(const Case& c, Gemm gemm) {
  int64_t rows = c.tail;
  for (const int64_t size : c.sizes) rows += size;
  const auto experts = static_cast<int64_t>(c.sizes.size());
  at::Tensor weight = c.is_transposed ? wide_normal({experts, c.K, c.N}, c.dtype, 3).transpose(1, 2)
                                      : wide_normal({experts, c.N, c.K}, c.dtype, 3);
  const at::Tensor x = wide_normal({rows, c.K}, c.dtype, 1),
                   grad = wide_normal({rows, c.N}, c.dtype, 2);
  const TokenGroups groups = experts > 1 ? TokenGroups(offs_of(c.sizes)) : TokenGroups();
  switch (gemm) {
    case Gemm::OUT:
      return {x, weight, grad, groups};
    case Gemm::GRAD_INPUT:
      return {grad, weight, x, groups};
    case Gemm::GRAD_WEIGHT:
      return {grad, x, weight, groups};
  }
  return {};
}

Problem on_gpu(const Problem& p) {
  const auto there = [](const at::Tensor& x) { return x.to(at::kCUDA); };
  return {there(p.left), there(p.right), there(p.result),
          p.groups.offs() ? TokenGroups(there(*p.groups.offs())) : TokenGroups()};
}

ProductSample sample_of(Sampler& sampler, Gemm gemm, const Problem& p) {
  return sampler.take({.gemm = gemm,
                       .left = p.left,
                       .right = p.right,
                       .groups = p.groups,
                       .formats = {HighPrecision{}, HighPrecision{}},
                       .out_dtype = p.result.scalar_type()},
                      p.result);
}

double largest(const at::Tensor& magnitudes) {
  return magnitudes.max().item<double>();
}

void expect_same_sample(const ProductSample& a, const ProductSample& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.result.rows, b.result.rows);
  EXPECT_TRUE(testing::same_bits(a.left.x, b.left.x)) << "left";
  EXPECT_TRUE(testing::same_bits(a.right.x, b.right.x)) << "right";
  EXPECT_EQ(largest(a.left.magnitudes), largest(b.left.magnitudes));
  EXPECT_EQ(largest(a.right.magnitudes), largest(b.right.magnitudes));
  EXPECT_TRUE(testing::same_bits(a.result.got, b.result.got)) << "result";
  ASSERT_EQ(a.result.expected.defined(), b.result.expected.defined());
  if (!a.result.expected.defined()) {
    EXPECT_TRUE(testing::same_bits(a.result.left, b.result.left)) << "left of the result";
    EXPECT_TRUE(testing::same_bits(a.result.right, b.result.right)) << "right of the result";
    return;
  }
  const at::Tensor sum = a.result.expected.sum(1);
  EXPECT_TRUE(
      at::allclose(sum, b.result.expected.sum(1), 1e-10, 1e-10 * sum.abs().max().item<double>()));
}

class SamplesOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto failure = load_cuda_backend())
      GTEST_SKIP() << "no GPU for these tests: " << *failure;
  }
};

TEST_F(SamplesOnGpu, AreThoseOfTheCpu) {
  for (const Case& c : cases()) {
    for (const Gemm gemm : {Gemm::OUT, Gemm::GRAD_INPUT, Gemm::GRAD_WEIGHT}) {
      SCOPED_TRACE(c.name + " " + to_string(gemm));
      const Problem p = problem_of(c, gemm);
      Sampler here(c.sampling), there(c.sampling);
      ProductSample expected = sample_of(here, gemm, p), got = sample_of(there, gemm, on_gpu(p));
      const HostCopy copy(got.tensors());
      copy.wait();
      expect_same_sample(got, expected);
    }
  }
}

TEST_F(SamplesOnGpu, MagnitudesOfNaNAndInfinityAreSeen) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    for (const int64_t place : {0, 1234, 99999}) {
      for (const float value : {-INFINITY, NAN, -65536.0f}) {
        at::Tensor x = wide_normal({100000}, dtype, 7).clamp(-1000, 1000).to(at::kCUDA);
        x[place] = value;
        SampleMemory memory;
        const at::Tensor parts = largest_magnitudes(x, memory).cpu();
        const double most = largest(parts);
        EXPECT_TRUE(std::isnan(value) ? std::isnan(most) : most == std::abs(value)) << most;
        const at::Tensor columns = x.view({100, 1000}).narrow(1, 3, 900);
        const double got = largest(largest_magnitudes(columns, memory).cpu());
        const double expected = largest(columns.cpu().abs());
        EXPECT_TRUE(std::isnan(expected) ? std::isnan(got) : got == expected) << got;
      }
    }
  }
}

}  // namespace
}  // namespace moe8
