// SPDX-License-Identifier: BSD-3-Clause
#include "train/plan/rank_plan.h"

#include <algorithm>
#include <array>
#include <vector>

#include "base/check.h"
#include "dist/layout.h"
#include "experts/token_wire.h"
#include "moe8/lora.h"
#include "moe8/sharded_optimizer.h"
#include "moe8/tensor_parallel.h"
#include "train/batch_share.h"
#include "train/config/trained_parameters.h"
#include "train/plan/memory_plan.h"
#include "train/plan/planned_conversion.h"
#include "train/plan/saved_activations.h"

namespace moe8 {
namespace {

using bytes_of::kFloat;

// Of a group that has rank 0, the share of the others that are on other machines.
double share_across(const std::vector<int64_t>& group, int64_t machine) {
  const auto away = std::ranges::count_if(group, [&](int64_t rank) { return rank >= machine; });
  return group.size() > 1 ? double(away) / double(group.size() - 1) : 0;
}

// What a rank holds of parameters that the same ranks hold, and who these are.
struct Held {
  double elements = 0;
  double largest = 0;  // of them, those of one parameter
  double ranks = 1;
  double across = 0;  // share_across()

  Held(const std::vector<int64_t>& group, int64_t machine)
      : ranks(double(group.size())), across(share_across(group, machine)) {}
  double stepped() const { return elements / ranks; }
  // Of what n ranks hold alike each sends the others' share when each steps a part.
  double sent() const { return elements * (ranks - 1) / ranks; }
  // Of an element that a rank steps. A gradient that is added to no other stays as backward left it.
  double sum_bytes(double rounds, double width) const {
    return ranks * rounds > 1 ? kFloat : width;
  }
};

double numel(const ParameterShape& parameter) {
  double count = 1;
  for (const int64_t size : parameter.shape) count *= double(size);
  return count;
}

// By who holds the same: everything of the model that is whole, experts, parts of matrices.
struct HeldByGroups {
  Held whole, experts, parts;

  HeldByGroups(const LayoutGroups& groups, int64_t machine)
      : whole(groups.world, machine),
        experts(groups.expert_data, machine),
        parts(groups.data, machine) {}

  Held& of(const std::string& name) {
    if (name.find(".moe.experts.") != std::string::npos) return experts;
    return tensor_split(name) == TensorSplit::NONE ? whole : parts;
  }
  std::array<const Held*, 3> all() const { return {&whole, &experts, &parts}; }
};

HeldByGroups held_by(const RunConfig& config, const LayoutGroups& groups, int64_t machine) {
  HeldByGroups held(groups, machine);
  for (const TrainedParameter& trained : trained_parameters(config)) {
    const ParameterShape& parameter = trained.parameter;
    const double count = numel(held_shape(parameter, config.parallel));
    Held& one = held.of(parameter.name);
    one.elements += count;
    one.largest = std::max(one.largest, count);
  }
  return held;
}

// Of how many exchanges forward and backward of a layer consist when each half of it has one of its
// own at either end, which backward mirrors, and forward is computed again where it is recomputed.
double exchanges(bool first_half, bool second_half, Recompute recompute) {
  const double of_first = recompute == Recompute::FULL ? 6 : 4;
  const double of_second = recompute == Recompute::NONE ? 4 : 6;
  return (first_half ? of_first : 0) + (second_half ? of_second : 0);
}

// Bytes per token of the sums over features of norms over the whole width of queries and keys, each of
// which is made and sent around, forward and backward.
double sums_of_norms(const RunConfig& config) {
  if (config.model.qk_norm != QkNorm::WIDTH) return 0;
  constexpr double kNorms = 2, kWays = 2;
  const bool again = config.training.activation_checkpointing == Recompute::FULL;
  const double sums = again ? 3 : 2;
  return double(config.model.n_layers) * sums * kNorms * kWays * kFloat;
}

// Each rank sends its part of the tokens to the others, or their parts of its sums.
double activations_sent(const RunConfig& config, double tokens, double width) {
  const TransformerConfig& m = config.model;
  const auto ranks = double(config.parallel.tensor);
  double count = 0;
  for (int64_t layer = 0; layer < m.n_layers; ++layer) {
    const bool feeds = layer < m.n_dense_layers || m.n_shared_experts > 0;
    count += exchanges(true, feeds, config.training.activation_checkpointing);
  }
  const double of_features = count * double(m.dim) * width;
  return (of_features + sums_of_norms(config)) * tokens / ranks * (ranks - 1);
}

// Adapters beside w1 and w3 read the values of tokens, which then travel as such.
bool adapters_read_tokens(const RunConfig& config) {
  if (config.lora.rank == 0) return false;
  const auto adapters = lora_shapes(config.model, config.lora.options());
  return std::ranges::any_of(adapters, [](const ParameterShape& one) {
    return one.name.find(".moe.experts.w1_") != std::string::npos ||
           one.name.find(".moe.experts.w3_") != std::string::npos;
  });
}

// The table of docs/distributed.md; tokens are those of this rank.
double tokens_sent(const RunConfig& config, double tokens, double width) {
  const TransformerConfig& m = config.model;
  const auto d = double(m.dim), k = double(m.top_k);
  const bool as_values = adapters_read_tokens(config);
  double bytes = 0;
  for (const ConversionRow& row : plan_conversion(config).rows) {
    if (!row.fqn.ends_with(".experts.w1")) continue;
    const bool codes = !as_values && row.config && !RowCode::refusal(*row.config, RowsOf::INPUT);
    const double wire =
        codes ? d + double(RowCode(m.dim, at::kBFloat16, *row.config, RowsOf::INPUT).scale_bytes())
              : width * d;
    const double forward = wire + 8 * k + width * d, backward = 2 * width * d + kFloat * k;
    const bool again = config.training.activation_checkpointing != Recompute::NONE;
    bytes += (again ? 2 : 1) * forward + backward;
  }
  const int64_t ranks = config.parallel.expert;
  return tokens * double(ranks - 1) * chance_of_rank(m, ranks) * bytes;
}

}  // namespace

RankPlan plan_rank(const RunConfig& config, int64_t world, int64_t machine) {
  const ParallelConfig& parallel = config.parallel;
  MOE8_CHECK(world >= 1 && world % (parallel.expert * parallel.tensor) == 0, "plan", "--world",
             "expected a multiple of parallel.expert x tensor = ", parallel.expert, " x ",
             parallel.tensor, ", got ", world);
  const LayoutGroups groups =
      layout_groups({.expert = parallel.expert, .tensor = parallel.tensor}, world, 0);
  const TrainingConfig& t = config.training;
  const BatchShare share(t.batch_size, t.accumulation, world / parallel.tensor);
  RunConfig own = config;  // what a rank computes at once
  own.training.batch_size = share.rows();
  own.training.accumulation = share.rounds();
  const MemoryPlan whole = plan_memory(own), one = plan_memory(own, parallel);

  const double width = t.weights == Weights::FLOAT32 ? 4 : 2;
  const ShardingOptions sharding;
  const auto rounds = double(share.rounds());

  RankPlan plan;
  plan.world = world;
  plan.rows = share.rows();
  plan.rounds = share.rounds();
  plan.weights = one.weights;
  plan.masters = whole.masters / double(world);
  plan.optimizer = whole.optimizer / double(world);
  HeldByGroups held = held_by(config, groups, machine);
  double shared = 0, bucket = double(sharding.bucket_elements);
  for (const Held* of : held.all()) {
    plan.sums += of->stepped() * of->sum_bytes(rounds, width);
    plan.weights_sent.bytes += width * of->sent();
    plan.weights_sent.across += width * of->sent() * of->across;
    if (of->ranks == 1) continue;
    shared += of->elements;
    bucket = std::max(bucket, of->largest);  // a parameter is not cut
  }
  // Some travel and the next is there; sent and received.
  const auto buckets = double(sharding.gradients_in_flight + 1);
  plan.travelling = width * 2 * std::min(buckets * bucket, shared);
  plan.weight_forms = one.weight_forms;
  plan.saved = one.saved();
  plan.step = one.step;
  plan.step.fixed = plan.weights + plan.masters + plan.optimizer;
  if (one.step.before > 0) {
    plan.step.before += plan.masters + plan.optimizer - one.masters - one.optimizer;
  }
  plan.step.most_travelling = plan.travelling;
  for (PartMemory& part : plan.step.parts) part.gradients = part.earlier = 0;
  for (const TrainedParameter& trained : trained_parameters(config)) {
    const ParameterShape& parameter = trained.parameter;
    const Held& of = held.of(parameter.name);
    const double count = numel(held_shape(parameter, parallel));
    const double sum = count / of.ranks * of.sum_bytes(rounds, width);
    PartMemory& part = plan.step.parts[part_of_name(parameter.name, config.model)];
    part.gradients += sum;
    if (rounds > 1) part.earlier += sum;
    if (of.ranks > 1) part.travelling += 2 * width * count;
  }
  plan.gradients = {plan.weights_sent.bytes * rounds, plan.weights_sent.across * rounds};
  const double tokens = double(share.rows()) * double(t.seq_len);
  const auto in_group = [&](double bytes, const std::vector<int64_t>& group) {
    return Sent{rounds * bytes, rounds * bytes * share_across(group, machine)};
  };
  plan.activations = in_group(activations_sent(config, tokens, width), groups.tensor);
  plan.tokens =
      in_group(tokens_sent(config, tokens / double(parallel.tensor), width), groups.expert);
  return plan;
}

}  // namespace moe8
