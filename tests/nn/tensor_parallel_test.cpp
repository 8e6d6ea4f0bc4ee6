// SPDX-License-Identifier: BSD-3-Clause
// Dense weights spread over the ranks of a tensor group against one process that has them whole.
#include "moe8/tensor_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "base/check.h"
#include "moe8/transformer.h"
#include "nn/transformer_parts.h"
#include "testing/compare.h"
#include "testing/processes.h"

namespace moe8 {
namespace {

using testing::all_tensor;
using testing::error_of;
using ::testing::HasSubstr;
using testing::held_of;
using testing::in_processes;
using testing::small_config;

// ---- names ----------------------------------------------------------------------
TEST(TensorSplitOfNames, BiasesOfColumnsAreSplitAndThoseOfSumsAreWhole) {
  EXPECT_EQ(tensor_split("layers.0.attention.wq.bias"), TensorSplit::COLUMN_PARALLEL);
  EXPECT_EQ(tensor_split("layers.0.attention.wo.weight"), TensorSplit::ROW_PARALLEL);
  EXPECT_EQ(tensor_split("layers.0.attention.wo.bias"), TensorSplit::NONE);
  EXPECT_EQ(tensor_split("layers.0.moe.experts.w2"), TensorSplit::NONE);
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
        config = small_config();
        config.attention_sinks = true;
        EXPECT_THAT(error_of([&] { Attention(config, group); }),
                    HasSubstr("[Attention] tensor_group: expected one rank beside"));
      },
      all_tensor);
}

// ---- norms over split features --------------------------------------------------
TEST(NormInParts, IsThatOfTheWholeWidth) {
  in_processes(
      {1, 2, 4},
      [](Parallel& p) {
        const Group& group = p.tensor();
        torch::manual_seed(1);
        const int64_t part = 24 / group.size(), first = group.rank() * part;
        const at::Tensor values = at::randn({2, 5, 24}) * 3, scales = at::rand({24}) + 0.5;
        const at::Tensor grad = at::randn({2, 5, 24});
        for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
          const at::Tensor x = values.to(dtype).clone().requires_grad_();
          const at::Tensor weight = scales.to(dtype).clone().requires_grad_();
          const at::Tensor expected = at::rms_norm(x, {24}, weight, 1e-5);
          expected.backward(grad.to(dtype));
          const at::Tensor own = values.to(dtype).narrow(-1, first, part).clone().requires_grad_();
          const at::Tensor own_weight = scales.to(dtype).clone().requires_grad_();
          const at::Tensor out = rms_norm_in_parts(group, own, own_weight, 1e-5);
          out.backward(grad.to(dtype).narrow(-1, first, part));
          EXPECT_EQ(out.scalar_type(), dtype);
          // In bf16 a rounding apart where sums differ in their last digit.
          const double bound = dtype == at::kFloat ? 1e-6 : 5e-3;
          using testing::relative_error;
          EXPECT_LT(relative_error(out, expected.narrow(-1, first, part)), bound);
          EXPECT_LT(relative_error(own.grad(), x.grad().narrow(-1, first, part)), bound);
          const at::Tensor of_weight = own_weight.grad().to(at::kFloat);
          all_reduce_(group, of_weight);  // of other ranks' features it is 0
          EXPECT_LT(relative_error(of_weight, weight.grad()), bound);
        }
      },
      all_tensor);
}

TEST(NormInParts, SaysWhatDoesNotFit) {
  in_processes(
      {2},
      [](Parallel& p) {
        const auto error = [&](const at::Tensor& x, const at::Tensor& weight) {
          return error_of([&] { rms_norm_in_parts(p.tensor(), x, weight, 1e-5); });
        };
        EXPECT_THAT(
            error(at::zeros({3, 4}), at::zeros({4})),
            HasSubstr("[tensor_parallel] weight: expected Float [8] on cpu, got Float [4]"));
        EXPECT_THAT(error(at::zeros({3, 4}), at::zeros({8}, at::kBFloat16)),
                    HasSubstr("weight: expected Float [8] on cpu, got BFloat16 [8]"));
        EXPECT_THAT(error(at::zeros({3, 4}, at::kLong), at::zeros({8})),
                    HasSubstr("[tensor_parallel] x: expected bf16 or float32 [..., D]"));
      },
      all_tensor);
}

// ---- the model ------------------------------------------------------------------
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
          EXPECT_TRUE(own[whole.key()].equal(held_of(whole.key(), whole.value(), group)))
              << whole.key();
          split += tensor_split(whole.key()) != TensorSplit::NONE;
        }
        EXPECT_EQ(split, 3 * 7);  // of three layers four of attention, three of a feed-forward
      },
      all_tensor);
}

TEST(TransformerInParts, LossAndGradientsAreThoseOfOneProcess) {
  in_processes(
      {2, 4}, [](Parallel& p) { testing::compare_with_whole_transformer(p); }, all_tensor);
}

// As OLMoE has them.
TEST(TransformerInParts, NormsOfQueriesAndKeysOverTheWholeWidth) {
  in_processes(
      {2, 4},
      [](Parallel& p) {
        TransformerConfig config = small_config();
        config.qk_norm = QkNorm::WIDTH;
        testing::compare_with_whole_transformer(p, config);
      },
      all_tensor);
}

}  // namespace
}  // namespace moe8
