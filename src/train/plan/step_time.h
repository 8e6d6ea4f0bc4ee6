// SPDX-License-Identifier: BSD-3-Clause
// How long a step of several ranks would take on H200s, from what was measured on one and two of them:
// docs/distributed.md.
#pragma once

#include "train/config/run_config.h"
#include "train/plan/rank_plan.h"

namespace moe8 {

/// What a GPU and its links do in a second.
struct StepRates {
  double flops = 0;    // of the model (train/report/flops.h), in forward and backward
  double stepped = 0;  // parameters, by AdamW
  double inside = 0;   // bytes that a rank sends to others of its machine, by what they cost a step
  double across = 0;   // to other machines
};

/// Of H200s and NVLink, measured with configs/4b_bench.toml in this recipe, or in the one whose
/// products are most like it. Sending takes blocks and memory from what computes beside it, so that
/// `inside` is less than what exchanges reach by themselves.
/// @param across  of a GPU's own network adapter, which was not measured
StepRates h200_rates(const RunConfig& config, double across);

/// Milliseconds. To other machines is sent beside what computes, and counts by how much longer it
/// takes than that; within a machine it counts whole, of weights by half.
struct StepTime {
  double compute = 0;      // forward and backward
  double tokens = 0;       // on their way to experts and back; nothing is beside them
  double activations = 0;  // on their way in tensor groups; likewise
  double gradients = 0;    // that travel beside backward
  double update = 0;       // the optimizer, beside which weights travel
  double total() const { return compute + tokens + activations + gradients + update; }
};

StepTime plan_step_time(const RunConfig& config, const RankPlan& plan, const StepRates& rates);

}  // namespace moe8
