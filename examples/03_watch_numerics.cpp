// SPDX-License-Identifier: BSD-3-Clause
// Watches the numerics of low-precision training in a loop of one's own: what operands look like,
// how exact products are, and which layer is in trouble when an outlier comes along.
#include <torch/torch.h>

#include <iostream>

#include "moe8/numerics.h"
#include "moe8/quantize_model.h"

namespace {

constexpr int kSteps = 20, kInterval = 5;

torch::nn::Sequential make_model() {
  return torch::nn::Sequential(torch::nn::Linear(128, 256), torch::nn::GELU(),
                               torch::nn::Linear(256, 128));
}

// One step of training: loss, gradients, update.
void train(torch::nn::Sequential& model, torch::optim::Optimizer& optimizer,
           const torch::Tensor& x) {
  optimizer.zero_grad();
  torch::mse_loss(model->forward(x), x).backward();
  optimizer.step();
}

// A loop that looks at the numerics of one step in five. While no monitor lives, nothing is
// measured.
moe8::NumericsReport train_and_watch(torch::nn::Sequential& model, const torch::Tensor& x) {
  torch::optim::AdamW optimizer(model->parameters(), 1e-3);
  moe8::NumericsAlarm alarm;  // tells of each trouble once, on standard error
  moe8::NumericsReport last;
  for (int step = 0; step < kSteps; ++step) {
    if (step % kInterval != 0) {
      train(model, optimizer, x);
      continue;
    }
    moe8::NumericsOptions options;
    options.seed = static_cast<uint64_t>(step);  // another sample at every look
    const moe8::NumericsMonitor monitor(*model, options);
    train(model, optimizer, x);
    last = monitor.report();
    alarm.show(last);
  }
  return last;
}

}  // namespace

int main() {
  torch::manual_seed(0);
  torch::nn::Sequential model = make_model();
  moe8::quantize_(*model, moe8::recipe("tensorwise"));  // one scale for a whole tensor

  const torch::Tensor x = torch::randn({64, 128});
  const moe8::NumericsReport healthy = train_and_watch(model, x);
  std::cout << healthy.to_table() << '\n';

  // One enormous value takes the scale; all others of the tensor round to zero.
  torch::Tensor with_outlier = x.clone();
  with_outlier[0][0] = 1e6;
  const moe8::NumericsMonitor monitor(*model);
  model->forward(with_outlier);
  const moe8::NumericsReport sick = monitor.report();
  for (const moe8::NumericsWarning& warning : sick.warnings) std::cout << warning.text() << '\n';

  const bool as_expected =
      healthy.warnings.empty() && healthy.weights.size() == 2 &&
      healthy.weights[0].products.size() == 2 &&  // the input needs no gradient
      healthy.weights[1].products.size() == 3 && !sick.warnings.empty() &&
      sick.warnings[0].place == "0.weight out.input";
  return as_expected ? 0 : 1;
}
