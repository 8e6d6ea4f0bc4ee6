// SPDX-License-Identifier: BSD-3-Clause
// Which tensors are known as converted weights: views whose base does not lead to the weight, and
// tables of weights that come and go.
#include "weights/tags.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <vector>

namespace moe8 {
namespace {

using at::Tensor;

const Config& config() {
  static const Config instance = recipe("mxfp8_emulated");
  return instance;
}

Tensor inference_weight(at::IntArrayRef shape) {
  const c10::InferenceMode inference;
  Tensor weight = at::rand(shape);
  set_tag(weight, config());
  return weight;
}

TEST(Tags, ViewsOfInferenceWeightsAreKnownByTheirMemory) {
  const Tensor first = inference_weight({4, 32}), second = inference_weight({4, 32});
  const uint64_t id = find_tag(first)->id();
  EXPECT_NE(find_tag(second)->id(), id);
  const c10::InferenceMode inference;
  for (const Tensor& view : {first.t(), first.narrow(0, 1, 2), first.view({2, 2, 32})}) {
    ASSERT_TRUE(find_tag(view));
    EXPECT_EQ(find_tag(view)->id(), id);
  }
  const Tensor plain = at::rand({4, 32});
  EXPECT_FALSE(find_tag(plain));
  EXPECT_FALSE(find_tag(plain.t()));
}

TEST(Tags, AWeightThatIsAPartOfABufferIsKnownByItsMemory) {
  const Tensor buffer = at::rand({8, 32});
  const Tensor weight = buffer.narrow(0, 2, 4);
  set_tag(weight, config());
  EXPECT_TRUE(find_tag(weight.t()));
  EXPECT_TRUE(find_tag(buffer.narrow(0, 3, 2)));
  EXPECT_FALSE(find_tag(buffer));
  EXPECT_FALSE(find_tag(buffer.narrow(0, 6, 2)));
  EXPECT_FALSE(find_tag(buffer.narrow(0, 1, 2)));
}

TEST(Tags, MemoryOfADeadWeightIsNobodys) {
  Tensor weight = inference_weight({4, 32});
  const c10::InferenceMode inference;
  const Tensor view = weight.t();
  EXPECT_TRUE(find_tag(view));
  weight.reset();
  EXPECT_FALSE(find_tag(view));
  EXPECT_FALSE(find_tag(view.t()));
}

TEST(Tags, TakenBackIsForgottenAndSetAgainIsKnown) {
  const Tensor weight = inference_weight({4, 32});
  const c10::InferenceMode inference;
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(find_tag(weight.t()));
    clear_tag(weight);
    EXPECT_FALSE(find_tag(weight));
    EXPECT_FALSE(find_tag(weight.t()));
    set_tag(weight, config());
  }
  EXPECT_TRUE(find_tag(weight));
}

// Far more than the table holds before it is looked through: entries and what speeds up finding
// them must go together.
TEST(Tags, WeightsThatComeAndGo) {
  std::vector<Tensor> plain, kept;
  for (int i = 0; i < 3000; ++i) {
    Tensor weight = i % 3 == 0 ? inference_weight({2, 2}) : at::ones({2, 2});
    if (i % 3 != 0) set_tag(weight, config());
    if (i % 7 == 0) clear_tag(weight);
    if (i % 10 == 0) (i % 7 == 0 ? plain : kept).push_back(weight);
    EXPECT_EQ(find_tag(weight).has_value(), i % 7 != 0) << i;
  }
  for (const Tensor& weight : kept) EXPECT_TRUE(find_tag(weight) && config_of(weight));
  for (const Tensor& weight : plain) EXPECT_FALSE(find_tag(weight));
}

}  // namespace
}  // namespace moe8
