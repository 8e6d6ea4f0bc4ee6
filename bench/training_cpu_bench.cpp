// SPDX-License-Identifier: BSD-3-Clause
// Training a mixture-of-experts layer on the CPU: recipes against bf16, with and without the
// optimizer's step; and what the hooks cost an operation that nothing converted takes part in.
#include <torch/torch.h>

#include <iostream>
#include <memory>

#include "convert/aten_hooks.h"
#include "harness.h"
#include "moe8/quantize_model.h"
#include "moe8/transformer.h"
#include "train/stepper.h"

namespace {

using at::Tensor;
using moe8::bench::Row;

constexpr int64_t kTokens = 4096;

moe8::TransformerConfig layer_config(int64_t top_k) {
  moe8::TransformerConfig config;
  config.dim = 512;
  config.hidden_dim = 1024;
  config.n_experts = 8;
  config.top_k = top_k;
  config.n_shared_experts = 0;
  return config;
}

/// A layer with bf16 weights, float32 masters of them and AdamW, as `moe8 train` has them.
struct Training {
  moe8::MoE layer{nullptr};
  std::shared_ptr<moe8::Stepper> stepper;
  Tensor x, grad;

  Training(int64_t top_k, const std::string& recipe) : layer(layer_config(top_k)) {
    at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(1);
    layer->init_weights(generator, 0.02);
    moe8::cast_parameters_(*layer, at::kBFloat16);
    if (recipe != "bf16") {
      moe8::quantize_(*layer, moe8::FqnToConfig{{"re:experts\\..*", moe8::recipe(recipe)}});
    }
    stepper =
        std::make_shared<moe8::Stepper>(*layer, moe8::OptimizerConfig{}, moe8::Weights::MASTER);
    torch::manual_seed(2);
    x = torch::randn({1, kTokens, 512}).to(at::kBFloat16).requires_grad_();
    grad = torch::randn({1, kTokens, 512}).to(at::kBFloat16) * 1e-3;
  }

  void forward_and_backward() {
    x.mutable_grad() = Tensor();
    layer->forward(x).backward(grad);
    stepper->accumulate();
  }
  void step() {
    forward_and_backward();
    stepper->step(1e-4);
  }
};

bool differ(Training& a, Training& b, const std::string& recipe) {
  const torch::NoGradGuard no_grad;
  const Tensor exact = a.layer->forward(a.x).to(at::kFloat);
  const Tensor got = b.layer->forward(b.x).to(at::kFloat);
  const double error = ((got - exact).norm() / exact.norm()).item<double>();
  if (error > 0 && error < 0.1) return false;
  std::cerr << recipe << ": relative error " << error << " against bf16; not timed\n";
  return true;
}

/// Rows of one layer shape. Without a step weights stay the same and gradients are added up, as
/// between microbatches: what is kept of quantized weights may be used again. After a step it may
/// not, so that row has a layer of its own.
bool add_layer(std::vector<Row>& rows, int64_t top_k) {
  const std::string shape =
      c10::str("dim 512, hidden 1024, 8 experts, ", kTokens, " tokens, top ", top_k);
  const auto reference = std::make_shared<Training>(top_k, "bf16");
  const int first = static_cast<int>(rows.size());
  for (const char* recipe : {"bf16", "fp8_rowwise", "mxfp8_rceil"}) {
    const auto training = std::make_shared<Training>(top_k, recipe);
    const auto stepped = std::make_shared<Training>(top_k, recipe);
    const bool is_baseline = std::string_view(recipe) == "bf16";
    if (!is_baseline && differ(*reference, *training, recipe)) return false;
    rows.push_back({.op = "layer, forward + backward",
                    .shape = shape,
                    .recipe = recipe,
                    .run = [=] { training->forward_and_backward(); },
                    .baseline = is_baseline ? -1 : first});
    rows.push_back({.op = "layer, training step",
                    .shape = shape,
                    .recipe = recipe,
                    .run = [=] { stepped->step(); },
                    .baseline = is_baseline ? -1 : first + 1});
  }
  return true;
}

void add_hooks(std::vector<Row>& rows) {
  constexpr int64_t kCalls = 20000;
  const int first = static_cast<int>(rows.size());
  for (bool needs_grad : {false, true}) {
    const Tensor a = at::rand({4, 4});
    const Tensor b = at::rand({4, 4}).requires_grad_(needs_grad);
    const auto multiply = [=] {
      for (int64_t i = 0; i < kCalls; ++i) at::mm(a, b);
    };
    const std::string shape = needs_grad ? "4x4 float32, with autograd" : "4x4 float32";
    const int baseline = first + (needs_grad ? 2 : 0);
    rows.push_back({.op = "unconverted mm, no hooks",
                    .shape = shape,
                    .recipe = "-",
                    .run =
                        [=] {
                          const moe8::WithoutAtenHooks none;
                          multiply();
                        },
                    .calls = kCalls});
    rows.push_back({.op = "unconverted mm, hooks and converted weights elsewhere",
                    .shape = shape,
                    .recipe = "-",
                    .run = multiply,
                    .baseline = baseline,
                    .calls = kCalls});
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Row> rows;
  if (!add_layer(rows, 1) || !add_layer(rows, 2)) return 1;
  add_hooks(rows);
  return moe8::bench::run_table("CPU training", rows, argc, argv);
}
