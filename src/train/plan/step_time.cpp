// SPDX-License-Identifier: BSD-3-Clause
#include "train/plan/step_time.h"

#include <algorithm>

#include "moe8/transformer_config.h"
#include "train/report/flops.h"

namespace moe8 {
namespace {

constexpr double kMilliseconds = 1e3;
constexpr double kBackward = 2.0 / 3;  // of forward and backward

}  // namespace

StepRates h200_rates(const RunConfig& config, double across) {
  const bool fp8 = config.convert.empty() && config.training.recipe.starts_with("fp8");
  return {.flops = fp8 ? 490e12 : 395e12, .stepped = 123e9, .inside = 175e9, .across = across};
}

StepTime plan_step_time(const RunConfig& config, const RankPlan& plan, const StepRates& rates) {
  const auto inside = [&](const Sent& sent) {
    return kMilliseconds * sent.inside() / rates.inside;
  };
  const auto across = [&](const Sent& sent) { return kMilliseconds * sent.across / rates.across; };
  // Both kinds of links are used at once.
  const auto waited = [&](const Sent& sent) { return std::max(inside(sent), across(sent)); };
  const TrainingConfig& t = config.training;
  const double tokens =
      double(plan.rounds * plan.rows * t.seq_len) / double(config.parallel.tensor);
  const double again = t.activation_checkpointing == Recompute::FULL ? 4.0 / 3 : 1;
  const double flops = tokens * model_flops(config.model, t.seq_len) * again;
  const double stepped = double(count_parameters(config.model).total) / double(plan.world);
  StepTime time;
  time.compute = kMilliseconds * flops / rates.flops;
  time.tokens = waited(plan.tokens);
  time.activations = waited(plan.activations);
  time.gradients =
      std::max(inside(plan.gradients), across(plan.gradients) - kBackward * time.compute);
  time.update = std::max(kMilliseconds * stepped / rates.stepped + inside(plan.weights_sent) / 2,
                         across(plan.weights_sent));
  return time;
}

}  // namespace moe8
