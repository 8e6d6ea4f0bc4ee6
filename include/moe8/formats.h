// SPDX-License-Identifier: BSD-3-Clause
// Names of the element formats and scale rules. No Torch: kernels include this file too.
// Bit layouts and limits are the table in src/formats/elem.h.
#pragma once

namespace moe8 {

/// Element formats of quantized data (docs/numerics.md, section 1).
enum class ElemDtype { E4M3, E5M2, E2M3, E3M2, E2M1 };

/// How the shared power-of-two scale of an MX block follows from its amax (docs/numerics.md, 3).
enum class ScaleCalculationMode { FLOOR, RCEIL, CEIL, EVEN };

}  // namespace moe8
