// SPDX-License-Identifier: BSD-3-Clause
// src/numerics/take.h in a build without CUDA.
#include "numerics/take.h"

namespace moe8 {

bool cuda_take_parts(const std::vector<TensorPart>&, double) {
  return false;
}
std::optional<at::Tensor> cuda_largest_magnitudes(const at::Tensor&, SampleMemory&) {
  return std::nullopt;
}
std::optional<at::Tensor> cuda_products_of_rows(const at::Tensor&, const at::Tensor&, const Picks&,
                                                SampleMemory&) {
  return std::nullopt;
}

}  // namespace moe8
