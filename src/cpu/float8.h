// SPDX-License-Identifier: BSD-3-Clause
// Float8 quantization for CPUs: equal to src/reference/float8.cpp bit for bit.
#pragma once

#include "cpu/isa.h"
#include "kernels/float8_args.h"

namespace moe8::cpu {

/// Quantizes work items [begin, end) of args.work_items().
void quantize_float8(const Float8QuantizeArgs& args, int64_t begin, int64_t end,
                     Isa isa = best_isa());

/// Dequantizes work items [begin, end).
void dequantize_float8(const Float8DequantizeArgs& args, int64_t begin, int64_t end,
                       Isa isa = best_isa());

/// The largest magnitude of n elements of x from `at` on, as float32 bits.
uint32_t float8_amax(const void* x, FloatType type, int64_t at, int64_t n, Isa isa = best_isa());

/// float8_scale of src/formats/float8_scale.h, whatever the thread's floating-point state.
float float8_scale_of(uint32_t amax_bits, ElemDtype elem, bool round_to_power_of_2);

}  // namespace moe8::cpu
