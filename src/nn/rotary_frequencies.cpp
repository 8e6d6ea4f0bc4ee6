// SPDX-License-Identifier: BSD-3-Clause
// How fast pairs of features turn: as they were made, and stretched for longer sequences.
//
// Pair j of D features turns by f_j = theta^(-2j/D) a position, and n_j = f_j original / 2 pi times in
// the sequences of the first training. Stretched it turns by
//
//   s_j f_j + (1 - s_j) f_j / factor
//
//   LINEAR  s_j = 0
//   LLAMA3  s_j = (n_j - slow) / (fast - slow), within 0 and 1
//   YARN    s_j = 1 - (j - j(fast)) / (j(slow) - j(fast)), within 0 and 1; j(n) = the pair that turns n
//           times, as a real number, or with rope_whole_pairs the whole one below (fast), above (slow)
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/polar.h>
#include <ATen/ops/pow.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "moe8/transformer.h"

namespace moe8 {
namespace {

// [D/2] float64
at::Tensor pair_frequencies(int64_t width, double theta) {
  const at::Tensor exponents = at::arange(0, width, 2, at::kDouble) / double(width);
  return at::pow(theta, -exponents);
}

at::Tensor angles_to_frequencies(const at::Tensor& turns, int64_t positions) {
  const at::Tensor angles = at::outer(at::arange(positions, at::kDouble), turns);
  return at::polar(at::ones_like(angles), angles).to(at::kComplexFloat);
}

// s of YaRN.
at::Tensor kept_by_yarn(const TransformerConfig& c) {
  const int64_t width = c.rotary_width();
  const auto pair_that_turns = [&](double times) {
    const double length = double(c.rope_original_len) / (times * 2 * std::numbers::pi);
    return double(width) * std::log(length) / (2 * std::log(c.rope_theta));
  };
  double first = pair_that_turns(c.rope_fast_turns), last = pair_that_turns(c.rope_slow_turns);
  if (c.rope_whole_pairs) first = std::floor(first), last = std::ceil(last);
  first = std::max(first, 0.0);
  last = std::min(last, double(width - 1));
  constexpr double kLeast = 1e-3;  // between two bounds that are one
  if (first == last) last += kLeast;
  const at::Tensor pairs = at::arange(width / 2, at::kDouble);
  return 1 - ((pairs - first) / (last - first)).clamp(0, 1);
}

// s of Llama 3.
at::Tensor kept_by_llama3(const TransformerConfig& c, const at::Tensor& frequencies) {
  const at::Tensor turns = frequencies * (double(c.rope_original_len) / (2 * std::numbers::pi));
  return ((turns - c.rope_slow_turns) / (c.rope_fast_turns - c.rope_slow_turns)).clamp(0, 1);
}

at::Tensor stretched(const TransformerConfig& c, const at::Tensor& frequencies) {
  switch (c.rope_scaling) {
    case RopeScaling::NONE:
      return frequencies;
    case RopeScaling::LINEAR:
      return frequencies / c.rope_factor;
    case RopeScaling::YARN: {
      const at::Tensor kept = kept_by_yarn(c);
      return kept * frequencies + (1 - kept) * frequencies / c.rope_factor;
    }
    case RopeScaling::LLAMA3: {
      const at::Tensor kept = kept_by_llama3(c, frequencies);
      return kept * frequencies + (1 - kept) * frequencies / c.rope_factor;
    }
  }
  return frequencies;
}

}  // namespace

torch::Tensor rotary_frequencies(int64_t head_dim, int64_t seq_len, double theta) {
  return angles_to_frequencies(pair_frequencies(head_dim, theta), seq_len);
}

torch::Tensor rotary_frequencies(const TransformerConfig& config) {
  const at::Tensor turns =
      stretched(config, pair_frequencies(config.rotary_width(), config.rope_theta));
  const torch::Tensor frequencies = angles_to_frequencies(turns, config.max_seq_len);
  return config.rope_magnitude == 1 ? frequencies : frequencies * config.rope_magnitude;
}

}  // namespace moe8
