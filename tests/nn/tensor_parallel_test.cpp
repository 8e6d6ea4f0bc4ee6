// SPDX-License-Identifier: BSD-3-Clause
// Dense weights spread over the ranks of a tensor group against one process that has them whole.
#include "moe8/tensor_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "base/check.h"
#include "moe8/quantize_model.h"
#include "moe8/transformer.h"
#include "nn/transformer_step.h"
#include "testing/compare.h"
#include "testing/processes.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::in_processes;
using testing::relative_error;
using testing::Step;
using testing::step;

ParallelLayout all_tensor(int64_t world) {
  return {.tensor = world};
}

// ---- positions ------------------------------------------------------------------
TEST(SequenceExchange, GathersAndAddsUpAlongAnyDimension) {
  in_processes(
      {1, 2, 4},
      [](Parallel& p) {
        const Group& group = p.tensor();
        torch::manual_seed(1);  // the same on all ranks
        const at::Tensor whole = at::randn({3, 8, 8});
        for (const int64_t dim : {0, 1, 2}) {
          const at::Tensor all = dim == 0 ? whole.transpose(0, 1).contiguous() : whole;
          const at::Tensor own = sequence_part(group, all, dim);
          EXPECT_TRUE(gather_sequence(group, own, dim).equal(all)) << dim;
          // The sum of rank + 1 times the same.
          const auto n = static_cast<double>(group.size());
          const at::Tensor sum =
              reduce_scatter_sequence(group, all * double(group.rank() + 1), dim);
          EXPECT_TRUE(at::allclose(sum, own * (n * (n + 1) / 2))) << dim;
        }
      },
      all_tensor);
}

TEST(SequenceExchange, GradientsAreTheOtherExchange) {
  in_processes(
      {2, 4},
      [](Parallel& p) {
        const Group& group = p.tensor();
        torch::manual_seed(1 + static_cast<uint64_t>(group.rank()));
        const at::Tensor part = at::randn({2, 3, 5}).requires_grad_();
        const at::Tensor grad = at::randn({2, 3 * group.size(), 5});
        gather_sequence(group, part).backward(grad);
        EXPECT_TRUE(part.grad().equal(reduce_scatter_sequence(group, grad)));
        const at::Tensor all = at::randn({2, 3 * group.size(), 5}).requires_grad_();
        const at::Tensor own_grad = at::randn({2, 3, 5});
        reduce_scatter_sequence(group, all).backward(own_grad);
        EXPECT_TRUE(all.grad().equal(gather_sequence(group, own_grad)));
      },
      all_tensor);
}

// Two Linears between the exchanges are one feed-forward.
TEST(ParallelLinears, TogetherAreTheWholeOnes) {
  in_processes(
      {2, 4},
      [](Parallel& p) {
        const Group& group = p.tensor();
        torch::manual_seed(1);
        const at::Tensor w1 = at::randn({16, 8}), w2 = at::randn({8, 16}), x = at::randn({2, 8, 8});
        torch::nn::Linear up = column_parallel_linear(8, 16, group);
        torch::nn::Linear down = row_parallel_linear(16, 8, group);
        const int64_t part = 16 / group.size(), first = group.rank() * part;
        up->weight.set_data(w1.narrow(0, first, part).clone());
        down->weight.set_data(w2.narrow(1, first, part).clone());
        const at::Tensor hidden = up(gather_sequence(group, sequence_part(group, x)));
        const at::Tensor y = reduce_scatter_sequence(group, down(at::relu(hidden)));
        y.square().sum().backward();

        const at::Tensor a = w1.clone().requires_grad_(), b = w2.clone().requires_grad_();
        const at::Tensor expected = at::linear(at::relu(at::linear(x, a)), b);
        expected.square().sum().backward();
        EXPECT_TRUE(at::allclose(y, sequence_part(group, expected), 1e-4, 1e-4));
        EXPECT_TRUE(at::allclose(up->weight.grad(), a.grad().narrow(0, first, part), 1e-4, 1e-3));
        EXPECT_TRUE(at::allclose(down->weight.grad(), b.grad().narrow(1, first, part), 1e-4, 1e-3));
      },
      all_tensor);
}

TEST(ParallelLinears, SayWhatDoesNotDivide) {
  in_processes(
      {2},
      [](Parallel& p) {
        const Group& group = p.tensor();
        EXPECT_EQ(error_of([&] { column_parallel_linear(8, 9, group); }),
                  "[tensor_parallel] out: expected a multiple of the 2 ranks of group 'tensor', "
                  "got 9");
        EXPECT_THAT(error_of([&] { row_parallel_linear(9, 8, group); }),
                    HasSubstr("[tensor_parallel] in: expected a multiple of the 2 ranks"));
        EXPECT_THAT(error_of([&] {
                      sequence_part(group, at::zeros({2, 3}));
                    }),
                    HasSubstr("[tensor_parallel] x: expected a multiple of the 2 ranks"));
        EXPECT_THAT(error_of([&] {
                      gather_sequence(group, at::zeros({2, 3}), 2);
                    }),
                    HasSubstr("[tensor_parallel] dim: expected a dimension of x"));
        TransformerConfig config;
        config.n_kv_heads = 1;
        EXPECT_THAT(error_of([&] { Attention(config, group); }),
                    HasSubstr("[Attention] tensor_group: expected a divisor of n_kv_heads = 1, "
                              "got 2 ranks"));
      },
      all_tensor);
}

// ---- the model ------------------------------------------------------------------
TransformerConfig small_config() {
  TransformerConfig config;
  config.vocab_size = 64;
  config.dim = 64;
  config.n_layers = 3;
  config.n_heads = config.n_kv_heads = 4;
  config.max_seq_len = 32;
  config.dense_hidden_dim = 128;
  config.n_experts = 8;
  config.top_k = 3;
  config.hidden_dim = 128;
  return config;
}

// What this rank holds of the whole tensor of that name.
at::Tensor held(const std::string& name, const at::Tensor& whole, const Group& group) {
  const TensorSplit split = tensor_split(name);
  if (split == TensorSplit::NONE) return whole;
  return sequence_part(group, whole, split == TensorSplit::COLUMN_PARALLEL ? 0 : 1);
}

void convert(Transformer& model, const std::string& recipe) {
  if (recipe == "bf16") return;
  const bool fp8 = recipe == "fp8_rowwise";
  quantize_(*model, {{"re:.*\\.moe\\.experts\\.w[123]",
                      fp8 ? Config(FP8GroupedMMConfig{}) : Config(MXFP8GroupedMMConfig{})},
                     {"re:layers\\..*\\.(w[qkvo123])\\.weight",
                      fp8 ? Config(Float8LinearConfig{}) : Config(MXLinearConfig{})}});
}

TEST(TransformerInParts, HoldsPartsOfTheSameWeights) {
  in_processes(
      {2, 4},
      [](Parallel& p) {
        const Group& group = p.tensor();
        Transformer one(small_config(), 7, at::kBFloat16);
        Transformer mine(small_config(), 7, at::kBFloat16, Group(), group);
        const auto own = mine->named_parameters();
        ASSERT_EQ(own.size(), one->named_parameters().size());
        int64_t split = 0;
        for (const auto& whole : one->named_parameters()) {
          EXPECT_TRUE(own[whole.key()].equal(held(whole.key(), whole.value(), group)))
              << whole.key();
          split += tensor_split(whole.key()) != TensorSplit::NONE;
        }
        EXPECT_EQ(split, 3 * 7);  // of three layers four of attention, three of a feed-forward
      },
      all_tensor);
}

// Sums over features are made in parts that are rounded to bf16, and FP8 scales of what is contracted
// over split features are those of a part: bounds as of experts over ranks.
TEST(TransformerInParts, LossAndGradientsAreThoseOfOneProcess) {
  in_processes(
      {2, 4},
      [](Parallel& p) {
        const Group& group = p.tensor();
        torch::manual_seed(3);
        const at::Tensor tokens = at::randint(64, {2, 17}, at::kLong);
        for (const std::string recipe : {"bf16", "fp8_rowwise", "mxfp8_rceil"}) {
          SCOPED_TRACE(recipe);
          Transformer one(small_config(), 7, at::kBFloat16);
          Transformer mine(small_config(), 7, at::kBFloat16, Group(), group);
          convert(one, recipe);
          convert(mine, recipe);
          const Step whole = step(one, tokens);
          const Step part = step(mine, tokens);
          const at::Tensor loss = at::full({}, part.loss, at::kDouble);
          all_reduce_(group, loss);
          EXPECT_NEAR(loss.item<double>() / whole.loss, 1, 2e-3);
          for (const auto& [name, grad] : part.grads) {
            at::Tensor sum = grad.to(at::kFloat);
            if (tensor_split(name) == TensorSplit::NONE) all_reduce_(group, sum);
            const at::Tensor expected = held(name, whole.grads.at(name), group);
            EXPECT_LT(relative_error(sum, expected), recipe == "bf16" ? 0.05 : 0.25) << name;
          }
          EXPECT_TRUE(check_conversion(*mine).to_line().empty());
          for (const Recompute recompute : {Recompute::SELECTIVE, Recompute::FULL}) {
            mine->set_recompute(recompute);
            const Step again = step(mine, tokens);
            EXPECT_EQ(again.loss, part.loss);
          }
        }
      },
      all_tensor);
}

}  // namespace
}  // namespace moe8
