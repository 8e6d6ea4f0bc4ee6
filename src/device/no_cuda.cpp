// SPDX-License-Identifier: BSD-3-Clause
// What builds without CUDA have instead of GPUs: no kernels, no graphs.
#include "base/check.h"
#include "device/cuda_graph.h"
#include "device/implementation.h"

namespace moe8 {

std::optional<std::string> cuda_kernels_refusal(const c10::Device&, int64_t) {
  return "this build of moe8 has no CUDA kernels (preset cuda)";
}

struct CudaGraph::Captured {};

CudaGraph::CudaGraph(const c10::Device&, const std::function<void()>&) {
  fail("CudaGraph", "", "this build of moe8 has no CUDA (preset cuda)");
}
CudaGraph::~CudaGraph() = default;
void CudaGraph::replay() {}

}  // namespace moe8
