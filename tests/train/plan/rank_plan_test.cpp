// SPDX-License-Identifier: BSD-3-Clause
// What the plan says that ranks hold and send against what they do: worlds of 2 and 4 processes, and
// all ranks of a world of 64, one after the other, with nobody to talk to.
#include "train/plan/rank_plan.h"

#include <torch/torch.h>

#include <chrono>
#include <set>
#include <thread>

#include "dist/activity.h"
#include "dist/layout.h"
#include "moe8/lora.h"
#include "moe8/transformer.h"
#include "testing/compare.h"
#include "testing/counting_allocator.h"
#include "testing/fake_group.h"
#include "testing/processes.h"
#include "train/config/trained_parameters.h"
#include "train/plan/memory_plan.h"
#include "train/stepper.h"

namespace moe8 {
namespace {

using testing::CountingAllocator;
using testing::error_of;
using ::testing::HasSubstr;
using testing::in_processes;

RunConfig small_config() {
  RunConfig config;
  config.model.vocab_size = 256;
  config.model.dim = 64;
  config.model.n_layers = 3;
  config.model.n_heads = config.model.n_kv_heads = 4;
  config.model.max_seq_len = 32;
  config.model.dense_hidden_dim = 128;
  config.model.hidden_dim = 64;
  config.model.n_experts = 16;
  config.model.top_k = 3;
  config.training.seq_len = 32;
  config.training.batch_size = 2;
  config.training.accumulation = 64;
  return config;
}

// The groups of a rank: real ones or of nobody.
struct Groups {
  Group all, data, expert, expert_data, tensor;
};

ModelPart part_of(const Groups& groups, const RunConfig& config) {
  const int64_t parts = groups.expert.size(), n = config.model.n_experts;
  ExpertPart experts;
  if (parts > 1) experts = {groups.expert.rank() * (n / parts), n};
  return {experts, groups.tensor.rank(), groups.tensor.size()};
}

// Bytes of one rank, in a step of one batch.
struct Counted {
  double weights = 0, masters = 0, moments = 0, sums = 0, stepper = 0, saved = 0;
  double sent_in_backward = 0, sent_after = 0;

  std::vector<double> values() const {
    return {weights, masters, moments, sums, stepper, saved, sent_in_backward, sent_after};
  }
  static Counted from(const std::vector<double>& v) {
    return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]};
  }
};

// Bytes of tensors, when the threads of Gloo, if there are any, have let go of what was sent.
int64_t alive() {
  int64_t bytes = CountingAllocator::get().alive();
  constexpr int kSame = 20;  // of a busy machine they may wait for their turn
  for (int same = launch_from_environment().world > 1 ? 0 : kSame; same < kSame;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const int64_t now = CountingAllocator::get().alive();
    same = now == bytes ? same + 1 : 0;
    bytes = now;
  }
  return bytes;
}

at::Tensor loss_of(Transformer& model, const at::Tensor& tokens, const at::Tensor& targets) {
  const at::Tensor logits = model(tokens).to(at::kFloat);
  return torch::nn::functional::cross_entropy(logits.flatten(0, 1), targets);
}

// As a run does.
void freeze(Transformer& model, const RunConfig& config) {
  if (config.lora.rank > 0) return add_lora(*model, config.lora.options());
  std::set<std::string> trained;
  for (const TrainedParameter& one : trained_parameters(config)) trained.insert(one.parameter.name);
  for (const auto& parameter : model->named_parameters()) {
    parameter.value().requires_grad_(trained.contains(parameter.key()));
  }
}

Counted count(const RunConfig& config, const Groups& groups) {
  Counted counted;
  Transformer model(config.model, 1, at::kBFloat16, groups.expert, groups.tensor);
  freeze(model, config);
  model->set_recompute(config.training.activation_checkpointing);
  for (const at::Tensor& x : model->parameters()) counted.weights += double(x.nbytes());
  const int64_t before = alive();
  Stepper stepper(*model, config.optimizer, config.training.weights,
                  {.all = groups.all, .expert_data = groups.expert_data, .part_data = groups.data},
                  part_of(groups, config));
  at::manual_seed(static_cast<uint64_t>(groups.data.rank()) + 1);
  const at::Tensor tokens = at::randint(256, {config.training.batch_size, 32}, at::kLong);
  const at::Tensor targets = sequence_part(groups.tensor, tokens).flatten().contiguous();
  const Activity start = activity();
  const int64_t before_forward = alive();
  {
    const at::Tensor loss = loss_of(model, tokens, targets);
    counted.saved = double(alive() - before_forward);
    loss.backward();
  }
  stepper.accumulate();
  counted.sums = double(alive() - before_forward);
  const Activity summed = activity();
  counted.sent_in_backward = double(summed.bytes_sent - start.bytes_sent);
  stepper.clip_gradients();
  const int64_t sent_by_norm = activity().bytes_sent;
  stepper.step(1e-3);
  counted.sent_after = double(activity().bytes_sent - sent_by_norm);
  counted.stepper = double(alive() - before);
  for (const TensorPiece& piece : stepper.state()) {
    if (piece.name.starts_with("steps.")) continue;
    (piece.name.starts_with("master.") ? counted.masters : counted.moments) +=
        double(piece.data.nbytes());
  }
  return counted;
}

// Means of the ranks against the plan.
void expect_planned(const RunConfig& config, int64_t world, const Counted& mean) {
  RunConfig one_round = config;
  one_round.training.accumulation = world / config.parallel.tensor;
  const RankPlan plan = plan_rank(one_round, world);
  ASSERT_EQ(plan.rounds, 1);
  EXPECT_EQ(mean.weights, plan.weights);
  EXPECT_EQ(mean.masters, plan.masters);
  EXPECT_EQ(mean.moments, plan.optimizer);
  EXPECT_EQ(mean.sums, plan.sums);
  // Beside them numbers of a few bytes per parameter.
  EXPECT_GE(mean.stepper, plan.masters + plan.optimizer);
  EXPECT_LT(mean.stepper, 1.05 * (plan.masters + plan.optimizer));
  const double sent = plan.gradients.bytes + plan.activations.bytes;
  if (config.parallel.expert == 1) {
    EXPECT_EQ(mean.sent_in_backward, sent);
    if (config.trains_in_part()) return;  // of what frozen weights do not keep the plan counts all
    // Recomputed, the most is there in backward.
    if (config.training.activation_checkpointing != Recompute::NONE) return;
    // Offsets and counts of experts and the loss with its number of tokens are left out.
    const TransformerConfig& m = config.model;
    const double left_out = double((m.n_layers - m.n_dense_layers) * m.n_experts * 4 + 8);
    EXPECT_EQ(mean.saved, plan.saved + left_out);
  } else {
    EXPECT_GT(mean.sent_in_backward, sent);
  }
  // Ranks send as much as the one that has most.
  EXPECT_GE(mean.sent_after, plan.weights_sent.bytes);
}

struct Split {
  int64_t tensor, expert;
};

class RankPlanTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    CountingAllocator::install();
    at::set_num_threads(1);  // small products, many processes
  }
};

TEST_F(RankPlanTest, IsWhatRanksHoldAndSend) {
  for (const auto& [tensor, expert] : {Split{1, 1}, Split{2, 1}, Split{1, 2}, Split{2, 2}}) {
    const ParallelLayout layout{.expert = expert, .tensor = tensor};
    std::vector<int64_t> worlds{4};
    if (tensor * expert < 4) worlds.insert(worlds.begin(), 2);
    in_processes(
        worlds,
        [&](Parallel& p) {
          RunConfig config = small_config();
          config.parallel.expert = layout.expert;
          config.parallel.tensor = layout.tensor;
          const Counted own =
              count(config, {p.world(), p.data(), p.expert(), p.expert_data(), p.tensor()});
          const at::Tensor all = at::tensor(own.values(), at::kDouble);
          all_reduce_(p.world(), all);
          const auto n = double(p.world().size());
          const at::Tensor mean = all / n;
          expect_planned(config, p.world().size(),
                         Counted::from({mean.const_data_ptr<double>(),
                                        mean.const_data_ptr<double>() + mean.numel()}));
        },
        [&](int64_t) { return layout; });
  }
}

// A tensor group that makes norms over the features of all its ranks.
TEST_F(RankPlanTest, KnowsNormsInParts) {
  for (const Recompute recompute : {Recompute::NONE, Recompute::FULL}) {
    in_processes(
        {2},
        [&](Parallel& p) {
          RunConfig config = small_config();
          config.model.qk_norm = QkNorm::WIDTH;
          config.parallel.tensor = 2;
          config.training.activation_checkpointing = recompute;
          const Counted own =
              count(config, {p.world(), p.data(), p.expert(), p.expert_data(), p.tensor()});
          const at::Tensor all = at::tensor(own.values(), at::kDouble);
          all_reduce_(p.world(), all);
          const at::Tensor mean = all / 2;
          expect_planned(config, 2,
                         Counted::from({mean.const_data_ptr<double>(),
                                        mean.const_data_ptr<double>() + mean.numel()}));
        },
        [](int64_t) { return ParallelLayout{.tensor = 2}; });
  }
}

// What is trained in part, beside all that is held.
TEST_F(RankPlanTest, KnowsWhatIsTrained) {
  RunConfig adapters = small_config(), frozen = small_config();
  adapters.lora = {.rank = 4, .alpha = 8};
  frozen.optimizer.frozen = {"re:.*\\.experts\\.w[12]", "re:.*attention.*",
                             "tok_embeddings.weight"};
  for (const RunConfig& chosen : {adapters, frozen}) {
    for (const int64_t expert : {1, 2}) {
      in_processes(
          {2, 4},
          [&](Parallel& p) {
            RunConfig config = chosen;
            config.parallel.expert = expert;
            const Counted own =
                count(config, {p.world(), p.data(), p.expert(), p.expert_data(), p.tensor()});
            const at::Tensor mean = at::tensor(own.values(), at::kDouble);
            all_reduce_(p.world(), mean);
            mean.div_(double(p.world().size()));
            expect_planned(config, p.world().size(),
                           Counted::from({mean.const_data_ptr<double>(),
                                          mean.const_data_ptr<double>() + mean.numel()}));
          },
          [&](int64_t) { return ParallelLayout{.expert = expert}; });
    }
  }
}

// Forward, backward and step of every rank of 64 that are not there.
TEST_F(RankPlanTest, HoldsForAllRanksOf64) {
  constexpr int64_t kWorld = 64;
  RunConfig config = small_config();
  config.parallel.expert = 8;
  config.parallel.tensor = 2;
  std::vector<double> sum(Counted().values().size());
  for (int64_t rank = 0; rank < kWorld; ++rank) {
    const LayoutGroups g = layout_groups({.expert = 8, .tensor = 2}, kWorld, rank);
    const auto group = [&](const char* name, const std::vector<int64_t>& ranks) {
      return testing::fake_group(name, ranks, rank);
    };
    const std::vector<double> own =
        count(config, {group("world", g.world), group("data", g.data), group("expert", g.expert),
                       group("expert_data", g.expert_data), group("tensor", g.tensor)})
            .values();
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += own[i] / double(kWorld);
  }
  expect_planned(config, kWorld, Counted::from(sum));
}

TEST_F(RankPlanTest, AGpuCountsQuantizedWeightsThatBackwardWaitsFor) {
  RunConfig config = small_config();
  config.training.device = TrainingDevice::CUDA;
  config.training.recipe = "fp8_rowwise";
  config.training.batch_size = 4;
  config.training.accumulation = 1;
  const double one = plan_memory(config).weight_forms;
  EXPECT_GT(one, 0);
  for (const int64_t world : {1, 4}) {
    const RankPlan plan = plan_rank(config, world);
    EXPECT_EQ(plan.weight_forms, one);
    EXPECT_EQ(plan.step.end_of_backward(), plan.step.fixed + plan.sums);
  }
  config.training.accumulation = 8;  // two backwards of each rank
  const RankPlan twice = plan_rank(config, 4);
  EXPECT_EQ(twice.weight_forms, 2 * one);
  EXPECT_EQ(twice.step.end_of_backward(), twice.step.fixed + twice.sums + 2 * one);
}

// Of its peak: one rank is one process, and several hold less but for what travels.
TEST_F(RankPlanTest, HoldsMostWhereOneProcessDoes) {
  RunConfig config = small_config();
  config.training.accumulation = 1;
  config.training.batch_size = 8;
  EXPECT_EQ(plan_rank(config, 1).peak(), plan_memory(config).peak());
  const RankPlan plan = plan_rank(config, 8);
  EXPECT_GE(plan.peak(), plan.step.begin_of_backward());
  EXPECT_GE(plan.peak(), plan.step.end_of_backward());
  EXPECT_LE(plan.peak(), plan.step.begin_of_backward() + plan.sums + plan.travelling);
  EXPECT_EQ(plan.step.begin_of_backward(), plan.step.fixed + plan.saved + plan.weight_forms);
}

TEST_F(RankPlanTest, KnowsWhatLeavesTheMachine) {
  RunConfig config = small_config();
  config.parallel.expert = 8;
  config.parallel.tensor = 2;
  const RankPlan of_8 = plan_rank(config, 64, 8), of_64 = plan_rank(config, 64, 64);
  EXPECT_EQ(of_64.gradients.bytes, of_8.gradients.bytes);
  EXPECT_EQ(of_64.gradients.across, 0);
  // Of rank 0's seven others 2, 4 and 6 have experts in its machine.
  EXPECT_DOUBLE_EQ(of_8.tokens.across, of_8.tokens.bytes * 4 / 7);
  EXPECT_GT(of_8.activations.bytes, 0);
  EXPECT_EQ(of_8.activations.across, 0);
  // Of those that hold the same experts, 1, 16, 17, 32, ... are six elsewhere; of all 56, of every
  // second one 28.
  config.model.dim = config.model.dense_hidden_dim = 8;
  config.model.hidden_dim = 1 << 16;
  config.model.n_shared_experts = 0;
  const Sent experts = plan_rank(config, 64, 8).gradients;
  EXPECT_NEAR(experts.across / experts.bytes, 6.0 / 7, 1e-3);
}

TEST_F(RankPlanTest, SaysWhatDoesNotDivide) {
  RunConfig config = small_config();
  config.parallel.tensor = 4;
  EXPECT_THAT(error_of([&] { plan_rank(config, 6); }),
              HasSubstr("[plan] --world: expected a multiple of parallel.expert x tensor = 1 x 4, "
                        "got 6"));
}

}  // namespace
}  // namespace moe8
