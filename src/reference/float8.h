// SPDX-License-Identifier: BSD-3-Clause
// Float8 quantization written to be read: the definition that every other kernel equals bit for
// bit.
#pragma once

#include "kernels/float8_args.h"

namespace moe8::reference {

/// Quantizes work items [begin, end) of args.work_items(). Source: docs/numerics.md, section 2.
void quantize_float8(const Float8QuantizeArgs& args, int64_t begin, int64_t end);

/// Dequantizes work items [begin, end).
void dequantize_float8(const Float8DequantizeArgs& args, int64_t begin, int64_t end);

}  // namespace moe8::reference
