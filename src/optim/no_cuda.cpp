// SPDX-License-Identifier: BSD-3-Clause
// A build without CUDA: no device has these kernels (cuda_kernels_refusal).
#include "base/check.h"
#include "optim/engine.h"

namespace moe8 {

std::unique_ptr<OptimEngine> make_cuda_optim_engine(const c10::Device&, size_t) {
  fail("optimizer", "", "this moe8 was built without CUDA");
}

}  // namespace moe8
