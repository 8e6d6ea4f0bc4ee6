// SPDX-License-Identifier: BSD-3-Clause
#include "reference/swiglu.h"

#include <cmath>

namespace moe8::reference {
namespace {

struct Pair {
  float gate, up;
};

// Where pair i lies in a hidden row.
struct Place {
  int64_t gate, up;
};

Place place_of(const SwigluRow& row, int64_t i) {
  if (row.activation.layout == GateLayout::INTERLEAVED) return {2 * i, 2 * i + 1};
  return {i, row.columns + i};
}

bool is_input(const SwigluRow& row) {
  return row.placement == GateScores::INPUT;
}

Pair hidden_of(const SwigluRow& row, const Place& at) {
  return {to_float(row.hidden[at.gate]), to_float(row.hidden[at.up])};
}

// H': scored in one rounding together with the bias.
Pair scored_of(const SwigluRow& row, const Place& at, Pair h) {
  const float score = is_input(row) ? row.score : 1.0f;
  if (row.bias == nullptr) return {score * h.gate, score * h.up};
  return {std::fma(score, h.gate, row.bias[at.gate]), std::fma(score, h.up, row.bias[at.up])};
}

float sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

// A and its derivatives by gate and up.
struct Activated {
  float value, by_gate, by_up;
};

Activated swiglu_of(Pair h) {
  const float s = sigmoid(h.gate);
  const float silu = h.gate * s;
  return {silu * h.up, h.up * std::fma(silu, 1.0f - s, s), silu};
}

Activated clamped_of(Pair h, float alpha, float limit) {
  // A NaN passes: no comparison holds for it.
  const bool gate_clamped = h.gate > limit, up_clamped = h.up > limit || h.up < -limit;
  const float gate = gate_clamped ? limit : h.gate;
  const float up = (h.up > limit ? limit : h.up < -limit ? -limit : h.up) + 1.0f;
  const float s = sigmoid(alpha * gate);
  const float silu = gate * s;
  const float slope = std::fma(alpha * silu, 1.0f - s, s);
  return {silu * up, gate_clamped ? 0.0f : up * slope, up_clamped ? 0.0f : silu};
}

Activated activate(const GateActivation& a, Pair h) {
  return a.function == GateFunction::SWIGLU ? swiglu_of(h) : clamped_of(h, a.alpha, a.limit);
}

}  // namespace

void swiglu(const SwigluRow& row, BFloat16* out) {
  for (int64_t i = 0; i < row.columns; ++i) {
    const Place at = place_of(row, i);
    const Pair h = scored_of(row, at, hidden_of(row, at));
    out[i] = from_float<BFloat16>(activate(row.activation, h).value);
  }
}

void swiglu_backward(const SwigluRow& row, const BFloat16* grad, SwigluGradient& out) {
  const float input = is_input(row) ? row.score : 1.0f;
  const float output = is_input(row) ? 1.0f : row.score;
  out.score = 0;
  for (int64_t i = 0; i < row.columns; ++i) {
    const Place at = place_of(row, i);
    const Pair h = hidden_of(row, at);
    const Activated a = activate(row.activation, scored_of(row, at, h));
    const float d = to_float(grad[i]), dact = output * d;
    const Pair dh{dact * a.by_gate, dact * a.by_up};  // dH'

    out.hidden[at.gate] = from_float<BFloat16>(input * dh.gate);
    out.hidden[at.up] = from_float<BFloat16>(input * dh.up);
    out.activation[i] = from_float<BFloat16>(output * a.value);
    out.score +=
        is_input(row) ? double{dh.gate} * h.gate + double{dh.up} * h.up : double{d} * a.value;
  }
}

}  // namespace moe8::reference
