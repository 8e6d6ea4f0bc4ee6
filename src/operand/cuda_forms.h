// SPDX-License-Identifier: BSD-3-Clause
// Forms of operands on a GPU: which kernels of src/cuda/quantize/ make them, and their layout.
#pragma once

#include <vector>

#include "operand/operand.h"

namespace moe8 {

/// Makes the forms on the current stream, those that share a pass together; where kernels of moe8
/// quantize (device/implementation.h).
///
/// FLOAT8 codes are uint8 with the contraction contiguous, its pitch a multiple of 16 bytes, filled
/// up with zeros:
///   matrix (M, K), axis 1:   data [M, pitch],             scale [M]
///   matrix (M, K), axis 0:   data [K, padded tokens],     scale [E, K]; see DeviceGroups
///   weight (E, N, K), axis 2: data [E, N, pitch],         scale [E, N]
///   weight (E, N, K), axis 1: data [E, K, pitch],         scale [E, K]
/// Codes of a weight along axis 1 with FormKey::from_row_codes are made of its codes along axis 2,
/// which are made for them where they are not wanted; of its values where scales are no powers of two,
/// and where the weight lies as (E, K, N).
/// decode_scale is 1 / (what the source was multiplied by); one scale of a whole tensor is
/// repeated.
std::vector<Form> make_cuda_forms(at::TensorList parts, const std::vector<FormKey>& keys,
                                  const TokenGroups& groups);

}  // namespace moe8
