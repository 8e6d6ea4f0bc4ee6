// SPDX-License-Identifier: BSD-3-Clause
#include "train/plan/rank_plan.h"

#include <algorithm>

#include "base/check.h"
#include "moe8/sharded_optimizer.h"
#include "nn/parameter_counts.h"
#include "train/batch_share.h"
#include "train/plan/memory_plan.h"

namespace moe8 {
namespace {

// Elements of stacked experts, and of all else.
struct Elements {
  double experts = 0;
  double others = 0;
};

Elements elements_of(const TransformerConfig& config) {
  Elements elements;
  for (const ParameterShape& parameter : parameter_shapes(config)) {
    double count = 1;
    for (const int64_t size : parameter.shape) count *= static_cast<double>(size);
    (parameter.shape.size() == 3 ? elements.experts : elements.others) += count;
  }
  return elements;
}

// Of what n ranks hold alike, the share that each sends when each steps a part.
double share_sent(double ranks) {
  return (ranks - 1) / ranks;
}

}  // namespace

RankPlan plan_rank(const RunConfig& config, int64_t world) {
  MOE8_CHECK(world >= 1 && world % config.parallel.expert == 0, "plan", "--world",
             "expected a multiple of parallel.expert = ", config.parallel.expert, ", got ", world);
  const TrainingConfig& t = config.training;
  const BatchShare share(t.batch_size, t.accumulation, world);
  RunConfig own = config;  // what a rank computes at once
  own.training.batch_size = share.rows();
  const MemoryPlan one = plan_memory(own);

  const auto ranks = static_cast<double>(world),
             parts = static_cast<double>(config.parallel.expert);
  const Elements all = elements_of(config.model);
  const double experts = all.experts / parts, held = all.others + experts;
  const double of_all = held / (all.experts + all.others);
  const double width = t.weights == Weights::FLOAT32 ? 4 : 2;
  constexpr double kFloat = 4;
  // Two buckets travel and the next is packed; sent and received.
  constexpr double kTravelling = 2 * 3;
  const auto bucket = static_cast<double>(ShardingOptions().bucket_elements);

  RankPlan plan;
  plan.world = world;
  plan.rows = share.rows();
  plan.rounds = share.rounds();
  plan.weights = one.weights * of_all;
  plan.masters = one.masters / ranks;
  plan.optimizer = one.optimizer / ranks;
  plan.sums = kFloat * (all.experts + all.others) / ranks;
  plan.travelling = width * std::min(kTravelling * bucket, 2 * held);
  plan.weight_forms = one.weight_forms * of_all;
  plan.saved = one.saved();
  plan.weights_sent =
      width * (all.others * share_sent(ranks) + experts * share_sent(ranks / parts));
  plan.gradients_sent = plan.weights_sent * static_cast<double>(share.rounds());
  return plan;
}

}  // namespace moe8
