// SPDX-License-Identifier: BSD-3-Clause
// Compares the kernels of src/cuda/experts/ with src/reference/, byte for byte: hard layers, then
// random ones. A program of its own, without Torch: `experts_check [RANDOM_LAYERS]`.
#include "cuda/experts_check/check.h"

namespace moe8::cuda {
namespace {

constexpr void (*kChecks[])(const Layer&, std::mt19937&) = {
    check_order,   check_gather, check_exchange, check_transpose_codes,
    check_combine, check_swiglu, check_mx_rows};

void check_all(int random_layers) {
  std::mt19937 rng(1);
  check_refusals();
  check_swiglu_refusals();
  check_mx_row_refusals();
  check_graph(rng);
  check_large_orders(rng);
  check_swiglu_widths(rng);
  check_mx_row_widths(rng);
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
  return moe8::cuda::run_checks(argc, argv, 200, "bytes", "layers", moe8::cuda::check_all);
}
