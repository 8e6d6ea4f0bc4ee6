// SPDX-License-Identifier: BSD-3-Clause
// What a build without CUDA answers.
#include "base/check.h"
#include "guarded.h"
#include "interface.h"

namespace {

int refuse() {
  return moe8::native::guarded([] {
    moe8::fail("moe8", "",
               "this build has no CUDA kernels. Build the wheel where nvcc 13.0 or later is found");
  });
}

}  // namespace

int moe8_cuda_available(int /*device*/) {
  return refuse();
}
int moe8_cuda_forward(const Moe8Product* /*product*/, Moe8Bytes* /*bytes*/) {
  return refuse();
}
int moe8_cuda_backward(const Moe8Product* /*product*/, Moe8Bytes* /*bytes*/) {
  return refuse();
}
int moe8_cuda_experts_forward(const Moe8Experts* /*layer*/, Moe8ExpertsBytes* /*bytes*/) {
  return refuse();
}
int moe8_cuda_experts_backward(const Moe8Experts* /*layer*/, Moe8ExpertsBytes* /*bytes*/) {
  return refuse();
}
int moe8_cuda_mx(Moe8Quantize* /*request*/) {
  return refuse();
}
int moe8_cuda_float8(Moe8Quantize* /*request*/) {
  return refuse();
}
