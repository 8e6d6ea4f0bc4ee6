// SPDX-License-Identifier: BSD-3-Clause
// A CUDA graph: work that is launched once and then repeated by one call, without the host's share
// of it.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>

namespace moe8 {

/// Captures what `work` launches on the current stream of `device`, which must not be the default
/// stream; nothing is computed by that. Memory that the work allocates belongs to the graph: tensors
/// that it leaves behind hold the results of the last replay. `work` must not wait for the device,
/// and whatever is initialised on first use must have been used before.
/// @throws c10::Error what `work` throws, when something in it cannot be captured, and in builds
/// without CUDA.
class CudaGraph {
 public:
  CudaGraph(const c10::Device& device, const std::function<void()>& work);
  ~CudaGraph();
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  /// Launches the work on the current stream, reading and writing the same memory.
  void replay();

 private:
  struct Captured;
  std::unique_ptr<Captured> captured_;
};

}  // namespace moe8
