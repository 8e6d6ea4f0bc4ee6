// SPDX-License-Identifier: BSD-3-Clause
// The operations of a model around its products, written to be read: the definition of the kernels
// of src/cuda/nn/. Rotary positions are bit for bit; the others are in float64, from which the
// kernels differ by their float32 sums and exponentials. T is BFloat16 or float.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/float_type.h"
#include "moe8/rotary_pairs.h"
#include "moe8/score_function.h"

namespace moe8::reference {

/// The heads of one position, [heads, width] each contiguous: pair (a, b) becomes (a c - b s,
/// a s + b c) with (c, s) = freqs[j], or with `inverse` the rotation back. Each operation is
/// rounded to float32, the result to T. `out` may be `in`.
/// @param freqs        [width / 2] pairs (cos, sin)
/// @param head_stride  elements from one head of `in` to the next
template <typename T>
void rotate(const T* in, int64_t head_stride, const float* freqs, int64_t heads, int64_t width,
            RotaryPairs pairs, bool inverse, T* out);

/// log(sum of exp(x)) of a row.
template <typename T>
double log_sum_exp(const T* x, int64_t columns);

/// (exp(x - lse) - (c == target)) * scale.
template <typename T>
std::vector<double> cross_entropy_gradient(const T* x, int64_t columns, double lse, int64_t target,
                                           double scale);

/// 1 / sqrt(mean of h^2 + eps) of a row.
template <typename T>
double rms_norm_scale(const T* h, int64_t columns, double eps);

/// The gradient of h, without one that it has from elsewhere.
template <typename T>
std::vector<double> rms_norm_gradient(const T* h, const T* weight, const T* grad, int64_t columns,
                                      double scale);

/// silu(gate) * up and its derivatives.
struct Gate {
  double value, by_gate, by_up;
};
Gate gate(double gate, double up);

/// The scores of one token's experts, from its logits: exp(x) / sum of exp(x), or 1 / (1 + exp(-x)).
template <typename T>
std::vector<double> expert_scores(const T* logits, int64_t experts, ScoreFunction function);

/// What a token's chosen experts weigh: scale * p / (1, or the sum of the chosen p + 1e-20).
std::vector<double> route_scores(const std::vector<double>& p, const std::vector<int64_t>& chosen,
                                 bool normalize, double scale);

/// The gradient of the logits, from that of what route_scores() gave.
std::vector<double> route_gradient(const std::vector<double>& p, const std::vector<int64_t>& chosen,
                                   const std::vector<double>& grad, ScoreFunction function,
                                   bool normalize, double scale);

}  // namespace moe8::reference
