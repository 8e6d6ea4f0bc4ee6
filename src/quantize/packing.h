// SPDX-License-Identifier: BSD-3-Clause
// Codes as kernels make them (one a byte) to and from the dtype in which a tensor holds them.
#pragma once

#include <ATen/core/Tensor.h>

#include "moe8/formats.h"

namespace moe8 {

/// uint8 codes -> the storage dtype of the format: a view, or packed for e2m1 (two codes a byte
/// along the last axis, the first in the low nibble; an odd last axis is filled up with a zero).
at::Tensor pack_codes(const at::Tensor& codes, ElemDtype elem);

/// The inverse; `sizes` is the shape of the codes.
at::Tensor unpack_codes(const at::Tensor& data, ElemDtype elem, at::IntArrayRef sizes);

}  // namespace moe8
