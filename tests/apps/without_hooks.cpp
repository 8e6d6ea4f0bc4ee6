// SPDX-License-Identifier: BSD-3-Clause
// Loaded before moe8's library, this keeps its hooks out of LibTorch: every product runs as
// LibTorch computes it, as if moe8 did not know this LibTorch's operations.
#include "convert/aten_hooks.h"

namespace moe8 {

void install_aten_hooks() {}

}  // namespace moe8
