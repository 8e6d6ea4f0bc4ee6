// SPDX-License-Identifier: BSD-3-Clause
// moe_experts in high precision, against the definition in float64: values, gradients, edges, misuse.
#include <torch/torch.h>

#include <cmath>

#include "experts/problem.h"
#include "moe8/experts.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using testing::experts_problem;
using testing::ExpertsProblem;
using testing::ExpertsResults;
using testing::ExpertsShape;
using ::testing::HasSubstr;
using testing::in_float64;
using testing::run_experts;
using testing::same_bits;
using testing::sqnr_db;

constexpr ExpertsImplementation kBoth[] = {ExpertsImplementation::FUSED,
                                           ExpertsImplementation::UNFUSED};

void expect_close(const ExpertsResults& expected, const ExpertsResults& got, double db,
                  const std::string& what) {
  EXPECT_GE(sqnr_db(expected.out, got.out), db) << what << " out";
  ASSERT_EQ(expected.grads.size(), got.grads.size());
  for (size_t i = 0; i < got.grads.size(); ++i) {
    EXPECT_GE(sqnr_db(expected.grads[i], got.grads[i]), db) << what << " gradient " << i;
  }
}

// Every activation, placement of the scores, with and without biases.
std::vector<ExpertsProblem> variants(const ExpertsShape& shape, at::ScalarType dtype) {
  std::vector<ExpertsProblem> list;
  for (const Activation activation : {Activation::SWIGLU, Activation::CLAMPED_SWIGLU}) {
    for (const ScorePlacement placement : {ScorePlacement::OUTPUT, ScorePlacement::INPUT}) {
      for (const bool has_bias : {false, true}) {
        ExpertsProblem p = experts_problem(shape, dtype, list.size() + 1, has_bias);
        p.activation = activation;
        p.placement = placement;
        list.push_back(p);
      }
    }
  }
  return list;
}

TEST(MoeExperts, Float32IsTheDefinition) {
  for (const ExpertsProblem& p : variants({.tokens = 50, .top_k = 3, .experts = 6}, at::kFloat)) {
    for (const ExpertsImplementation which : kBoth) {
      expect_close(in_float64(p), run_experts(p, {.implementation = which}), 110,
                   c10::str(int(which), " ", int(p.activation), " ", int(p.placement)));
    }
  }
}

}  // namespace
}  // namespace moe8
