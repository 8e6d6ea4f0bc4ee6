// SPDX-License-Identifier: BSD-3-Clause
// The program of docs/tutorial.md: a model of one's own trained in MXFP8, written to a safetensors
// file and read back.
// [tutorial]
#include <moe8/moe8.h>
#include <torch/torch.h>

#include <iostream>

// Four experts behind a router: plain LibTorch, no line of it knows moe8.
struct Net : torch::nn::Module {
  torch::nn::Linear in{register_module("in", torch::nn::Linear(64, 64))};
  torch::nn::Linear router{register_module("router", torch::nn::Linear(64, 4))};
  torch::Tensor experts{register_parameter("experts", torch::randn({4, 64, 64}) / 8)};

  torch::Tensor forward(const torch::Tensor& tokens) {
    const torch::Tensor x = in(tokens);
    const auto [score, expert] = router(x).softmax(-1).max(-1);
    const torch::Tensor order = expert.argsort();  // rows of one expert side by side
    const torch::Tensor offs = expert.bincount({}, 4).cumsum(0).to(torch::kInt32);
    const torch::Tensor y =
        at::_grouped_mm(x.index_select(0, order), experts.transpose(-2, -1), offs);
    return torch::zeros_like(y).index_copy(0, order, y) * score.unsqueeze(-1);
  }
};

int main() {
  torch::manual_seed(0);
  Net net;
  net.to(torch::kBFloat16);
  torch::optim::AdamW optimizer(net.parameters(), torch::optim::AdamWOptions(1e-2));

  // Experts and the first layer in MXFP8; the router stays in bf16.
  std::cout << moe8::quantize_(
      net, {{"experts", moe8::recipe("mxfp8_rceil")}, {"in", moe8::recipe("mxfp8_cublas_rceil")}});

  const torch::Tensor tokens = torch::randn({256, 64}, torch::kBFloat16);
  const torch::Tensor target = tokens.roll(1, 1);
  for (int step = 0; step <= 40; ++step) {
    optimizer.zero_grad();
    const torch::Tensor loss = torch::mse_loss(net.forward(tokens), target);
    loss.backward();  // three low-precision products for each converted weight
    optimizer.step();
    if (step % 20 == 0) std::cout << "step " << step << ", loss " << loss.item<float>() << '\n';
  }

  // One more step, watched: how well do the operands fit their formats, how exact are the products?
  const moe8::NumericsMonitor monitor(net);
  torch::mse_loss(net.forward(tokens), target).backward();
  std::cout << monitor.report().to_table();

  // The weights are what they were before conversion: ordinary bf16 tensors.
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& parameter : net.named_parameters()) {
    tensors.emplace_back(parameter.key(), parameter.value());
  }
  moe8::save_safetensors("net.safetensors", tensors);
  std::cout << moe8::load_safetensors("net.safetensors").size() << " tensors in the file\n";
}
// [/tutorial]
