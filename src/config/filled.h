// SPDX-License-Identifier: BSD-3-Clause
// What a Float8LinearConfig leaves open, and what stands for it.
#pragma once

#include "moe8/config.h"

namespace moe8 {

/// The same config with every cast and target_dtype set, as torchao sets them: a cast that is not
/// set is the tensor's base cast, a target_dtype E5M2 for grad_output, otherwise E4M3.
Float8LinearConfig filled(Float8LinearConfig config);

}  // namespace moe8
