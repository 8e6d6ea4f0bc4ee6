// SPDX-License-Identifier: BSD-3-Clause
// Which program this is, how it was called and where: what a run keeps of its origin.
#pragma once

#include "train/trainer.h"

namespace moe8 {

RunOrigin this_origin();

}  // namespace moe8
