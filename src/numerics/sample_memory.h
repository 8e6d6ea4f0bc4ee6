// SPDX-License-Identifier: BSD-3-Clause
// Where samples lie until they are measured. Those of a GPU share a few blocks of its memory, which go
// to the host as they are: so thousands of samples cost a dozen copies, and nothing waits for them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace moe8 {

/// Room for samples. Safe for several threads.
class SampleMemory {
 public:
  /// A dense tensor, not yet written, on the device's current stream.
  at::Tensor allot(const at::Device& device, at::IntArrayRef sizes, at::ScalarType dtype);
  /// What follows comes from new blocks; those before live as long as their tensors.
  void release();

 private:
  struct Block {
    at::Tensor bytes;
    int64_t used = 0;
  };

  std::mutex mutex_;  // guards the following
  std::unordered_map<at::Device, Block> open_;
};

/// The way of samples to the host.
class HostCopy {
 public:
  /// Launches the copies; the tensors are then those on the host, to be read after wait().
  /// @param tensors  of SampleMemory, on GPUs
  explicit HostCopy(const std::vector<at::Tensor*>& tensors);
  void wait() const;

 private:
  std::map<const void*, at::Tensor> blocks_;  // on the host, by the address on the device
  std::vector<c10::Event> ready_;
};

}  // namespace moe8
