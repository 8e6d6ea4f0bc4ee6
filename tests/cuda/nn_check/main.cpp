// SPDX-License-Identifier: BSD-3-Clause
// Compares the kernels of src/cuda/nn/ with src/reference/model.h: hard shapes, then random ones. A
// program of its own, without Torch: `nn_check [RANDOM_SHAPES]`.
#include "cuda/nn_check/check.h"

namespace moe8::cuda {
namespace {

void check_all(int random_shapes) {
  std::mt19937 rng(1);
  for (const auto check :
       {check_rotary, check_cross_entropy, check_rms_norm, check_gate, check_route}) {
    check(rng, random_shapes);
  }
}

}  // namespace
}  // namespace moe8::cuda

int main(int argc, char** argv) {
  return moe8::cuda::run_checks(argc, argv, 40, "numbers and results", "shapes",
                                moe8::cuda::check_all);
}
