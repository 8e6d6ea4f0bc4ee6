// SPDX-License-Identifier: BSD-3-Clause
// The CUDA side of operands in a build without CUDA: never chosen (device/implementation.h); if
// this were called, it would say so.
#include "base/check.h"
#include "operand/cuda_forms.h"

namespace moe8 {

std::vector<Form> make_cuda_forms(at::TensorList, const std::vector<FormKey>&, const TokenGroups&) {
  fail("make_cuda_forms", "device",
       "expected a CPU tensor: this build of moe8 has no CUDA kernels (MOE8_CUDA)");
}

}  // namespace moe8
