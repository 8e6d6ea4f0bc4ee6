// SPDX-License-Identifier: BSD-3-Clause
// AdamW for CPUs: equal to src/reference/adamw.cpp bit for bit, one pass over memory.
#pragma once

#include "cpu/isa.h"
#include "kernels/adamw_args.h"

namespace moe8::cpu {

/// Steps elements [begin, end).
void adamw(const AdamWArgs& args, int64_t begin, int64_t end, Isa isa = best_isa());

/// The sum of squares of a run of n <= kNormChunk elements.
float sum_of_squares(const void* x, FloatType type, int64_t n, Isa isa = best_isa());

/// out[i] = a[i] + b[i] in float32, i in [begin, end); `out` may be `a`.
void add_gradients(const void* a, FloatType a_type, const void* b, FloatType b_type, float* out,
                   int64_t begin, int64_t end, Isa isa = best_isa());

}  // namespace moe8::cpu
