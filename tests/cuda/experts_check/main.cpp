// SPDX-License-Identifier: BSD-3-Clause
// Compares the kernels of src/cuda/experts/ with src/reference/, byte for byte: hard layers, then
// random ones. A program of its own, without Torch: `experts_check [RANDOM_LAYERS]`.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "cuda/experts_check/check.h"

namespace moe8::cuda {
namespace {

constexpr void (*kChecks[])(const Layer&, std::mt19937&) = {
    check_order, check_gather, check_transpose_codes, check_combine, check_swiglu};

void check_all(int random_layers) {
  std::mt19937 rng(1);
  check_refusals();
  check_swiglu_refusals();
  check_graph(rng);
  check_large_orders(rng);
  check_swiglu_widths(rng);
  for (const Layer& layer : hard_layers(rng)) {
    for (const auto check : kChecks) check(layer, rng);
  }
  for (int i = 0; i < random_layers; ++i) {
    const Layer layer = random_layer(rng);
    for (const auto check : kChecks) check(layer, rng);
  }
}

}  // namespace
}  // namespace moe8::cuda

int main(int argc, char** argv) {
  using namespace moe8::cuda;
  const int random_layers = argc > 1 ? std::atoi(argv[1]) : 200;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  check_all(random_layers);
  std::printf("%s: %lld bytes compared, %d failures, %d random layers\n",
              failures == 0 ? "OK" : "FAILED", static_cast<long long>(compared), failures,
              random_layers);
  return failures == 0 ? 0 : 1;
}
