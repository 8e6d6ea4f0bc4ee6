// SPDX-License-Identifier: BSD-3-Clause
// Forward and backward of a grouped product on the CPU: every recipe of the experts against
// LibTorch's own bf16 grouped product.
#include <torch/torch.h>

#include <iostream>

#include "harness.h"
#include "moe8/grouped_mm.h"
#include "shapes.h"

namespace {

using at::Tensor;

struct Layer {
  Tensor A, W, offs, grad;
};

Layer make_layer(const moe8::bench::GroupedShape& s) {
  torch::manual_seed(1);
  const Tensor offs = (at::arange(1, s.E + 1, at::kLong) * (s.M / s.E)).to(at::kInt);
  return {torch::randn({s.M, s.K}).to(at::kBFloat16).requires_grad_(),
          torch::randn({s.E, s.N, s.K}).to(at::kBFloat16).requires_grad_(), offs,
          torch::randn({s.M, s.N}).to(at::kBFloat16)};
}

template <typename Op>
std::function<void()> step(const Layer& layer, Op op) {
  return [=] {
    layer.A.mutable_grad() = Tensor();
    layer.W.mutable_grad() = Tensor();
    op(layer.A, layer.W.transpose(-2, -1), layer.offs).backward(layer.grad);
  };
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<moe8::bench::Row> rows;
  for (const moe8::bench::GroupedShape& s : moe8::bench::kCpuGroupedShapes) {
    const Layer layer = make_layer(s);
    const std::string shape = c10::str(s.name, " M ", s.M, " N ", s.N, " K ", s.K, " E ", s.E);
    const double flops = 6.0 * moe8::bench::multiplications(s);
    const int bf16 = static_cast<int>(rows.size());
    rows.push_back({"grouped_mm forward + backward", shape, "bf16", 0, flops,
                    step(layer, [](const Tensor& A, const Tensor& B_t, const Tensor& offs) {
                      return at::_grouped_mm(A, B_t, offs);
                    })});
    const Tensor exact =
        at::_grouped_mm(layer.A, layer.W.transpose(1, 2), layer.offs).to(at::kFloat);
    for (const moe8::RecipeInfo& recipe : moe8::all_recipes()) {
      if (!moe8::is_grouped(recipe.config)) continue;
      const auto op = [config = recipe.config](const Tensor& A, const Tensor& B_t,
                                               const Tensor& offs) {
        return moe8::quantize_then_scaled_grouped_mm(A, B_t, offs, config);
      };
      const Tensor got = op(layer.A, layer.W.transpose(1, 2), layer.offs).to(at::kFloat);
      if (((got - exact).norm() / exact.norm()).item<double>() > 0.05) {
        std::cerr << recipe.name << ": result is off by more than 5 %; not timed\n";
        return 1;
      }
      rows.push_back({"grouped_mm forward + backward", shape, recipe.name, 0, flops,
                      step(layer, op), bf16, bf16});
    }
  }
  return moe8::bench::run_table("CPU grouped products", rows, argc, argv);
}
