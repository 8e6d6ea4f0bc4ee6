// SPDX-License-Identifier: BSD-3-Clause
// A CUDA graph of what a test launches.
#pragma once

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <functional>
#include <memory>

#include "device/cuda_graph.h"

namespace moe8::testing {

// What `work` launches, on a stream of its own. It runs once before it is captured.
class Graph {
 public:
  explicit Graph(const std::function<void()>& work) : stream_(c10::cuda::getStreamFromPool()) {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    work();  // lazy initialisation cannot be captured
    stream_.synchronize();
    graph_ = std::make_unique<CudaGraph>(stream_.device(), work);
  }

  void replay() const {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    graph_->replay();
    stream_.synchronize();
  }

 private:
  c10::cuda::CUDAStream stream_;
  std::unique_ptr<CudaGraph> graph_;
};

}  // namespace moe8::testing
