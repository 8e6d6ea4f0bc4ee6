// SPDX-License-Identifier: BSD-3-Clause
// The rows of a token's experts summed up: the way back from the order of experts. No Torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/experts/routing.h"
#include "cuda/launch_status.h"
#include "formats/float_type.h"

namespace moe8::cuda {

/// out[t] = sum over j of w * (rows[row_of_slot[s]] + bias[experts[s]]) with s = t * k + j and
/// w = scores[s]: float32, j ascending from 0.0, each product and each sum rounded by itself, the
/// result rounded once. Slots whose row is past the last group add nothing. Without scores w is 1.
struct CombineArgs {
  const void* rows;  // [tokens * top_k, columns]; those past the last group are not read
  FloatType rows_type;
  int64_t tokens;   // T
  int64_t top_k;    // k
  int64_t columns;  // any

  const int32_t* row_of_slot;     // [tokens * top_k]
  const int32_t* rows_in_groups;  // [1] end of the last group (GroupMetadata::begins + groups);
                                  // null: all rows are in groups
  const float* scores;            // [tokens * top_k]; null: 1

  const void* bias;  // [groups, columns]; null: none
  FloatType bias_type;
  const void* experts;  // [tokens * top_k]; read with bias only, and of slots in groups only
  IndexType experts_type;

  void* out;  // [tokens, columns]
  FloatType out_type;
};

/// Deterministic; writes every element of `out`, allocates nothing, never waits for the host.
LaunchStatus launch_combine(const CombineArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
