// SPDX-License-Identifier: BSD-3-Clause
// Inputs of tests: hard values, integers whose sums are exact, ragged groups.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace moe8::testing {

/// Normal values times 2^(-spread..spread) at random, a fraction of zeros: many binades at once.
at::Tensor wide_normal(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed, int spread = 6);

/// Every kind of float mixed in: +-0, subnormals, ties, the largest, and (when asked) Inf and NaN.
at::Tensor hard_values(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed,
                       bool with_nonfinite = false);

/// Integers from -limit to limit: products and sums of a few thousand are exact in float32.
at::Tensor small_integers(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed,
                          int limit = 3);

/// int32 end rows of groups with these sizes.
at::Tensor offs_of(const std::vector<int64_t>& sizes);

/// Group sizes that catch mistakes, for a total of at most `rows`: 0, 1, 31, 32, 33, 127, 128, 129.
const std::vector<int64_t>& awkward_sizes();

}  // namespace moe8::testing
