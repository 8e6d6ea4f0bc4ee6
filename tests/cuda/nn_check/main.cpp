// SPDX-License-Identifier: BSD-3-Clause
// Compares the kernels of src/cuda/nn/ with src/reference/model.h: hard shapes, then random ones. A
// program of its own, without Torch: `nn_check [RANDOM_SHAPES]`.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "cuda/nn_check/check.h"

int main(int argc, char** argv) {
  using namespace moe8::cuda;
  const int random_shapes = argc > 1 ? std::atoi(argv[1]) : 40;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  std::mt19937 rng(1);
  for (const auto check : {check_rotary, check_cross_entropy, check_rms_norm, check_gate}) {
    check(rng, random_shapes);
  }
  std::printf("%s: %lld numbers and results compared, %d failures, %d random shapes\n",
              failures == 0 ? "OK" : "FAILED", static_cast<long long>(compared), failures,
              random_shapes);
  return failures == 0 ? 0 : 1;
}
