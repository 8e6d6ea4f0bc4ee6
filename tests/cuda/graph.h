// SPDX-License-Identifier: BSD-3-Clause
// A CUDA graph of what a test launches.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>

namespace moe8::testing {

// Captures what `work` launches, on a stream and in a memory pool of its own.
class Graph {
 public:
  template <typename Work>
  explicit Graph(Work work) : stream_(c10::cuda::getStreamFromPool()) {
    namespace allocator = c10::cuda::CUDACachingAllocator;
    const c10::cuda::CUDAStreamGuard guard(stream_);
    const auto is_ours = [this](cudaStream_t s) { return s == stream_.stream(); };
    work();  // once before: lazy initialisation cannot be captured
    C10_CUDA_CHECK(cudaStreamSynchronize(stream_.stream()));
    const c10::MempoolId_t pool{0, 77};
    allocator::beginAllocateToPool(stream_.device_index(), pool, is_ours);
    C10_CUDA_CHECK(cudaStreamBeginCapture(stream_.stream(), cudaStreamCaptureModeRelaxed));
    std::exception_ptr failure;  // later than the end of the capture, which others would be part of
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
    const cudaError_t ended = cudaStreamEndCapture(stream_.stream(), &graph_);
    allocator::endAllocateToPool(stream_.device_index(), pool);
    if (failure) std::rethrow_exception(failure);
    C10_CUDA_CHECK(ended);
    C10_CUDA_CHECK(cudaGraphInstantiate(&executable_, graph_, 0));
  }

  void replay() const {
    C10_CUDA_CHECK(cudaGraphLaunch(executable_, stream_.stream()));
    C10_CUDA_CHECK(cudaStreamSynchronize(stream_.stream()));
  }

 private:
  c10::cuda::CUDAStream stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace moe8::testing
