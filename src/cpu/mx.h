// SPDX-License-Identifier: BSD-3-Clause
// MX quantization for CPUs: equal to src/reference/mx.cpp bit for bit.
#pragma once

#include "cpu/isa.h"
#include "kernels/mx_args.h"

namespace moe8::cpu {

/// Quantizes work items [begin, end) of args.work_items().
void quantize_mx(const MxQuantizeArgs& args, int64_t begin, int64_t end, Isa isa = best_isa());

/// Quantizes work items [begin, end) along both axes.
void quantize_mx_both(const MxQuantizeBothArgs& args, int64_t begin, int64_t end,
                      Isa isa = best_isa());

/// Dequantizes work items [begin, end).
void dequantize_mx(const MxDequantizeArgs& args, int64_t begin, int64_t end, Isa isa = best_isa());

}  // namespace moe8::cpu
