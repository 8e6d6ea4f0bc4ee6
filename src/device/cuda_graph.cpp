// SPDX-License-Identifier: BSD-3-Clause
#include "device/cuda_graph.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

#include <exception>

namespace moe8 {

struct CudaGraph::Captured {
  c10::Device device;
  at::cuda::CUDAGraph graph;
};

CudaGraph::CudaGraph(const c10::Device& device, const std::function<void()>& work)
    : captured_(new Captured{device, {}}) {
  const c10::cuda::CUDAGuard guard(device);
  at::cuda::CUDAGraph& graph = captured_->graph;
  // Threads of autograd launch into the capture, others go on with their work.
  graph.capture_begin(/*pool=*/{0, 0}, cudaStreamCaptureModeRelaxed);
  std::exception_ptr failure;
  try {
    work();
  } catch (...) {
    failure = std::current_exception();
  }
  try {
    graph.capture_end();
  } catch (...) {
    if (!failure) failure = std::current_exception();  // else a consequence of it
  }
  if (failure) {
    (void)cudaGetLastError();
    std::rethrow_exception(failure);
  }
}

CudaGraph::~CudaGraph() = default;

void CudaGraph::replay() {
  const c10::cuda::CUDAGuard guard(captured_->device);
  captured_->graph.replay();
}

}  // namespace moe8
