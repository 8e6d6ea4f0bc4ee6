// SPDX-License-Identifier: BSD-3-Clause
// What token_exchange.cpp does on GPUs by the kernels of src/cuda/experts/exchange.h; in a build
// without CUDA none of these is ever called.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "moe8/routing.h"

namespace moe8 {

/// To which ranks tokens go.
struct Destinations {
  at::Tensor ranks;    // [T, min(k, size)]: ascending, each once; -1 in what is left
  at::Tensor choices;  // [size]: slots whose expert the rank has
};

/// What goes with tokens beside their data, a row each.
struct BesideTokens {
  at::Tensor experts;  // int32 or int64 [rows, k]
  at::Tensor scores;   // float32 [rows, k], or undefined
  at::Tensor scale;    // uint8 [rows, bytes], or undefined
};

/// What a row of it holds, and whose it becomes.
struct BesideLayout {
  int64_t top_k;
  bool has_scores;
  int64_t scale_bytes;
  int64_t first_expert;  // of the rank that receives
  int64_t own_experts;
};

bool cuda_takes_exchange(const at::Tensor& experts, int64_t n_experts, int64_t ranks,
                         int64_t scale_bytes);

Destinations cuda_destinations(const at::Tensor& experts, int64_t n_experts, int64_t ranks);

/// uint8 [order.rows(), bytes]: experts, scores and scales of the token of each row.
at::Tensor cuda_pack_beside(const BesideTokens& tokens, const ExpertOrder& order);

/// The way back: experts count from layout.first_expert, int32; -1 with a score of 0 where they are
/// another rank's.
BesideTokens cuda_unpack_beside(const at::Tensor& bytes, const BesideLayout& layout);

}  // namespace moe8
