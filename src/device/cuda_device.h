// SPDX-License-Identifier: BSD-3-Clause
// What the parts that see no CUDA headers need to know of a GPU. In a build without CUDA the same
// functions say that there is none.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <optional>
#include <string>

namespace moe8 {

/// Which stream work on a device goes to now: to tell whether something made earlier is ready here.
struct StreamId {
  const void* stream = nullptr;  // null on a CPU, whose work is done when it returns
  uint64_t capture = 0;          // of a CUDA graph being captured on it; 0: none

  bool operator==(const StreamId&) const = default;
};
StreamId current_stream(const c10::Device& device);

/// Nothing when moe8's quantizers run on this device, else why not and what would help.
std::optional<std::string> quantizer_refusal(const c10::Device& device);

/// "NVIDIA H200"; empty in a build without CUDA and for other devices.
std::string device_name(const c10::Device& device);

/// Compute capability times ten, 90 for Hopper; 0 in a build without CUDA and for other devices.
int compute_capability(const c10::Device& device);

}  // namespace moe8
