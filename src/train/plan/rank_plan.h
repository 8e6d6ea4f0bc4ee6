// SPDX-License-Identifier: BSD-3-Clause
// What one of several ranks of a run holds and sends, from the config alone: docs/distributed.md.
#pragma once

#include <cstdint>

#include "train/config/run_config.h"
#include "train/plan/step_memory.h"

namespace moe8 {

/// Bytes that a rank sends in a step.
struct Sent {
  double bytes = 0;
  double across = 0;  // of them, to ranks of other machines
  double inside() const { return bytes - across; }
};

/// Bytes of one rank, the mean of all; parts are cut between rows, so that one holds a little more.
struct RankPlan {
  int64_t world = 1;
  int64_t rows = 0;    // sequences of one forward and backward
  int64_t rounds = 0;  // forwards and backwards of a step
  double weights = 0;
  double masters = 0;       // of the parameters that the rank steps
  double optimizer = 0;     // their moments
  double sums = 0;          // their gradients in float32
  double travelling = 0;    // buckets of gradients on their way, at most
  double weight_forms = 0;  // between forward and backward (train/plan/memory_plan.h)
  double saved = 0;         // as of one process
  StepMemory step{};        // when all this is there
  double peak() const { return step.peak(); }
  Sent gradients;
  Sent weights_sent;
  Sent activations;  // in the tensor group
  Sent tokens;       // in the expert group, when each expert gets as many
};

/// @param machine  ranks of a machine: as many neighbours, from a multiple of it on
/// @throws c10::Error as plan_memory(), and when the batch or the experts cannot be dealt out.
RankPlan plan_rank(const RunConfig& config, int64_t world, int64_t machine = 8);

}  // namespace moe8
