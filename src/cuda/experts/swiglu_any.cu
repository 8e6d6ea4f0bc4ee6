// SPDX-License-Identifier: BSD-3-Clause
// The gated activation for rows of any length at any address: pair by pair, computed again for each
// of the uses of a row. Slower, the same bits but for the order of the scores' sums. And which
// arguments no kernel takes.
#include "cuda/block_sum.cuh"
#include "cuda/experts/swiglu.cuh"

namespace moe8::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kRows = 32;  // of a block

// ---- device helpers
struct Place {
  int64_t gate, up;
};

__device__ Place place_of(const SwigluSource& a, int64_t pair) {
  const bool interleaved = a.activation.layout == GateLayout::INTERLEAVED;
  return interleaved ? Place{2 * pair, 2 * pair + 1} : Place{pair, a.columns + pair};
}

__device__ Pair hidden_pair(const SwigluSource& a, int64_t row, int64_t pair) {
  const BFloat16* h = static_cast<const BFloat16*>(a.hidden) + row * 2 * a.columns;
  const Place at = place_of(a, pair);
  return {to_float(h[at.gate]), to_float(h[at.up])};
}

__device__ Pair bias_pair(const SwigluSource& a, int64_t group, int64_t pair) {
  if (a.bias == nullptr) return {-0.0f, -0.0f};
  const Place at = place_of(a, pair);
  const int64_t row = group * 2 * a.columns;
  if (a.bias_type == FloatType::F32) {
    const float* bias = static_cast<const float*>(a.bias) + row;
    return {bias[at.gate], bias[at.up]};
  }
  const BFloat16* bias = static_cast<const BFloat16*>(a.bias) + row;
  return {to_float(bias[at.gate]), to_float(bias[at.up])};
}

__device__ float score_of(const SwigluSource& a, int64_t row) {
  return a.scores != nullptr ? a.scores[a.slot_of_row[row]] : 1.0f;
}

__device__ BFloat16 rounded(float x) {
  return {static_cast<uint16_t>(round_pair(x, 0.0f))};
}

// The block's largest value, in every thread.
__device__ uint32_t block_max(uint32_t value) {
  __shared__ uint32_t shared[kWarps];
  value = __reduce_max_sync(~0u, value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  for (const uint32_t other : shared) value = max(value, other);
  return value;
}

// One element of a row with the scale that the row's amax gives.
__device__ void store_element(const ActivationRows& o, int64_t row, int64_t columns, int64_t column,
                              BFloat16 x, uint32_t amax, const SwigluSource& a) {
  if (o.values != nullptr) static_cast<BFloat16*>(o.values)[row * columns + column] = x;
  if (o.codes == nullptr) return;
  with_elem(a.elem, [&]<ElemDtype elem>() {
    const float scale = scale_of<elem>(amax, a.round_scales_to_power_of_2);
    const uint32_t code = encode_pair<elem>(to_float(x) * scale, 0.0f);
    o.codes[row * o.pitch + column] = static_cast<uint8_t>(code);
  });
}

// What belongs to a row as a whole: its scale, and zeros past its columns.
__device__ void finish_row(const ActivationRows& o, int64_t row, int64_t columns, uint32_t amax,
                           const SwigluSource& a) {
  if (o.codes == nullptr) return;
  for (int64_t c = columns + threadIdx.x; c < o.pitch; c += kThreads) {
    o.codes[row * o.pitch + c] = 0;
  }
  if (threadIdx.x != 0) return;
  with_elem(a.elem, [&]<ElemDtype elem>() {
    o.inverse_scale[row] = inverse_of(scale_of<elem>(amax, a.round_scales_to_power_of_2));
  });
}

// ---- forward
using Forward = SwigluKernelArgs<SwigluArgs>;

__device__ void activate_row(const Forward& p, int64_t row, int64_t group) {
  const SwigluArgs& a = p.args;
  const RowFactors factors(a, score_of(a, row));
  const auto value = [&](int64_t i) {
    const Pair h = hidden_pair(a, row, i), bias = bias_pair(a, group, i);
    return rounded(activate<false>(p.gate, factors, h, bias).value);
  };
  uint32_t amax = 0;
  for (int64_t i = threadIdx.x; i < a.columns; i += kThreads) {
    amax = max(amax, magnitude_bits(value(i)));
  }
  amax = block_max(amax);
  for (int64_t i = threadIdx.x; i < a.columns; i += kThreads) {
    store_element(a.out, row, a.columns, i, value(i), amax, a);
  }
  finish_row(a.out, row, a.columns, amax, a);
}

__global__ void __launch_bounds__(kThreads) swiglu_any(const __grid_constant__ Forward p) {
  follow_stream();
  const SwigluArgs& a = p.args;
  const RowSpan span = rows_of_block(a.groups);
  GroupCursor group(a.groups, span);
  for (int32_t row = span.first; row < span.grouped; ++row) {
    group.advance(row);
    activate_row(p, row, group.group);
  }
  for (int32_t row = span.grouped; row < span.last; ++row) {
    store_zero_row<false>(a.out, row, a.columns, a);
  }
}

// ---- backward
using Backward = SwigluKernelArgs<SwigluBackwardArgs>;

// What becomes of pair i of a row, rounded.
struct Rounded {
  BFloat16 gate, up, activation;
  float score;
};

__device__ Rounded differentiate_pair(const Backward& p, const RowFactors& factors, int64_t row,
                                      int64_t group, int64_t i, float score) {
  const SwigluBackwardArgs& a = p.args;
  const float grad = to_float(static_cast<const BFloat16*>(a.grad)[row * a.columns + i]);
  const Pair h = hidden_pair(a, row, i), bias = bias_pair(a, group, i);
  const PairGradient d = factors.is_input
                             ? differentiate<false, true>(p.gate, factors, h, bias, grad, score)
                             : differentiate<false, false>(p.gate, factors, h, bias, grad, score);
  return {rounded(d.hidden.gate), rounded(d.hidden.up), rounded(d.activation), d.score};
}

__device__ void differentiate_row(const Backward& p, int64_t row, int64_t group) {
  const SwigluBackwardArgs& a = p.args;
  const RowFactors factors(a, score_of(a, row));
  uint32_t hidden = 0, activation = 0;
  float score = 0;
  for (int64_t i = threadIdx.x; i < a.columns; i += kThreads) {
    const Rounded d = differentiate_pair(p, factors, row, group, i, score);
    hidden = max(hidden, max(magnitude_bits(d.gate), magnitude_bits(d.up)));
    activation = max(activation, magnitude_bits(d.activation));
    score = d.score;
  }
  hidden = block_max(hidden);
  activation = block_max(activation);
  score = block_sum<kThreads>(score);
  for (int64_t i = threadIdx.x; i < a.columns; i += kThreads) {
    const Rounded d = differentiate_pair(p, factors, row, group, i, 0);
    const Place at = place_of(a, i);
    store_element(a.hidden_grad, row, 2 * a.columns, at.gate, d.gate, hidden, a);
    store_element(a.hidden_grad, row, 2 * a.columns, at.up, d.up, hidden, a);
    store_element(a.scored_activation, row, a.columns, i, d.activation, activation, a);
  }
  finish_row(a.hidden_grad, row, 2 * a.columns, hidden, a);
  finish_row(a.scored_activation, row, a.columns, activation, a);
  if (threadIdx.x == 0 && a.score_grad != nullptr) a.score_grad[a.slot_of_row[row]] = score;
}

__device__ void send_maximum(uint32_t* out, uint32_t amax) {
  if (amax != 0) atomicMax(out, amax);
}

// Column maxima of the rows [first, last) of one group.
__device__ void find_column_maxima(const Backward& p, int64_t first, int64_t last, int64_t group) {
  const SwigluBackwardArgs& a = p.args;
  for (int64_t i = threadIdx.x; i < a.columns; i += kThreads) {
    uint32_t gate = 0, up = 0, activation = 0;
    for (int64_t row = first; row < last; ++row) {
      const RowFactors factors(a, score_of(a, row));
      const Rounded d = differentiate_pair(p, factors, row, group, i, 0);
      gate = max(gate, magnitude_bits(d.gate));
      up = max(up, magnitude_bits(d.up));
      activation = max(activation, magnitude_bits(d.activation));
    }
    if (uint32_t* out = a.hidden_grad.column_amax; out != nullptr) {
      const Place at = place_of(a, i);
      send_maximum(out + group * 2 * a.columns + at.gate, gate);
      send_maximum(out + group * 2 * a.columns + at.up, up);
    }
    if (uint32_t* out = a.scored_activation.column_amax; out != nullptr) {
      send_maximum(out + group * a.columns + i, activation);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    swiglu_backward_any(const __grid_constant__ Backward p) {
  follow_stream();
  const SwigluBackwardArgs& a = p.args;
  const RowSpan span = rows_of_block(a.groups);
  GroupCursor group(a.groups, span);
  const bool wants_maxima = a.hidden_grad.column_amax || a.scored_activation.column_amax;
  for (int32_t row = span.first; row < span.grouped;) {
    group.advance(row);
    const int32_t first = row, last = min(span.grouped, group.end);
    for (; row < last; ++row) differentiate_row(p, row, group.group);
    if (wants_maxima) find_column_maxima(p, first, last, group.group);
  }
  for (int32_t row = span.grouped; row < span.last; ++row) {
    store_zero_row<false>(a.hidden_grad, row, 2 * a.columns, a);
    store_zero_row<false>(a.scored_activation, row, a.columns, a);
    if (threadIdx.x == 0 && a.score_grad != nullptr) a.score_grad[a.slot_of_row[row]] = 0;
  }
}

// ---- launch
template <typename Args>
LaunchStatus launch(void (*kernel)(SwigluKernelArgs<Args>), const Args& args, cudaStream_t stream) {
  return launch_early(kernel, ceil_div(args.groups.rows, kRows), kThreads, 0, stream,
                      SwigluKernelArgs<Args>{args, GateNumbers::of(args.activation), 0});
}

}  // namespace

LaunchStatus launch_any_swiglu(const SwigluArgs& args, cudaStream_t stream) {
  return launch(swiglu_any, args, stream);
}

LaunchStatus launch_any_swiglu_backward(const SwigluBackwardArgs& args, cudaStream_t stream) {
  return launch(swiglu_backward_any, args, stream);
}

const char* swiglu_refusal(const SwigluSource& a) {
  const bool fits = a.elem == ElemDtype::E4M3 || a.elem == ElemDtype::E5M2;
  if (!fits) return "a format that the hardware does not convert to";
  if (!a.groups.is_valid()) return "more rows than 32 bits count";
  if (!a.groups.is_jagged()) return "groups of equal size instead of ragged ones";
  if (a.scores != nullptr && a.slot_of_row == nullptr) return "scores without slot_of_row";
  return nullptr;
}

const char* activation_rows_refusal(const ActivationRows& o, int64_t columns) {
  if (o.codes == nullptr) return nullptr;
  if (o.inverse_scale == nullptr) return "codes without scales";
  return o.pitch % 16 != 0 || o.pitch < columns ? "a pitch of codes that does not fit" : nullptr;
}

}  // namespace moe8::cuda
