// SPDX-License-Identifier: BSD-3-Clause
// The optimizer of a run: which rule steps which parameter of a model, and how it is restored.
#pragma once

#include <torch/nn/module.h>

#include <string>
#include <vector>

#include "moe8/optimizer.h"
#include "train/config/run_config.h"
#include "train/store/named_tensors.h"

namespace moe8 {

/// Turns gradients into new weights, by moe8/optimizer.h. With Weights::MASTER the model's bf16
/// parameters are rounded copies of float32 ones, which are stepped; the parameters keep their
/// identity.
class Stepper {
 public:
  Stepper(torch::nn::Module& model, const OptimizerConfig& config, Weights weights);

  /// Call it after every backward: with master weights takes the gradients from the parameters, and
  /// adds up those of several backwards in float32.
  void accumulate() { optimizer_.accumulate(); }

  /// @return the norm of all gradients, a scalar on their device: nothing has waited for it. The
  /// next step scales them down to max_grad_norm, and changes nothing unless it is finite.
  torch::Tensor clip_gradients() { return optimizer_.clip_gradients(); }

  /// Steps, and clears the gradients.
  void step(double learning_rate) {
    set_learning_rate(learning_rate);
    step();
  }

  /// The two halves of a step: a CUDA graph of step() takes the rate that was set before a replay.
  void set_learning_rate(double learning_rate) { optimizer_.set_learning_rate(learning_rate); }
  void step() { optimizer_.step(); }

  /// All that later steps depend on besides the model; see Optimizer::state.
  NamedTensors state() const { return optimizer_.state(); }
  /// Takes over such a state; tensors of other names are passed over.
  /// @throws c10::Error when one is missing or has another shape or dtype.
  void restore(const std::string& path);

  /// What is stepped, in the order of model.parameters(): masters, or the parameters themselves.
  /// The next step reads their grad().
  const std::vector<torch::Tensor>& stepped() const { return optimizer_.stepped(); }

 private:
  Optimizer optimizer_;
};

}  // namespace moe8
