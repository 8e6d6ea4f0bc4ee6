// SPDX-License-Identifier: BSD-3-Clause
// Whether this thread computes a product of ours, so that hooks let everything pass. Matters in
// InferenceMode, where nothing else keeps our own operations from coming back with a tagged weight
// (a GEMM that a config leaves in high precision).
#pragma once

#include <utility>

namespace moe8 {

/// While one lives, this thread computes a product of ours.
class InsideProduct {
 public:
  InsideProduct() : outer_(std::exchange(inside, true)) {}
  ~InsideProduct() { inside = outer_; }
  InsideProduct(const InsideProduct&) = delete;
  InsideProduct& operator=(const InsideProduct&) = delete;

  static bool now() { return inside; }

 private:
  static inline thread_local bool inside = false;
  bool outer_;
};

}  // namespace moe8
