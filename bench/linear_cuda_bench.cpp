// SPDX-License-Identifier: BSD-3-Clause
// Dense linears on one GPU, forward and backward, against LibTorch's in bf16 in the same run.
//
//   linear_cuda_bench [--rounds N] [--json FILE]
#include <c10/cuda/CUDAFunctions.h>
#include <torch/torch.h>

#include <cmath>
#include <functional>
#include <iostream>
#include <memory>

#include "device/cuda_backend.h"
#include "harness.h"
#include "moe8/moe8.h"
#include "shapes.h"

namespace moe8::bench {
namespace {

struct Layer {
  at::Tensor x, weight, grad_out;

  explicit Layer(const LinearShape& s) {
    const auto bf16 = at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA);
    x = at::randn({s.M, s.K}, bf16).requires_grad_();
    weight = (at::randn({s.N, s.K}, bf16) / std::sqrt(static_cast<double>(s.K))).requires_grad_();
    grad_out = at::randn({s.M, s.N}, bf16);
  }
  void backward(const at::Tensor& out) const {
    torch::autograd::grad({out}, {x, weight}, {grad_out});
  }
};

// Steps that a run makes before it waits, as training does: the time of each is the larger one of
// the host's and the GPU's.
constexpr int kSteps = 10;

template <typename Step>
std::function<void()> steps(const Step& step) {
  return [step] {
    for (int i = 0; i < kSteps; ++i) step();
    c10::cuda::device_synchronize();
  };
}

void add_rows(std::vector<Row>& rows, const LinearShape& s) {
  const auto layer = std::make_shared<Layer>(s);
  const std::string shape = c10::str("M ", s.M, " N ", s.N, " K ", s.K);
  const double flops = 6.0 * multiplications(s);
  const int baseline = static_cast<int>(rows.size());
  rows.push_back({.op = "at::linear, forward + backward",
                  .shape = shape,
                  .recipe = "bf16",
                  .flops = flops,
                  .run = steps([layer] { layer->backward(at::linear(layer->x, layer->weight)); }),
                  .calls = kSteps});
  for (const char* name : {"tensorwise", "rowwise", "rowwise_with_gw_hp", "mxfp8_emulated"}) {
    const Config config =
        std::string(name) == "mxfp8_emulated" ? Config(MXLinearConfig{}) : recipe(name);
    rows.push_back({.op = "forward + backward",
                    .shape = shape,
                    .recipe = name,
                    .flops = flops,
                    // As after an optimizer's step: quantized once, for forward and backward.
                    .run = steps([layer, config] {
                      clear_weight_cache();
                      layer->backward(
                          quantize_then_linear(layer->x, layer->weight, std::nullopt, config));
                    }),
                    .baseline = baseline,
                    .calls = kSteps});
  }
}

int run(int argc, char** argv) {
  if (const auto failure = load_cuda_backend()) {
    std::cerr << "linear_cuda_bench: " << *failure << "\n";
    return 77;
  }
  set_weight_cache(WeightCache::ON);
  std::vector<Row> rows;
  for (const LinearShape& shape : kGpuLinearShapes) add_rows(rows, shape);
  return run_table("linears on a GPU", rows, argc, argv);
}

}  // namespace
}  // namespace moe8::bench

int main(int argc, char** argv) {
  return moe8::bench::run(argc, argv);
}
