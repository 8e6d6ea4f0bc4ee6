// SPDX-License-Identifier: BSD-3-Clause
// A build without CUDA has no stages on its kernels.
#include "experts/stages.h"

namespace moe8 {

const ExpertStages* cuda_stages() {
  return nullptr;
}

}  // namespace moe8
