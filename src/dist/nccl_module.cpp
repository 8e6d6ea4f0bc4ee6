// SPDX-License-Identifier: BSD-3-Clause
// libmoe8_nccl.so: NCCL as libtorch_cuda has it.
#define USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "dist/backends.h"

extern "C" [[gnu::visibility("default")]] void moe8_nccl_backend(const moe8::Meeting& meeting,
                                                                 moe8::BackendPtr& made) {
  const auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = meeting.timeout;
  // What is waited for takes few blocks for a short time: it shall not wait for those of long kernels.
  options->is_high_priority_stream = !meeting.in_background;
  made = c10::make_intrusive<c10d::ProcessGroupNCCL>(meeting.store, meeting.rank, meeting.size,
                                                     options);
}
