// SPDX-License-Identifier: BSD-3-Clause
// Dense weights spread over the ranks of a group: tensor parallelism with sequence-parallel
// activations. Groups: parallel.h. Between products each rank has S / size of the S positions of every
// sequence; products see all positions and a part of the features:
//
//   x = gather_sequence(group, x);                     // [B, S / size, d] -> [B, S, d]
//   h = silu(w1(x)) * w3(x);                           // column parallel: [B, S, h / size]
//   y = reduce_scatter_sequence(group, w2(h));         // row parallel: [B, S / size, d]
//
// The Linears are LibTorch's, with the part of the weight that is this rank's, so that quantize_()
// finds them by their names. What the ranks then minimize is the sum of their losses: gradients of
// parts are complete; those of what every rank holds (norms, embeddings) are of its positions alone and
// have to be added up over the group.
//
// Every rank of the group calls the same functions in the same order, forward and backward. In a group
// of one nothing is sent or copied.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <string_view>

#include "moe8/parallel.h"

namespace moe8 {

/// Which axis of the weight [out, in] of a Linear the ranks of a group share out.
enum class TensorSplit {
  NONE,             // every rank has all of it
  COLUMN_PARALLEL,  // rows of [out, in]: each makes some of the out-features, none are added up
  ROW_PARALLEL,     // columns: each reads some of the in-features, results are added up
};

/// A Linear without bias with the rows [rank, rank + 1) * out / size of a weight [out, in].
/// @throws c10::Error unless size divides out
torch::nn::Linear column_parallel_linear(int64_t in, int64_t out, const Group& group);

/// With the columns [rank, rank + 1) * in / size. @throws c10::Error unless size divides in
torch::nn::Linear row_parallel_linear(int64_t in, int64_t out, const Group& group);

/// The positions of all ranks, in their order. Backward is reduce_scatter_sequence.
/// @param x    [..., S / size, ...], the same sizes on every rank
/// @param dim  of the positions
/// @return     [..., S, ...]
at::Tensor gather_sequence(const Group& group, const at::Tensor& x, int64_t dim = 1);

/// The sum over ranks, of which each keeps its positions. Backward is gather_sequence.
/// On the CPU added in the order of ranks in float32 and rounded once, on GPUs by NCCL in x's dtype.
/// @param x    [..., S, ...], bf16 or float32. @throws c10::Error unless size divides S
/// @return     [..., S / size, ...]
at::Tensor reduce_scatter_sequence(const Group& group, const at::Tensor& x, int64_t dim = 1);

/// The positions of this rank, of what all ranks have, such as tokens. A view; nothing is sent.
/// @throws c10::Error unless size divides those of x
at::Tensor sequence_part(const Group& group, const at::Tensor& x, int64_t dim = 1);

/// RMSNorm over the features of all ranks, of which each has a part of every position:
///
///   out = x / sqrt(sum over ranks and features of x^2 / width + eps) * weight
///
/// in float32, rounded once. Forward and backward add up one float32 number a position over the ranks.
/// @param x       [..., width / size], bf16 or float32
/// @param weight  [width], of x's dtype: of all ranks; the gradient is of this rank's features and 0 beside
///                them
/// @throws c10::Error unless weight has the features of all ranks
at::Tensor rms_norm_in_parts(const Group& group, const at::Tensor& x, const at::Tensor& weight,
                             double eps);

/// How Transformer splits its parameter of this name: wq, wk, wv of attention, w1 and w3 of the dense
/// and shared feed-forward are column parallel, wo and w2 row parallel, everything else is whole: also
/// the biases of the latter.
TensorSplit tensor_split(std::string_view parameter);

}  // namespace moe8
