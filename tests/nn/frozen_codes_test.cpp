// SPDX-License-Identifier: BSD-3-Clause
// A model whose frozen weights are codes: the same forward, nearly the same gradients, half of the bytes.
#include "nn/frozen_codes.h"

#include <torch/torch.h>

#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "moe8/float8.h"
#include "moe8/lora.h"
#include "moe8/quantize_model.h"
#include "moe8/transformer.h"
#include "nn/tiny_transformer.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::same_bits;
using testing::sqnr_db;

constexpr const char* kLinears = "re:.*\\.(attention|feed_forward|shared_experts)\\.w.*\\.weight";

std::map<std::string, FqnToConfig> recipes() {
  const std::string experts = "re:.*\\.moe\\.experts\\.w[123]";
  const Float8LinearConfig rows =
      Float8LinearConfig::from_recipe_name(Float8LinearRecipeName::ROWWISE);
  return {{"fp8", {{experts, FP8GroupedMMConfig{}}, {kLinears, rows}}},
          {"mxfp8", {{experts, MXFP8GroupedMMConfig{}}, {kLinears, MXLinearConfig{}}}}};
}

// With adapters that do something.
Transformer adapted(const FqnToConfig& recipe) {
  Transformer model(testing::tiny_transformer(), 3, at::kBFloat16);
  add_lora(*model, {.rank = 4});
  {
    const torch::NoGradGuard no_grad;
    for (const auto& parameter : model->named_parameters()) {
      if (parameter.key().ends_with("lora_b")) parameter.value().normal_(0, 0.1);
    }
  }
  FqnToConfig keys = recipe;
  keys.emplace_back("re:.*lora_[ab]", std::nullopt);
  quantize_(*model, keys, {.unused = Unused::IGNORE});
  return model;
}

at::Tensor some_tokens() {
  torch::manual_seed(2);
  return at::randint(40, {2, 11}, at::kLong);
}

std::map<std::string, at::Tensor> gradients(Transformer& model) {
  model->zero_grad();
  model(some_tokens()).to(at::kFloat).square().mean().backward();
  std::map<std::string, at::Tensor> found;
  for (const auto& parameter : model->named_parameters()) {
    if (parameter.value().grad().defined())
      found[parameter.key()] = parameter.value().grad().clone();
  }
  return found;
}

TEST(FrozenCodes, ComputeWhatTheWeightsDo) {
  for (const auto& [name, recipe] : recipes()) {
    SCOPED_TRACE(name);
    for (const Recompute recompute : {Recompute::NONE, Recompute::FULL}) {
      torch::manual_seed(1);
      Transformer model = adapted(recipe);
      model->set_recompute(recompute);
      const at::Tensor before = model(some_tokens()).detach();
      const auto wanted = gradients(model);
      EXPECT_EQ(keep_as_codes(*model), 7 * testing::tiny_transformer().n_layers +
                                           3 * (testing::tiny_transformer().n_layers -
                                                testing::tiny_transformer().n_dense_layers));
      EXPECT_TRUE(same_bits(before, model(some_tokens()).detach()));
      const auto got = gradients(model);
      ASSERT_EQ(got.size(), wanted.size());
      for (const auto& [of, gradient] : wanted) EXPECT_GT(sqnr_db(gradient, got.at(of)), 20) << of;
      EXPECT_TRUE(check_conversion(*model).to_line().empty());
    }
  }
}

TEST(FrozenCodes, TakeTheMemoryOfCodes) {
  Transformer model = adapted(recipes().at("fp8"));
  const at::Tensor w1 = model->named_parameters()["layers.1.moe.experts.w1"].detach().clone();
  keep_as_codes(*model);
  const auto parameters = model->named_parameters();
  const auto buffers = model->named_buffers();
  const at::Tensor& kept = parameters["layers.1.moe.experts.w1"];
  EXPECT_EQ(kept.sizes(), w1.sizes());
  EXPECT_EQ(kept.scalar_type(), at::kBFloat16);
  EXPECT_EQ(kept.storage().nbytes(), 2U);
  EXPECT_FALSE(kept.requires_grad());
  const Float8Tensor codes =
      quantize_float8(w1, Float8Granularity::axiswise(-1), ElemDtype::E4M3, true);
  EXPECT_TRUE(same_bits(codes.data, buffers["layers.1.moe.experts.w1_codes"]));
  EXPECT_TRUE(same_bits(codes.scale, buffers["layers.1.moe.experts.w1_scales"]));
  EXPECT_TRUE(
      same_bits(dequantize(codes), values_of_codes(kept, buffers["layers.1.moe.experts.w1_codes"],
                                                   buffers["layers.1.moe.experts.w1_scales"])));
  // What is trained, and what is not converted, stays.
  EXPECT_FALSE(is_kept_as_codes(parameters["layers.1.moe.experts.w1_lora_a"]));
  EXPECT_FALSE(is_kept_as_codes(parameters["tok_embeddings.weight"]));
  EXPECT_EQ(keep_as_codes(*model), 0);
}

// By code that does not know of codes.
TEST(FrozenCodes, AParameterWithoutMemorySaysWhereItsCodesAre) {
  Transformer model = adapted(recipes().at("fp8"));
  keep_as_codes(*model);
  const std::string name = "layers.1.moe.experts.w1";
  const at::Tensor kept = model->named_parameters()[name];
  const torch::NoGradGuard no_grad;
  const std::vector<std::function<void()>> uses{[&] { kept.clone(); },
                                                [&] { kept.to(at::kFloat); },
                                                [&] { kept.norm(); },
                                                [&] { kept[0][0][0].item<float>(); },
                                                [&] { kept.sum(); },
                                                [&] { kept.contiguous(); },
                                                [&] { kept[0].fill_(1); },
                                                [&] { at::zeros(kept.sizes()).copy_(kept); },
                                                [&] { kept.const_data_ptr(); },
                                                [&] { model->to(at::kDouble); },
                                                [&] {
                                                  std::ostringstream out;
                                                  torch::save(model.ptr(), out);
                                                }};
  for (size_t i = 0; i < uses.size(); ++i) {
    EXPECT_THAT(testing::error_of(uses[i]),
                ::testing::HasSubstr("that is kept as codes. They are the buffers"))
        << i;
  }
  EXPECT_THAT(testing::error_of([&] { kept.sum(); }),
              ::testing::HasSubstr("[lora] " + name +
                                   ": expected nobody to read or write a weight "
                                   "that is kept as codes. They are the buffers " +
                                   name + "_codes and " + name + "_scales"));
}

// Written as numbers and read again they are the same ones.
TEST(FrozenCodes, OfWhatCodesStandForAreTheSame) {
  for (const auto& [name, recipe] : recipes()) {
    Transformer model = adapted(recipe), again = adapted(recipe);
    keep_as_codes(*model);
    const auto buffers = model->named_buffers();
    const auto other = again->named_parameters();
    for (const auto& parameter : model->named_parameters()) {
      const torch::NoGradGuard no_grad;
      const std::string& of = parameter.key();
      other[of].copy_(
          is_kept_as_codes(parameter.value())
              ? values_of_codes(parameter.value(), buffers[of + "_codes"], buffers[of + "_scales"])
              : parameter.value());
    }
    keep_as_codes(*again);
    EXPECT_TRUE(same_bits(model(some_tokens()).detach(), again(some_tokens()).detach())) << name;
  }
}

TEST(FrozenCodes, OfScalesThatAreNoPowersOfTwoAreRefused) {
  EXPECT_FALSE(
      can_be_codes(Float8LinearConfig::from_recipe_name(Float8LinearRecipeName::TENSORWISE)));
  EXPECT_TRUE(can_be_codes(Float8LinearConfig::from_recipe_name(Float8LinearRecipeName::ROWWISE)));
  EXPECT_TRUE(can_be_codes(MXLinearConfig{}));
}

}  // namespace
}  // namespace moe8
