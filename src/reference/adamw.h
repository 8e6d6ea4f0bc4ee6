// SPDX-License-Identifier: BSD-3-Clause
// AdamW and the norm of gradients, written to be read: src/cpu/adamw.cpp and src/cuda/optim/ give
// the same bits.
#pragma once

#include <cstdint>

#include "kernels/adamw_args.h"

namespace moe8::reference {

/// Steps elements [begin, end). Moments in bf16 are rounded by rounding_bits(); where scalars.go is
/// 0 nothing is read or written.
void adamw(const AdamWArgs& args, int64_t begin, int64_t end);

/// The sum of squares of a run of n <= kNormChunk elements.
float sum_of_squares(const void* x, FloatType type, int64_t n);

/// The square root of the sum of all runs, in float64, rounded once.
float norm_of(const float* sums, int64_t count);

}  // namespace moe8::reference
