// SPDX-License-Identifier: BSD-3-Clause
// What moe8 needs to know of a GPU, asked of its driver: the same in builds with CUDA and without.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

namespace moe8 {

/// Which stream work on a device goes to now: to tell whether something made earlier is ready here.
struct StreamId {
  const void* stream = nullptr;  // null on a CPU, whose work is done when it returns
  uint64_t capture = 0;          // of a CUDA graph being captured on it; 0: none

  bool operator==(const StreamId&) const = default;
};
StreamId current_stream(const c10::Device& device);

/// "NVIDIA H200"; empty for other devices.
std::string device_name(const c10::Device& device);

/// Compute capability times ten, 90 for Hopper; 0 for other devices.
int compute_capability(const c10::Device& device);

/// H100, H200: compute capability 9.0.
inline bool is_hopper(const c10::Device& device) {
  return compute_capability(device) == 90;
}
/// B200, B300: compute capability 10.x.
inline bool is_blackwell(const c10::Device& device) {
  return compute_capability(device) / 10 == 10;
}

/// "9.0", for messages.
std::string describe_capability(const c10::Device& device);

}  // namespace moe8
