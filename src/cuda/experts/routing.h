// SPDX-License-Identifier: BSD-3-Clause
// Which rows which expert gets: a stable counting sort of the router's choices. No Torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"

namespace moe8::cuda {

enum class IndexType { I32, I64 };

/// A slot is one choice of a token, t * k + j. A row is a slot in the order of experts; slots of
/// one expert keep their order. Slots whose expert is outside [0, groups) come last and belong to
/// no group. Both permutations cover every slot and every row.
struct ExpertOrderArgs {
  const void* experts;  // [slots]
  IndexType experts_type;
  int64_t slots;    // T * k, below 2^31
  int64_t groups;   // E, at most kMaxGroups
  void* workspace;  // expert_order_workspace_bytes(slots, groups), 16-byte aligned

  int32_t* offs;          // [groups] end rows
  void* counts;           // [groups] rows; null: not wanted
  IndexType counts_type;  // of counts
  int32_t* slot_of_row;   // [slots]
  int32_t* row_of_slot;   // [slots]
};

int64_t expert_order_workspace_bytes(int64_t slots, int64_t groups);

/// Deterministic; writes every element of its outputs, allocates nothing, never waits for the host.
LaunchStatus launch_expert_order(const ExpertOrderArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
