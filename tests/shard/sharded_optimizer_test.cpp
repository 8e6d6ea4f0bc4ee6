// SPDX-License-Identifier: BSD-3-Clause
// The optimizer over several processes: the bits of one, its state in parts, experts on some ranks.
#include "moe8/sharded_optimizer.h"

#include <torch/torch.h>

#include <array>
#include <map>

#include "shard/sharded_model.h"
#include "testing/compare.h"
#include "testing/processes.h"

namespace moe8 {
namespace {

using testing::error_of;
using testing::expect_same_steps;
using testing::expect_steps_of_one_process;
using ::testing::HasSubstr;
using testing::in_processes;
using testing::kBatches;
using testing::kExperts;
using testing::same_bits;
using testing::shared;
using testing::whole;
using Model = testing::ShardedModel;

TEST(ShardedOptimizer, StepsAsOneProcessBitForBit) {
  in_processes({1, 2, 4}, [&](Parallel& p) {
    expect_steps_of_one_process(
        p, {{UpdateRule::ADAMW, at::kBFloat16, MomentDtype::LIKE_WEIGHTS, true},
            {UpdateRule::ADAMW, at::kBFloat16, MomentDtype::BF16, false},
            {UpdateRule::ADAMW, at::kFloat, MomentDtype::BF16, true},
            {UpdateRule::MUON, at::kBFloat16, MomentDtype::BF16, true},
            {UpdateRule::MUON, at::kFloat, MomentDtype::LIKE_WEIGHTS, false}});
  });
}

// Bf16 parameters that are stepped themselves get the float32 sum of gradients, rounded once.
TEST(ShardedOptimizer, WithoutMastersRanksAgree) {
  in_processes({2}, [](Parallel& p) {
    Model model(at::kBFloat16);
    ShardedOptimizer optimizer(shared(model, UpdateRule::ADAMW), {.masters = false}, p.data());
    const at::Tensor before = model.tensors[0].detach().clone();
    model.loss(p.data().rank()).backward();
    optimizer.accumulate();
    optimizer.set_learning_rate(1e-2);
    optimizer.step();
    EXPECT_FALSE(same_bits(before, model.tensors[0].detach()));
    for (const at::Tensor& x : model.tensors) {
      const at::Tensor all = all_gather(p.data(), x.detach().unsqueeze(0));
      EXPECT_TRUE(same_bits(all[0], all[1]));
    }
  });
}

TEST(ShardedOptimizer, StateInPartsIsThatOfOneProcess) {
  in_processes({2, 4}, [](Parallel& p) {
    Model one(at::kBFloat16), several(at::kBFloat16);
    Optimizer alone(whole(one, UpdateRule::ADAMW), {});
    ShardedOptimizer together(shared(several, UpdateRule::ADAMW), {}, p.data());
    expect_same_steps(one, several, alone, together, p.data(), 1);
    std::map<std::string, at::Tensor> expected;
    for (auto& [name, tensor] : alone.state()) expected[name] = tensor.detach().clone();
    for (size_t i = 0; i < one.names.size(); ++i) expected[one.names[i]] = one.tensors[i].detach();

    // Every row is some rank's, once.
    std::map<std::string, int64_t> elements;
    std::vector<OwnedRows> rows = together.state();
    for (OwnedRows& owned : together.owned()) rows.push_back(std::move(owned));
    for (const auto& [name, first_row, tensor, first_column] : rows) {
      const at::Tensor& all = expected.at(name);
      EXPECT_TRUE(same_bits(
          all.dim() == 0 ? all : all.narrow(0, first_row, tensor.size(0)).contiguous(), tensor))
          << name;
      elements[name] += tensor.numel();
    }
    for (const auto& [name, tensor] : expected) {
      if (name.ends_with("frozen")) continue;
      const at::Tensor count = at::tensor({elements[name]});
      all_reduce_(p.world(), count);
      EXPECT_EQ(count.item<int64_t>(), tensor.numel()) << name;
    }

    // Another optimizer goes on from it.
    Model next(at::kBFloat16);
    for (size_t i = 0; i < next.tensors.size(); ++i) {
      const at::NoGradGuard no_grad;
      next.tensors[i].copy_(one.tensors[i]);
    }
    ShardedOptimizer other(shared(next, UpdateRule::ADAMW), {}, p.data());
    other.restore([&](const OwnedRows& wanted) {
      const at::Tensor& all = expected.at(wanted.name);
      return all.dim() == 0 ? all : all.narrow(0, wanted.first_row, wanted.tensor.size(0));
    });
    expect_same_steps(one, next, alone, other, p.data(), 1);
  });
}

// Norms add up in another order.
void clip_and_step(Optimizer& alone, ShardedOptimizer& together) {
  const at::Tensor norm = alone.clip_gradients(), shared_norm = together.clip_gradients();
  EXPECT_NEAR(norm.item<float>(), shared_norm.item<float>(), 1e-5 * norm.item<float>());
  alone.set_learning_rate(1e-2);
  together.set_learning_rate(1e-2);
  alone.step();
  together.step();
}

// Two ranks share the experts, and with four ranks there are two of each pair.
TEST(ShardedOptimizer, ExpertsAreSummedOverTheRanksThatHoldThem) {
  in_processes(
      {2, 4},
      [](Parallel& p) {
        const int64_t held = kExperts / p.expert().size(), first = held * p.expert().rank();
        Model one(at::kFloat), several(at::kFloat);
        several.tensors[4] = several.tensors[4].detach().narrow(0, first, held).clone();
        several.tensors[4].set_requires_grad(true);
        std::vector<ShardedParameter> list = shared(several, UpdateRule::ADAMW);
        list[4].first_expert = first;
        list[4].experts = kExperts;
        const OptimizerOptions options{.max_grad_norm = 0.5};
        Optimizer alone(whole(one, UpdateRule::ADAMW), options);
        ShardedOptimizer together(std::move(list), options, p.data(), p.expert_data(),
                                  {.overlap = false});
        for (int64_t batch = 0; batch < kBatches; ++batch) {
          one.loss(batch).backward();
          alone.accumulate();
        }
        // What its experts get of the batches of the ranks of an expert group, and its own batch.
        const int64_t each = kBatches / p.data().size();
        for (int64_t round = 0; round < each; ++round) {
          const int64_t own = round * p.data().size() + p.data().rank();
          several.loss(own, first, held).backward();
          const at::Tensor of_own = several.tensors[4].grad().clone();
          const int64_t neighbour = own + (p.expert().rank() == 0 ? 1 : -1);
          // The gradient of an expert layer has the tokens of all ranks of its group.
          Model other(at::kFloat);
          other.loss(neighbour).backward();
          several.tensors[4].mutable_grad() =
              of_own + other.tensors[4].grad().narrow(0, first, held);
          together.accumulate();
        }
        clip_and_step(alone, together);
        EXPECT_TRUE(at::allclose(one.tensors[4].narrow(0, first, held), several.tensors[4]));
        EXPECT_TRUE(at::allclose(one.tensors[0], several.tensors[0]));
        for (const OwnedRows& rows : together.owned()) {
          if (rows.name != "experts") continue;
          EXPECT_GE(rows.first_row, first);
          EXPECT_LE(rows.first_row + rows.tensor.size(0), first + held);
        }
      },
      [](int64_t) { return ParallelLayout{.expert = 2}; });
}

// Two ranks of a tensor group hold halves of two matrices, and the gradients of what both hold are of
// their own tokens.
struct Parts {
  Model model{at::kBFloat16};
  std::vector<ShardedParameter> list;

  static constexpr std::array<int64_t, 2> kAxis{1, 0};  // of "a" and "b"

  Parts(const Group& tensor, UpdateRule rule) {
    for (size_t i = 0; i < kAxis.size(); ++i) {
      const int64_t axis = kAxis[i], size = model.tensors[i].size(axis);
      const int64_t half = size / tensor.size(), first = tensor.rank() * half;
      model.tensors[i] = model.tensors[i].detach().narrow(axis, first, half).clone();
      model.tensors[i].set_requires_grad(true);
    }
    list = shared(model, rule);
    for (size_t i = 0; i < kAxis.size(); ++i) {
      const int64_t held = model.tensors[i].size(kAxis[i]);
      list[i].part = {kAxis[i], tensor.rank() * held, tensor.size() * held};
    }
  }

  at::Tensor own(size_t i, const at::Tensor& whole, const Group& tensor) const {
    if (i >= kAxis.size()) return whole;
    const int64_t held = model.tensors[i].size(kAxis[i]);
    return whole.narrow(kAxis[i], tensor.rank() * held, held);
  }

  // As backward of a loss whose gradients of all parameters are those of `one`.
  void take_gradients(const Model& one, const Group& tensor) {
    for (size_t i = 0; i < model.tensors.size(); ++i) {
      if (!one.tensors[i].grad().defined()) continue;
      const at::Tensor grad = own(i, one.tensors[i].grad(), tensor).contiguous();
      const bool is_mine = i < kAxis.size() || tensor.rank() == 0;
      model.tensors[i].mutable_grad() = is_mine ? grad.clone() : at::zeros_like(grad);
    }
  }
};

// A step of one process and of ranks that hold parts. The norm adds up in another order; without
// clipping the rest is the same bits.
void expect_same_step(Model& one, Optimizer& alone, Parts& parts, ShardedOptimizer& together,
                      Parallel& p, int64_t number) {
  Model grads(at::kBFloat16);
  for (int64_t batch = 0; batch < kBatches; ++batch) {
    one.loss(number * kBatches + batch).backward();
    alone.accumulate();
  }
  for (int64_t round = 0; round < kBatches / p.data().size(); ++round) {
    for (at::Tensor& x : grads.tensors) x.mutable_grad().reset();
    grads.loss(number * kBatches + round * p.data().size() + p.data().rank()).backward();
    parts.take_gradients(grads, p.tensor());
    together.accumulate();
  }
  clip_and_step(alone, together);
  for (size_t i = 0; i < one.tensors.size(); ++i) {
    EXPECT_TRUE(same_bits(parts.own(i, one.tensors[i].detach(), p.tensor()).contiguous(),
                          parts.model.tensors[i].detach()))
        << one.names[i] << " after step " << number;
  }
}

using Tensors = std::map<std::string, at::Tensor>;

// What one process keeps of them.
at::Tensor rows_of(const Tensors& whole, const OwnedRows& rows) {
  const at::Tensor& all = whole.at(rows.name);
  if (all.dim() == 0) return all;
  const at::Tensor own = all.narrow(0, rows.first_row, rows.tensor.size(0));
  return all.dim() == 1 ? own : own.narrow(1, rows.first_column, rows.tensor.size(1)).contiguous();
}

// The ranks keep what one process does, each element once.
void expect_all_kept(ShardedOptimizer& optimizer, const Tensors& whole, const Group& world) {
  std::map<std::string, int64_t> elements;
  for (const OwnedRows& rows : optimizer.state()) {
    EXPECT_TRUE(same_bits(rows_of(whole, rows), rows.tensor)) << rows.name;
    elements[rows.name] += rows.tensor.numel();
  }
  for (const auto& [name, all] : whole) {
    if (name.ends_with("frozen")) continue;
    const at::Tensor count = at::tensor({elements[name]});
    all_reduce_(world, count);
    EXPECT_EQ(count.item<int64_t>(), all.numel()) << name;
  }
}

TEST(ShardedOptimizer, PartsOfMatricesAreSteppedAndKept) {
  in_processes(
      {2, 4},
      [](Parallel& p) {
        const Group& tensor = p.tensor();
        const OptimizerOptions options{.max_grad_norm = 0};
        const ShardingGroups groups{.all = p.world(), .part_data = p.data()};
        Model one(at::kBFloat16);
        Optimizer alone(whole(one, UpdateRule::ADAMW), options);
        Parts several(tensor, UpdateRule::ADAMW);
        ShardedOptimizer together(several.list, options, groups,
                                  {.bucket_elements = 60'000, .overlap = false});
        expect_same_step(one, alone, several, together, p, 0);

        Tensors expected;
        for (auto& [name, whole] : alone.state()) expected[name] = whole.detach().clone();
        const auto place = [&](const OwnedRows& rows) { return rows_of(expected, rows); };
        expect_all_kept(together, expected, p.world());

        // Another one goes on from what one process wrote.
        Parts next(tensor, UpdateRule::ADAMW);
        {
          const at::NoGradGuard no_grad;
          for (size_t i = 0; i < one.tensors.size(); ++i) {
            next.model.tensors[i].copy_(next.own(i, one.tensors[i], tensor));
          }
        }
        ShardedOptimizer other(next.list, options, groups, {.overlap = false});
        other.restore(place);
        expect_same_step(one, alone, next, other, p, 1);

        Parts muon(tensor, UpdateRule::MUON);
        EXPECT_THAT(error_of([&] { ShardedOptimizer(muon.list, options, groups); }),
                    HasSubstr("[sharded_optimizer] a: expected AdamW for a part of a matrix"));
      },
      [](int64_t) { return ParallelLayout{.tensor = 2}; });
}

TEST(ShardedOptimizer, SaysWhatIsWrong) {
  Model model(at::kFloat);
  std::vector<ShardedParameter> list = shared(model, UpdateRule::ADAMW);
  list[4].experts = 2 * kExperts;
  EXPECT_THAT(error_of([&] { ShardedOptimizer(list, {}, Group()); }),
              HasSubstr("[sharded_optimizer] experts: expected 2 parts of experts on 1 ranks each "
                        "to be all 1 ranks"));
  EXPECT_THAT(error_of([&] { ShardedOptimizer({}, {}, Group()); }),
              HasSubstr("[sharded_optimizer] parameters: expected at least one, got none"));
  ShardedOptimizer optimizer(shared(model, UpdateRule::ADAMW), {}, Group());
  EXPECT_THAT(error_of([&] {
                model.loss(0).backward();
                model.loss(1).backward();
              }),
              HasSubstr("accumulate: expected a call after every backward, got a second"));
}

}  // namespace
}  // namespace moe8
