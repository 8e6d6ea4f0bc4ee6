// SPDX-License-Identifier: BSD-3-Clause
// Tokens on their way to the ranks that hold their experts: which ranks those are, and what goes with a
// token beside its data. No Torch. Reference: src/reference/exchange.h. All are deterministic, write
// every byte of their outputs, allocate nothing and never wait for the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/experts/routing.h"
#include "cuda/launch_status.h"

namespace moe8::cuda {

/// Rank r holds the experts [r, r + 1) * own_experts; others are nowhere.
struct RanksOfTokensArgs {
  const void* experts;  // [tokens, top_k]
  IndexType experts_type;
  int64_t tokens;
  int64_t top_k;
  int64_t ranks;  // at most kMostRanks
  int64_t own_experts;

  int32_t* of_tokens;  // [tokens, min(top_k, ranks)]: ascending, each once; -1 in what is left
  int32_t* choices;    // [ranks]: slots whose expert the rank has
};
LaunchStatus launch_ranks_of_tokens(const RanksOfTokensArgs& args, cudaStream_t stream);

constexpr int64_t kMostRanks = 8192;

/// A row beside the data: [top_k] experts as int32, [top_k] scores as float32 where there are any, then
/// `scale_bytes`, a multiple of 4.
struct BesideRow {
  int64_t top_k;
  bool has_scores;
  int64_t scale_bytes;

  int64_t words() const { return top_k * (has_scores ? 2 : 1) + scale_bytes / 4; }
};

/// Row r of `out` is that of token slot_of_row[r] / ranks_of_token.
struct PackBesideArgs {
  BesideRow row;
  const void* experts;  // [tokens, top_k]
  IndexType experts_type;
  const float* scores;  // [tokens, top_k]; null: none
  const void* scale;    // [tokens, scale_bytes], 4-byte aligned; null: none

  const int32_t* slot_of_row;  // [rows]
  int64_t ranks_of_token;      // slots of a token
  int64_t rows;
  uint32_t* out;  // [rows, words]
};
LaunchStatus launch_pack_beside(const PackBesideArgs& args, cudaStream_t stream);

/// The way back, as a rank sees it that holds own_experts from first_expert on: experts count from
/// there, and are -1, with a score of 0, where another rank has them.
struct UnpackBesideArgs {
  BesideRow row;
  const uint32_t* in;  // [rows, words]
  int64_t rows;
  int64_t first_expert;
  int64_t own_experts;

  int32_t* experts;  // [rows, top_k]
  float* scores;     // [rows, top_k]; null: none
  uint32_t* scale;   // [rows, scale_bytes / 4]; null: none
};
LaunchStatus launch_unpack_beside(const UnpackBesideArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
