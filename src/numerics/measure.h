// SPDX-License-Identifier: BSD-3-Clause
// One product measured: sums over its operands and its result, which can be added to those of
// another product. What the sums mean is moe8/numerics.h; what they are compared with, bounds.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "numerics/sample.h"

namespace moe8 {

/// Of x and what became of it, q.
struct ErrorSums {
  int64_t values = 0;
  int64_t nonfinite = 0;  // of q
  double signal = 0;      // sum of x^2 over the rest
  double noise = 0;       // sum of (x - q)^2 over the rest

  void add(const ErrorSums& other);
  /// At least -200 dB; infinite without noise.
  double sqnr_db() const;
};

struct OperandSums {
  ErrorSums error;
  double amax = 0;        // of the whole operand
  int64_t nonzero = 0;    // values of x
  int64_t underflow = 0;  // of those, q is 0
  int64_t saturated = 0;

  void add(const OperandSums& other);
};

struct GemmSums {
  int64_t calls = 0;
  OperandSums left;
  OperandSums right;
  ErrorSums result;
  std::vector<int64_t> tokens;  // rows of each group; empty when offs are not set

  void add(const GemmSums& other);
};

/// Of samples on the host. Safe in any thread.
GemmSums sums_of(const ProductSample& sample);

}  // namespace moe8
