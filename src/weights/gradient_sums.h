// SPDX-License-Identifier: BSD-3-Clause
// Where the gradients of a weight are added up over several backwards: in float32, by the product
// that computes them, so that no gradient of one backward alone is written. Whoever steps the weight
// registers it here (src/optim/optimizer.cpp); the layer of experts asks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <mutex>

namespace moe8 {

/// The sum of one weight.
struct GradientSum {
  GradientSum(at::Tensor of, at::Tensor where) : weight(std::move(of)), holder(std::move(where)) {}

  const at::Tensor weight;
  /// Of the weight's sizes, float32. Its grad() is the sum: undefined before the first gradient;
  /// of another dtype where that was left by somebody who does not know sums.
  const at::Tensor holder;
  std::mutex mutex;       // of the sum, and of what follows
  bool is_newer = false;  // a product was added since somebody last set it to false
};

/// Registers a sum while it lives. A weight has one at a time: the last one counts.
class SummedWeight {
 public:
  SummedWeight(const at::Tensor& weight, const at::Tensor& holder);
  ~SummedWeight();
  SummedWeight(SummedWeight&&) noexcept = default;
  SummedWeight& operator=(SummedWeight&&) = delete;
  SummedWeight(const SummedWeight&) = delete;
  SummedWeight& operator=(const SummedWeight&) = delete;

  /// Whether a product was added since the call before.
  bool take_newer();

 private:
  std::shared_ptr<GradientSum> sum_;
};

/// The sum of exactly this weight, for as long as somebody registers it; expired where there is
/// none. While nobody has registered any, one atomic load.
std::weak_ptr<GradientSum> gradient_sum_of(const at::Tensor& weight);

}  // namespace moe8
