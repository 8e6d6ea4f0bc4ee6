// SPDX-License-Identifier: BSD-3-Clause
// AdamW and Muon over a list of parameters, with float32 masters of bf16 ones: a few passes over
// all of them, none of which waits for a GPU. `moe8 train` uses it; any training loop can.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace moe8 {

/// How one parameter is stepped.
/// ADAMW: m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
///        w = (1 - lr weight_decay) w - lr m^ / (sqrt(v^) + eps), m^ and v^ without their bias.
/// MUON: matrices (rows, columns), or stacks of them, each by itself. u = momentum u + g;
///        w = (1 - lr weight_decay) w - lr 0.2 sqrt(max(rows, columns)) O(g + momentum u). O brings
///        the singular values near 1 (five steps of Newton-Schulz in bf16); the factor gives the
///        update the size of AdamW's, so that learning rate and weight decay of both are the same.
enum class UpdateRule { ADAMW, MUON };

/// The dtype of moments. LIKE_WEIGHTS: as what is stepped, so float32 with masters. BF16: AdamW's
/// are rounded stochastically by a fixed sequence, Muon's to nearest.
enum class MomentDtype { LIKE_WEIGHTS, FLOAT32, BF16 };

/// What all parameters share; the defaults are those of `moe8 train`.
struct OptimizerOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double momentum = 0.95;      // of Muon
  double max_grad_norm = 1.0;  // 0: gradients are not clipped
  bool masters = true;         // step float32 copies of bf16 parameters
  MomentDtype moments = MomentDtype::LIKE_WEIGHTS;
  /// Layers of experts add the gradients of weights with masters to the float32 sums themselves; such
  /// parameters have no grad() after a backward. For steps of several backwards: see accumulate().
  bool sums_in_products = false;
};

/// A parameter, and what is its own.
struct OptimizedParameter {
  std::string name{};   // in state() and in errors
  at::Tensor tensor{};  // bf16 or float32, contiguous; keeps its identity
  double weight_decay = 0;
  UpdateRule rule = UpdateRule::ADAMW;
  /// Of a part of a parameter, which another optimizer steps as well: the number of the parameter
  /// in the list of the whole ones, and the element with which the part begins. Moments in bf16
  /// are then rounded as those of the whole. Less than 0: `tensor` is whole, its number its place.
  int64_t number = -1;
  int64_t first_element = 0;
};

/// Steps all parameters at once. The same gradients give the same bits, on a CPU and on a GPU with
/// kernels of moe8; where LibTorch's operations compute (other GPUs, MOE8_KERNELS=off) last digits
/// differ, and step() waits for the norm. Not to be used by two threads at once.
class Optimizer {
 public:
  /// @throws c10::Error unless the parameters are on one device, bf16 or float32 and contiguous.
  explicit Optimizer(std::vector<OptimizedParameter> parameters,
                     const OptimizerOptions& options = {});
  ~Optimizer();
  Optimizer(Optimizer&&) noexcept;
  Optimizer& operator=(Optimizer&&) noexcept;

  /// Call it after every backward. Gradients of parameters with masters are taken from them: those
  /// of the first backward as they are, so that a step of one backward needs no float32 gradient;
  /// later ones are added up in float32. Others are left for LibTorch to add up. With
  /// sums_in_products the weights of a moe_experts() that is one function (not UNFUSED) have a
  /// float32 sum from the first backward on, to which the product of each gradient is added: on a
  /// Hopper GPU without rounding it to bf16 in between. All backwards then run on one stream.
  void accumulate();

  /// The norm of all gradients, float32, on their device: nothing has waited for it. The step that
  /// follows multiplies them by min(1, max_grad_norm / (norm + 1e-6)), and changes nothing when the
  /// norm is not finite.
  at::Tensor clip_gradients();

  /// The same with a norm that is known, of more gradients than this optimizer's: a float32 scalar
  /// on their device.
  void clip_gradients(const at::Tensor& norm);

  /// Of the steps that follow. On a GPU it is written to memory that step() reads: a CUDA graph of
  /// step() takes what was set before it is replayed.
  void set_learning_rate(double learning_rate);

  /// Steps every parameter that has a gradient, and lets go of the gradients. Without
  /// clip_gradients() before it nothing is clipped and no norm looked at.
  void step();

  /// All that later steps depend on besides the parameters: "master.NAME", of AdamW "exp_avg.NAME",
  /// "exp_avg_sq.NAME" and "steps.NAME", of Muon "momentum.NAME"; what never had a gradient has
  /// no moments. Shares memory with the optimizer. Waits for a GPU.
  std::vector<std::pair<std::string, at::Tensor>> state() const;

  /// Takes over such a state. `read(name, like)` gives a tensor with the shape and dtype of `like`,
  /// or an undefined one when there is none of that name.
  /// @throws c10::Error when a master is missing, or a moment beside another.
  void restore(
      const std::function<at::Tensor(const std::string& name, const at::Tensor& like)>& read);

  /// What is stepped, parameter by parameter: a master or the parameter itself. Its grad() is what
  /// the next step reads.
  const std::vector<at::Tensor>& stepped() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moe8
