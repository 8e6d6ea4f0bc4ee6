// SPDX-License-Identifier: BSD-3-Clause
// What is taken of the tensors of a product, on their device: parts of them, largest magnitudes, and
// some elements of a weight's gradient. Which parts: sample.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/picks.h"

namespace moe8 {

/// Indices along an axis: those of all runs, one run after the other.
using Picks = std::vector<PickedRun>;

/// How many.
int64_t count_of(const Picks& picks);
/// `count` evenly spaced ones below `size`, all when there are no more.
Picks spaced(int64_t size, int64_t count);
inline Picks all(int64_t size) {
  return spaced(size, size);
}
std::vector<int64_t> indices_of(const Picks& picks, double phase);

/// to[i, j, ...] = from[axes[0] number i, axes[1] number j, ...]
struct TensorPart {
  at::Tensor from;          // 2-D or 3-D
  std::vector<Picks> axes;  // one for each axis
  at::Tensor to;            // dense
};

/// @param parts  all on one device
void take_parts(const std::vector<TensorPart>& parts, double phase);

class SampleMemory;

/// [parts of x] the largest magnitude of each part, NaN where there is one; together the parts are x.
at::Tensor largest_magnitudes(const at::Tensor& x, SampleMemory& memory);

/// float64 [groups, chunks, B, C]: summed over the chunks left^T right of the rows of each group.
/// @param left, right  [M, B], [M, C]
/// @param groups       begin and size count
at::Tensor products_of_rows(const at::Tensor& left, const at::Tensor& right, const Picks& groups,
                            SampleMemory& memory);

// ---- moe8's kernels for GPUs
/// False, or nothing, where they do not do it: another device or dtype, more than fits a launch.
bool cuda_take_parts(const std::vector<TensorPart>& parts, double phase);
std::optional<at::Tensor> cuda_largest_magnitudes(const at::Tensor& x, SampleMemory& memory);
std::optional<at::Tensor> cuda_products_of_rows(const at::Tensor& left, const at::Tensor& right,
                                                const Picks& groups, SampleMemory& memory);

}  // namespace moe8
