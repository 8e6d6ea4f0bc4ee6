// SPDX-License-Identifier: BSD-3-Clause
// AdamW on a model's parameters or on float32 master copies of them.
#pragma once

#include <torch/nn/module.h>
#include <torch/optim/adamw.h>

#include <memory>
#include <string>
#include <vector>

#include "train/config/run_config.h"
#include "train/store/named_tensors.h"

namespace moe8 {

/// Turns gradients into new weights. With Weights::MASTER the model's bf16 parameters are rounded
/// copies of float32 ones: gradients are added up in float32, AdamW steps the float32 ones, and the
/// result is rounded into the parameters in place, which keep their identity.
class Stepper {
 public:
  Stepper(torch::nn::Module& model, const OptimizerConfig& config, Weights weights);

  /// Call it after every backward: with master weights moves the gradients into float32.
  void accumulate();

  /// Scales the gradients down to max_grad_norm.
  /// @return the norm of all of them before, a scalar on their device: nothing has waited for it.
  /// Unless it is finite there must be no step.
  torch::Tensor clip_gradients();

  /// Steps, and clears the gradients.
  void step(double learning_rate);

  /// All that later steps depend on besides the model: "master.NAME" (float32 masters, if any),
  /// "exp_avg.NAME" and "exp_avg_sq.NAME" (AdamW's moments), "steps.NAME" (how often it stepped).
  NamedTensors state() const;
  /// Takes over such a state; tensors of other names are passed over.
  /// @throws c10::Error when one is missing or has another shape or dtype.
  void restore(const std::string& path);

  /// What AdamW steps, in the order of model.parameters().
  const std::vector<torch::Tensor>& stepped() const { return stepped_; }

 private:
  void set_learning_rate(double learning_rate);
  void write_back();

  std::vector<std::string> names_;
  std::vector<torch::Tensor> parameters_;  // of the model
  std::vector<torch::Tensor> stepped_;     // float32 masters, or the parameters themselves
  double max_grad_norm_;
  bool masters_;
  std::unique_ptr<torch::optim::AdamW> adamw_;
};

}  // namespace moe8
