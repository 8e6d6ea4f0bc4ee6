// SPDX-License-Identifier: BSD-3-Clause
// Hidden rows for the gated activation, and how far results may be from the reference: what the
// checks of its kernels share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cuda/experts/swiglu.h"
#include "cuda/experts_check/check.h"
#include "reference/swiglu.h"

namespace moe8::cuda {

using Values = std::vector<BFloat16>;

enum class Fill { NORMAL, WIDE, BROKEN };
constexpr Fill kFills[] = {Fill::NORMAL, Fill::WIDE, Fill::BROKEN};

Values draw_rows(Fill fill, int64_t rows, int64_t columns, std::mt19937& rng);
Values from_device(const DeviceBytes& bytes);
std::vector<float> floats_of(const DeviceBytes& bytes);

/// Hidden rows of a layer, gradients of its activations, and how the one becomes the other.
struct GateProblem {
  GateProblem(const Layer& l, Fill f, std::mt19937& rng);

  std::string name() const;
  reference::SwigluRow row(int64_t r) const;
  bool is_grouped(int64_t r) const { return r < layer.order.rows_in_groups(); }
  int64_t group_of(int64_t r) const {
    const auto& offs = layer.order.offs;
    return std::upper_bound(offs.begin(), offs.end(), r) - offs.begin();
  }
  float score(int64_t r) const { return scores[static_cast<size_t>(slot(r))]; }
  int32_t slot(int64_t r) const { return layer.order.slot_of_row[static_cast<size_t>(r)]; }

  const Layer& layer;
  Fill fill;
  DeviceLayer on_device;
  Values hidden, grad;
  std::vector<float> bias;    // [groups, 2 * columns]; empty: none
  std::vector<float> scores;  // by slot; all 1 when there are none
  DeviceBytes hidden_bytes, grad_bytes;
  Bytes bias_host;
  DeviceBytes bias_bytes, score_bytes;
  SwigluSource source;
};

/// What a kernel made of the rows forward and backward, read back: `scores` by slot. It must be the
/// reference's but for one unit of bf16, as exponentials differ.
void compare_forward(const GateProblem& p, const Values& activations);
void compare_backward(const GateProblem& p, const Values& hidden_grad, const Values& activations,
                      const std::vector<float>& scores);

}  // namespace moe8::cuda
