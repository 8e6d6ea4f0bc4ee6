// SPDX-License-Identifier: BSD-3-Clause
// What ran, by LibTorch's profiler (Kineto): kernels and copies of a GPU, or operations of the CPU.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>
#include <vector>

namespace moe8 {

/// A kernel, copy or operation that ran.
struct ProfiledEvent {
  std::string name;
  bool is_on_gpu = false;
  uint64_t place = 0;  // thread of the host, or stream of the GPU
  int64_t start_ns = 0;
  int64_t end_ns = 0;
};

/// Records from its construction to stop(). One at a time, on the thread that made it.
class Profiler {
 public:
  enum class Record {
    KERNELS,    // what the GPU does; the host is hardly slowed down. On a CPU: OPERATIONS
    OPERATIONS  // the operations of the host as well
  };
  Profiler(const c10::Device& device, Record record);
  ~Profiler();
  Profiler(const Profiler&) = delete;
  Profiler& operator=(const Profiler&) = delete;

  /// Waits for the device and ends the recording.
  /// @param trace  where to write it for chrome://tracing or ui.perfetto.dev; empty: nowhere
  std::vector<ProfiledEvent> stop(const std::string& trace = "");

 private:
  c10::Device device_;
  bool is_running_ = true;
};

}  // namespace moe8
