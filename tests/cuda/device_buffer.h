// SPDX-License-Identifier: BSD-3-Clause
// Memory on a GPU for programs without Torch: filled, poisoned, fetched, freed with its owner, and
// between guards that show a kernel that wrote outside.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/launch_status.h"

namespace moe8::testing {

/// Ends the program when a call to CUDA failed.
inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
inline void require(const cuda::LaunchStatus& status, const char* what) {
  if (!status.ok()) std::printf("%s: %s\n", what, status.failed);
  require(status.error, what);
}

/// `size` elements of T on the device.
template <typename T>
class DeviceBuffer {
 public:
  static constexpr uint8_t kPoison = 0xA5;
  static constexpr size_t kGuard = 256;  // bytes before and after

  /// Poisoned.
  explicit DeviceBuffer(size_t size) : size_(size) {
    require(cudaMalloc(&memory_, bytes() + 2 * kGuard), "cudaMalloc");
    require(cudaMemset(memory_, kPoison, bytes() + 2 * kGuard), "cudaMemset");
  }
  explicit DeviceBuffer(const std::vector<T>& values) : DeviceBuffer(values.size()) {
    require(cudaMemcpy(get(), values.data(), bytes(), cudaMemcpyHostToDevice),
            "copy to the device");
  }
  ~DeviceBuffer() { cudaFree(memory_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  T* get() const { return as<T>(); }
  template <typename Other>
  Other* as() const {
    return reinterpret_cast<Other*>(static_cast<char*>(memory_) + kGuard);
  }
  size_t size() const { return size_; }

  void fill(int byte) { require(cudaMemset(get(), byte, bytes()), "cudaMemset"); }
  void poison() { require(cudaMemset(memory_, kPoison, bytes() + 2 * kGuard), "cudaMemset"); }

  std::vector<T> host() const {
    std::vector<T> values(size_);
    require(cudaMemcpy(values.data(), get(), bytes(), cudaMemcpyDeviceToHost), "copy to the host");
    return values;
  }
  /// False when somebody wrote outside.
  bool is_intact() const {
    std::vector<uint8_t> all(bytes() + 2 * kGuard);
    require(cudaMemcpy(all.data(), memory_, all.size(), cudaMemcpyDeviceToHost), "copy the guards");
    const auto is_poison = [](uint8_t byte) { return byte == kPoison; };
    return std::all_of(all.begin(), all.begin() + kGuard, is_poison) &&
           std::all_of(all.end() - kGuard, all.end(), is_poison);
  }

 private:
  size_t bytes() const { return size_ * sizeof(T); }

  void* memory_ = nullptr;
  size_t size_;
};

}  // namespace moe8::testing
