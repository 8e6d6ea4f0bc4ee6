// SPDX-License-Identifier: BSD-3-Clause
// From the sums of a product to what a report says of it.
#pragma once

#include "moe8/numerics.h"
#include "numerics/measure.h"

namespace moe8 {

/// @param formats  of the two operands of `gemm`.
ProductNumerics product_numerics(Gemm gemm, const GemmFormats& formats, const GemmSums& sums);

}  // namespace moe8
