// SPDX-License-Identifier: BSD-3-Clause
// MX quantization written to be read: the definition that every other kernel equals bit for bit.
#pragma once

#include "kernels/mx_args.h"

namespace moe8::reference {

/// Quantizes work items [begin, end) of args.work_items(). Source: docs/numerics.md, section 3.
void quantize_mx(const MxQuantizeArgs& args, int64_t begin, int64_t end);

/// Dequantizes work items [begin, end).
void dequantize_mx(const MxDequantizeArgs& args, int64_t begin, int64_t end);

}  // namespace moe8::reference
