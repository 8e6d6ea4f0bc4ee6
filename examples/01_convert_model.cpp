// SPDX-License-Identifier: BSD-3-Clause
// Converts a model with one call: experts to MXFP8, two of its linears to MXFP8 as well, the router
// left alone. The model itself is plain LibTorch and does not know about it.
#include <torch/torch.h>

#include <cmath>
#include <iostream>
#include <vector>

#include "moe8/quantize_model.h"

namespace {

// Expert weights as (experts, out, in), multiplied by at::_grouped_mm: rows of one expert are
// contiguous in x, and offs[e] is the end row of expert e.
struct ExpertsImpl : torch::nn::Module {
  ExpertsImpl(int64_t experts, int64_t dim, int64_t hidden)
      : w1(register_parameter("w1", torch::randn({experts, hidden, dim}) / std::sqrt(dim))),
        w2(register_parameter("w2", torch::randn({experts, dim, hidden}) / std::sqrt(hidden))) {}

  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& offs) {
    const torch::Tensor h = at::silu(at::_grouped_mm(x, w1.transpose(-2, -1), offs));
    return at::_grouped_mm(h, w2.transpose(-2, -1), offs);
  }

  torch::Tensor w1, w2;
};
TORCH_MODULE(Experts);

// pre_moe -> router -> the one expert with the highest score -> post_moe.
struct ModelImpl : torch::nn::Module {
  ModelImpl(int64_t experts_count, int64_t dim, int64_t hidden) : count(experts_count) {
    pre_moe = register_module("pre_moe", torch::nn::Linear(dim, dim));
    router = register_module("router", torch::nn::Linear(dim, count));
    experts = register_module("experts", Experts(count, dim, hidden));
    post_moe = register_module("post_moe", torch::nn::Linear(dim, dim));
  }

  torch::Tensor forward(const torch::Tensor& tokens) {
    const torch::Tensor x = pre_moe(tokens);
    const auto [score, expert] = router(x).softmax(-1).max(-1);
    const torch::Tensor order = expert.argsort();
    const torch::Tensor offs = expert.bincount({}, count).cumsum(0).to(torch::kInt32);
    const torch::Tensor y = experts(x.index_select(0, order), offs);
    const torch::Tensor restored = torch::zeros_like(y).index_copy(0, order, y);
    return post_moe(restored * score.unsqueeze(-1));
  }

  int64_t count;
  torch::nn::Linear pre_moe{nullptr}, router{nullptr}, post_moe{nullptr};
  Experts experts{nullptr};
};
TORCH_MODULE(Model);

}  // namespace

int main() {
  torch::manual_seed(0);
  Model model(8, 128, 256);
  model->to(torch::kBFloat16);
  torch::optim::SGD optimizer(model->parameters(), 2.0);  // stays valid: parameters keep identity

  const torch::Tensor tokens = torch::randn({64, 128}).to(torch::kBFloat16);
  const torch::Tensor before = model(tokens).detach();

  // Keys that start with re: are patterns on the whole name of a parameter or module. A key that
  // matched nothing would be an error.
  const moe8::ConversionReport report =
      moe8::quantize_(*model, {{"re:.*experts.*", moe8::recipe("mxfp8_rceil")},
                               {"re:^(pre_moe|post_moe)$", moe8::recipe("mxfp8_emulated")}});
  std::cout << report << '\n';

  const torch::Tensor after = model(tokens);
  const double error = (after - before).to(torch::kFloat).norm().item<double>() /
                       before.to(torch::kFloat).norm().item<double>();
  std::cout << "output changed by " << 100 * error << " %\n";

  // Learn to reproduce the tokens, in low precision, forward and backward.
  std::vector<double> losses;
  for (int step = 0; step < 10; ++step) {
    optimizer.zero_grad();
    const torch::Tensor loss = torch::mse_loss(model(tokens), tokens);
    loss.backward();
    optimizer.step();
    losses.push_back(loss.item<double>());
  }
  std::cout << "loss " << losses.front() << ", after ten steps " << losses.back() << '\n';

  moe8::dequantize_(*model);  // LibTorch's own kernels again

  const bool as_expected =
      report.converted().size() == 4 && error > 0 && losses.back() < losses.front();
  return as_expected ? 0 : 1;
}
