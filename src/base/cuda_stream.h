// SPDX-License-Identifier: BSD-3-Clause
// Which stream work on a device goes to now: to tell whether something made earlier is ready here.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>

namespace moe8 {

struct StreamId {
  const void* stream = nullptr;  // null on a CPU, whose work is done when it returns
  uint64_t capture = 0;          // of a CUDA graph being captured on it; 0: none

  bool operator==(const StreamId&) const = default;
};

StreamId current_stream(const c10::Device& device);

}  // namespace moe8
