// SPDX-License-Identifier: BSD-3-Clause
// Descriptors of the bulk tensor copies, encoded on the host by the driver.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace moe8::cuda::sm90 {

/// A 3-D array (outer, middle, inner), copied in boxes of 128 bytes x box_middle; what lies outside
/// is read as 0.
struct TensorMapSpec {
  const void* data;
  int element_bytes;  // 1: codes, 2: bf16
  int64_t inner, middle, outer;
  int64_t pitch;  // elements from one row of `inner` to the next
  int box_middle;
};

/// False when the driver has no such function or refuses the sizes.
bool encode_tensor_map(CUtensorMap& map, const TensorMapSpec& spec);

}  // namespace moe8::cuda::sm90
