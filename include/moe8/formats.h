// SPDX-License-Identifier: BSD-3-Clause
// Names of the element formats and scale rules. No Torch: kernels include this file as well.
// Bit layouts and limits are the table in src/formats/elem.h.
#pragma once

#include <cstdint>

namespace moe8 {

/// Element formats of quantized data, named by their exponent and mantissa bits. Largest values:
/// E4M3 448, E5M2 57344, E2M3 7.5, E3M2 28, E2M1 6. Source: docs/numerics.md, section 1.
enum class ElemDtype { E4M3, E5M2, E2M3, E3M2, E2M1 };

/// How the shared power-of-two scale of an MX block follows from its amax.
///   FLOOR  amax's exponent less that of the format's largest power of two; may saturate
///   CEIL   as FLOOR, one more when amax is not a power of two; never saturates
///   EVEN   as FLOOR, after rounding amax to the format's mantissa; may saturate
///   RCEIL  the smallest exponent with which amax fits the format; never saturates
/// Source: OCP MX v1.0 (FLOOR); docs/numerics.md, section 3.
enum class ScaleCalculationMode { FLOOR, RCEIL, CEIL, EVEN };

/// Elements that share one scale of an MX format (OCP MX v1.0).
inline constexpr int64_t kMxBlock = 32;

}  // namespace moe8
