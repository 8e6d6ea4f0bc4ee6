// SPDX-License-Identifier: BSD-3-Clause
// The example of README.md: the test docs/readme_snippet keeps the marked part equal to it.
// [readme]
#include <moe8/moe8.h>
#include <torch/torch.h>

#include <iostream>

struct Layer : torch::nn::Module {  // plain LibTorch: nothing in it knows moe8
  torch::nn::Linear pre_moe{register_module("pre_moe", torch::nn::Linear(128, 128))};
  torch::Tensor experts{register_parameter("experts", torch::randn({4, 256, 128}) / 11)};

  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& offs) {
    return at::_grouped_mm(pre_moe(x), experts.transpose(-2, -1), offs);
  }
};

int main() {
  Layer model;
  model.to(torch::kBFloat16);
  torch::optim::AdamW optimizer(model.parameters());  // made before: it stays valid
  std::cout << moe8::quantize_(model, {{"experts", moe8::recipe("mxfp8_rceil")},
                                       {"pre_moe", moe8::recipe("mxfp8_cublas_rceil")}});
  const auto x = torch::randn({96, 128}, torch::kBFloat16);
  const auto offs = torch::tensor({40, 40, 41, 96}, torch::kInt32);  // end rows; expert 1 is empty
  model.forward(x, offs).square().mean().backward();  // forward and both gradients in MXFP8
  optimizer.step();
}
// [/readme]
