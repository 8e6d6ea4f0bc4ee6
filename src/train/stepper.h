// SPDX-License-Identifier: BSD-3-Clause
// The optimizer of a run: which rule steps which parameter of a model, and how it is restored.
#pragma once

#include <torch/nn/module.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "moe8/optimizer.h"
#include "moe8/sharded_optimizer.h"
#include "optim/engine.h"
#include "train/config/run_config.h"
#include "train/store/named_tensors.h"

namespace moe8 {

/// Turns gradients into new weights, by moe8/optimizer.h or, of several ranks, by
/// moe8/sharded_optimizer.h. With Weights::MASTER the model's bf16
/// parameters are rounded copies of float32 ones, which are stepped; the parameters keep their
/// identity.
class Stepper {
 public:
  /// Steps the parameters that require a gradient.
  /// @param sums_in_products  OptimizerOptions::sums_in_products
  /// @param rates             factors on the learning rate by name; others have 1
  Stepper(torch::nn::Module& model, const OptimizerConfig& config, Weights weights,
          bool sums_in_products = false, const std::map<std::string, double>& rates = {});
  /// Of several ranks, each of which steps a part.
  /// @param part   what this rank's model holds
  /// @param rates  as above
  Stepper(torch::nn::Module& model, const OptimizerConfig& config, Weights weights,
          const ShardingGroups& groups, const ModelPart& part,
          const std::map<std::string, double>& rates = {});

  /// Call it after every backward: with master weights takes the gradients from the parameters, and
  /// adds up those of several backwards in float32 (Optimizer::accumulate).
  void accumulate();

  /// @return the norm of all gradients, a scalar on their device: nothing has waited for it. The
  /// next step scales them down to max_grad_norm, and changes nothing unless it is finite.
  torch::Tensor clip_gradients();

  /// Steps, and clears the gradients.
  void step(double learning_rate) {
    set_learning_rate(learning_rate);
    step();
  }

  /// The two halves of a step: a CUDA graph of step() takes the rate that was set before a replay.
  void set_learning_rate(double learning_rate);
  void step();

  /// All that later steps depend on besides the model, or this rank's part of it; see
  /// Optimizer::state.
  std::vector<TensorPiece> state() const;
  /// Takes over such a state, of any number of ranks; tensors of other names are passed over.
  /// @throws c10::Error when one is missing or has another shape or dtype.
  void restore(const PieceReader& files);

  /// This rank's part of the parameters that are stepped. Of several ranks only.
  std::vector<TensorPiece> owned() const;

  /// What is stepped: masters, or the parameters themselves. The next step reads their grad(). Of one
  /// rank only.
  std::vector<torch::Tensor> stepped() const;

 private:
  /// Of the parameters with one factor.
  struct Rated {
    double rate;
    std::unique_ptr<Optimizer> optimizer;
    std::vector<int64_t> numbers;  // of its parameters among all
  };
  torch::Tensor norm_of_all();

  std::vector<Rated> alone_;               // one of the two
  std::unique_ptr<OptimEngine> of_norms_;  // of several rates
  std::unique_ptr<ShardedOptimizer> shared_;
};

}  // namespace moe8
