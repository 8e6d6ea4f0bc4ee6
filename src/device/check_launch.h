// SPDX-License-Identifier: BSD-3-Clause
// The error of a launch. No Torch: the Python package has it as well. Only for files built with CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include "base/check.h"
#include "base/plain_text.h"
#include "cuda/launch_status.h"

namespace moe8 {

/// @throws c10::Error unless the launch succeeded.
inline void check_launch(const char* op, const cuda::LaunchStatus& status) {
  if (status.ok()) return;
  (void)cudaGetLastError();  // a launch that was refused leaves nothing behind but this
  fail(op, "",
       concat("a CUDA kernel could not be launched (", status.failed,
              "): ", cudaGetErrorString(status.error)));
}

}  // namespace moe8
