// SPDX-License-Identifier: BSD-3-Clause
// Gloo as LibTorch has it. Alone in its file: no other sees the stand-ins for Gloo's headers.
#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "dist/backends.h"

namespace moe8 {

BackendPtr gloo_backend(const Meeting& meeting) {
  using c10d::ProcessGroupGloo;
  const auto options = ProcessGroupGloo::Options::create_default(meeting.timeout);
  return c10::make_intrusive<ProcessGroupGloo>(meeting.store, meeting.rank, meeting.size, options);
}

}  // namespace moe8
