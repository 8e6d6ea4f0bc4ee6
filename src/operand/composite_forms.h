// SPDX-License-Identifier: BSD-3-Clause
// Forms of operands made by the public quantizers: of every device but GPUs with kernels of moe8,
// whose forms are made by cuda_forms.cpp.
#pragma once

#include <vector>

#include "operand/operand.h"

namespace moe8 {

/// Values of both axes of a tensor in one pass where a kernel can. FLOAT8 codes have the layouts of
/// cuda_forms.h, but none along the rows of groups: LibTorch's products take no such operand.
std::vector<Form> make_composite_forms(const at::Tensor& source, const std::vector<FormKey>& keys,
                                       const TokenGroups& groups);

}  // namespace moe8
