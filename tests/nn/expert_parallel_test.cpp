// SPDX-License-Identifier: BSD-3-Clause
// A transformer whose experts are spread over ranks against one process that has them all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "base/check.h"
#include "moe8/quantize_model.h"
#include "moe8/transformer.h"
#include "nn/transformer_step.h"
#include "testing/processes.h"

namespace moe8 {
namespace {

using testing::in_processes;
using testing::relative_error;
using testing::Step;
using testing::step;

TransformerConfig small_config() {
  TransformerConfig config;
  config.vocab_size = 64;
  config.dim = 64;
  config.n_layers = 3;
  config.n_heads = config.n_kv_heads = 2;
  config.max_seq_len = 32;
  config.dense_hidden_dim = 64;
  config.n_experts = 8;
  config.top_k = 3;
  config.hidden_dim = 32;
  config.aux_loss_coeff = 0.01;
  return config;
}

bool is_of_experts(const std::string& name) {
  return name.find(".experts.") != std::string::npos &&
         name.find("shared_experts") == std::string::npos;
}

void convert(Transformer& model, const std::string& recipe) {
  if (recipe == "bf16") return;
  const Config config =
      recipe == "fp8_rowwise" ? Config(FP8GroupedMMConfig{}) : Config(MXFP8GroupedMMConfig{});
  const FqnToConfig configs{{"re:.*\\.moe\\.experts\\.w[123]", config}};
  quantize_(*model, configs);
}

TEST(TransformerOverRanks, HoldsPartsOfTheSameWeights) {
  in_processes(
      {2, 4},
      [](Parallel& p) {
        const Group& group = p.expert();
        Transformer one(small_config(), 7, at::kBFloat16);
        Transformer mine(small_config(), 7, at::kBFloat16, group);
        const auto own = mine->named_parameters();
        ASSERT_EQ(own.size(), one->named_parameters().size());
        for (const auto& whole : one->named_parameters()) {
          const at::Tensor& part = own[whole.key()];
          const bool is_spread = is_of_experts(whole.key());
          const int64_t rows = whole.value().size(0) / (is_spread ? group.size() : 1);
          EXPECT_TRUE(
              part.equal(whole.value().narrow(0, is_spread ? group.rank() * rows : 0, rows)))
              << whole.key();
        }
      },
      [](int64_t world) { return ParallelLayout{.expert = world}; });
}

// The order in which a token's experts are added up differs, and what travels is rounded: bounds are
// those of bf16 through three layers.
TEST(TransformerOverRanks, LossAndGradientsAreThoseOfOneProcess) {
  in_processes(
      {2, 4},
      [](Parallel& p) {
        const Group& group = p.expert();
        torch::manual_seed(3);
        const at::Tensor tokens = at::randint(64, {4, 17}, at::kLong);
        const int64_t own = 4 / group.size();
        const at::Tensor my_tokens = tokens.narrow(0, group.rank() * own, own);
        for (const std::string recipe : {"bf16", "fp8_rowwise", "mxfp8_rceil"}) {
          SCOPED_TRACE(recipe);
          TransformerConfig config = small_config();
          config.aux_loss_coeff = 0;  // a mean over the tokens of a process
          Transformer one(config, 7, at::kBFloat16);
          Transformer mine(config, 7, at::kBFloat16, group);
          convert(one, recipe);
          convert(mine, recipe);
          const Step whole = step(one, tokens);
          Step part = step(mine, my_tokens);
          const at::Tensor loss = at::full({}, part.loss, at::kDouble);
          all_reduce_(group, loss);
          EXPECT_NEAR(loss.item<double>() / whole.loss, 1, 2e-3);
          for (auto& [name, grad] : part.grads) {
            at::Tensor expected = whole.grads.at(name);
            if (is_of_experts(name)) {
              const int64_t rows = expected.size(0) / group.size();
              expected = expected.narrow(0, group.rank() * rows, rows);
            } else {
              grad = grad.to(at::kFloat);
              all_reduce_(group, grad);
            }
            EXPECT_LT(relative_error(grad, expected), recipe == "bf16" ? 0.05 : 0.25) << name;
          }
          // Backward that computes the second half of a block again exchanges again.
          mine->set_recompute(Recompute::SELECTIVE);
          const Step again = step(mine, my_tokens);
          mine->set_recompute(Recompute::NONE);
          const Step once_more = step(mine, my_tokens);
          EXPECT_EQ(again.loss, once_more.loss);
          for (const auto& [name, grad] : again.grads) {
            EXPECT_TRUE(grad.equal(once_more.grads.at(name))) << name;
          }
        }
      },
      [](int64_t world) { return ParallelLayout{.expert = world}; });
}

TEST(TransformerOverRanks, AGroupThatDoesNotDivideTheExpertsIsAnError) {
  in_processes(
      {3},
      [](Parallel& p) {
        try {
          Transformer model(small_config(), 7, at::kBFloat16, p.expert());
          ADD_FAILURE();
        } catch (const c10::Error& error) {
          EXPECT_EQ(message_of(error),
                    "[Experts] group: expected a divisor of n_experts = 8, got 3 ranks");
        }
      },
      [](int64_t world) { return ParallelLayout{.expert = world}; });
}

}  // namespace
}  // namespace moe8
