// SPDX-License-Identifier: BSD-3-Clause
// Where the products of converted weights are watched: every low-precision GEMM passes here when
// somebody listens. While nobody does, a product costs one atomic load. What a listener makes of a
// product: src/numerics/monitor.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace moe8 {

struct GemmProblem;

/// Which weight a product belongs to, also where the weight is no operand (grad_W). Plain numbers:
/// they keep nothing alive and are only compared.
struct WeightId {
  std::vector<uint64_t> tags;  // of the converted weights that W is, is a copy or was made of
  const void* impl = nullptr;  // the TensorImpl of the weight itself, of whose view W is one

  bool operator==(const WeightId&) const = default;
};

/// The weight that W is, or is a view or copy of; the weights that it was made of.
WeightId weight_id(const at::Tensor& W);

/// True while anybody listens: operands are then needed in high precision, in backward too.
bool numerics_observed();

/// Listens to all products of the process while it lives. observe() is called from every thread
/// that computes, below autograd and autocast, and must be safe beside itself.
class GemmObserver {
 public:
  GemmObserver(const GemmObserver&) = delete;
  GemmObserver& operator=(const GemmObserver&) = delete;
  virtual ~GemmObserver() = default;

  /// @param result  as the kernel left it, before anybody else sees it; not to be changed.
  virtual void observe(const GemmProblem& problem, const at::Tensor& result) = 0;

 protected:
  GemmObserver() = default;
  void start();
  /// Returns when no observe() of this listener runs any more. Called by the destructor of
  /// the class that has observe(), not later. Harmless when it does not listen.
  void stop();
};

/// While it lives, products of this thread are shown to nobody, though numerics_observed() is as it
/// was: for what is computed a second time.
class UnobservedProducts {
 public:
  UnobservedProducts();
  ~UnobservedProducts();
  UnobservedProducts(const UnobservedProducts&) = delete;
  UnobservedProducts& operator=(const UnobservedProducts&) = delete;

 private:
  bool before_;
};

/// Shows a product to everybody who listens.
void show_to_observers(const GemmProblem& problem, const at::Tensor& result);

}  // namespace moe8
