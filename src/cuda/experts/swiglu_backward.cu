// SPDX-License-Identifier: BSD-3-Clause
// The gated activation backward: the gradient of the hidden rows, the activations again and the
// gradient of the scores, in one pass over dA and H.
//
// A block has a run of rows and takes one at a time: its threads share the row, each with kPackets
// times eight pairs, and hold what becomes of them in bf16 until the row's amax is known. A thread
// owns the same columns in all rows, so that a column's maximum costs one instruction per two
// elements. The next rows arrive in shared memory meanwhile.
#include "cuda/experts/swiglu.cuh"
#include "cuda/quantize/clear.h"

namespace moe8::cuda {
namespace {

using Params = SwigluKernelArgs<SwigluBackwardArgs>;

// ---- configuration
// Threads on a multiprocessor that the registers must allow: of 80, 96 and 128 each.
constexpr int resident_threads(int packets) {
  return packets == 1 ? 768 : packets == 2 ? 640 : 512;
}

// ---- device helpers
// What a thread makes of its pairs of a row; and of many rows, the maxima of their columns.
template <int kPackets>
struct Part {
  Pairs hidden[kPackets];
  Packet16 activation[kPackets];

  __device__ void update(const Part& x) {
#pragma unroll
    for (int v = 0; v < kPackets; ++v) {
      update_magnitudes(hidden[v].first, x.hidden[v].first);
      update_magnitudes(hidden[v].second, x.hidden[v].second);
      update_magnitudes(activation[v], x.activation[v]);
    }
  }
  __device__ uint32_t hidden_amax() const {
    Packet16 m = hidden[0].first;
    update_magnitudes(m, hidden[0].second);
#pragma unroll
    for (int v = 1; v < kPackets; ++v) {
      update_magnitudes(m, hidden[v].first);
      update_magnitudes(m, hidden[v].second);
    }
    return largest_magnitude(m);
  }
  __device__ uint32_t activation_amax() const {
    Packet16 m = activation[0];
#pragma unroll
    for (int v = 1; v < kPackets; ++v) update_magnitudes(m, activation[v]);
    return largest_magnitude(m);
  }
};

// What the threads of a row find out together.
struct RowTotals {
  uint32_t hidden_amax;
  uint32_t activation_amax;
  float score_grad;
};

// The warp's sum in every lane, always in the same order.
__device__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = __fadd_rn(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

// The block's total; the score's in its first warp alone. `shared` must not be written again before
// all have passed one more barrier: callers alternate between two. All threads are done with their
// row when it returns.
__device__ RowTotals block_totals(RowTotals t, RowTotals (&shared)[kMaxRowWarps]) {
  t = {__reduce_max_sync(~0u, t.hidden_amax), __reduce_max_sync(~0u, t.activation_amax),
       warp_sum(t.score_grad)};
  if (blockDim.x == 32) return t;
  const unsigned lane = threadIdx.x % 32;
  if (lane == 0) shared[threadIdx.x / 32] = t;
  __syncthreads();
  t = lane < blockDim.x / 32 ? shared[lane] : RowTotals{};
  return {__reduce_max_sync(~0u, t.hidden_amax), __reduce_max_sync(~0u, t.activation_amax),
          threadIdx.x < 32 ? warp_sum(t.score_grad) : 0.0f};
}

// A thread's part of the row at `staged`: 2 * columns of H, columns of dA. Returns its score_grad.
template <typename Kind>
__device__ float differentiate_row(const Params& p, const ThreadColumns<Kind>& at,
                                   const uint8_t* staged, int32_t group, float score,
                                   Part<Kind::kPackets>& part) {
  const RowFactors factors(p.args, score);
  const auto* hidden = reinterpret_cast<const BFloat16*>(staged);
  const BFloat16* grad = hidden + 2 * at.columns;
  float score_grad = 0;
#pragma unroll
  for (int v = 0; v < Kind::kPackets; ++v) {
    Pairs& pairs = part.hidden[v];
    Packet16& activation = part.activation[v];
    pairs = {};
    activation = {};
    if (!at.has(v)) continue;
    const Pairs h{{load_shared(hidden + at.first(v)), load_shared(hidden + at.second(v))}};
    const Packet16 d = load_shared(grad + at.pair(v));
    const PairsOf<Packet32> bias = load_biases<Kind>(p.args, group, at.first(v), at.second(v));
    score_grad =
        differentiate_packet<Kind>(p.gate, factors, h, bias, d, score_grad, pairs, activation);
  }
  return score_grad;
}

template <typename Kind>
__device__ void store_values(const SwigluBackwardArgs& a, const ThreadColumns<Kind>& at,
                             const Part<Kind::kPackets>& part, int64_t row) {
  auto* hidden = static_cast<BFloat16*>(a.hidden_grad.values);
  auto* activation = static_cast<BFloat16*>(a.scored_activation.values);
#pragma unroll
  for (int v = 0; v < Kind::kPackets; ++v) {
    if (hidden != nullptr && at.has(v)) {
      store_packet(hidden + row * 2 * a.columns + at.first(v), part.hidden[v].first);
      store_packet(hidden + row * 2 * a.columns + at.second(v), part.hidden[v].second);
    }
    if (activation != nullptr && at.has(v)) {
      store_packet(activation + row * a.columns + at.pair(v), part.activation[v]);
    }
  }
}

template <typename Kind, ElemDtype elem>
__device__ void store_hidden_codes(const ActivationRows& o, const ThreadColumns<Kind>& at,
                                   const Part<Kind::kPackets>& part, int64_t row, float scale) {
  uint8_t* codes = o.codes + row * o.pitch;
#pragma unroll
  for (int v = 0; v < Kind::kPackets; ++v) {
    if (!at.has(v)) continue;
    const Codes first = encode_packet<elem>(part.hidden[v].first, scale);
    const Codes second = encode_packet<elem>(part.hidden[v].second, scale);
    if constexpr (Kind::kLayout == GateLayout::INTERLEAVED) {
      const Packet16 both{{first.words[0], first.words[1], second.words[0], second.words[1]}};
      store_packet(codes + at.first(v), both);
    } else {
      store_packet(codes + at.first(v), first);
      store_packet(codes + at.second(v), second);
    }
  }
  finish_codes(o, row, 2 * at.columns, scale);
}

template <typename Kind, ElemDtype elem>
__device__ void store_activation_codes(const ActivationRows& o, const ThreadColumns<Kind>& at,
                                       const Part<Kind::kPackets>& part, int64_t row, float scale) {
  uint8_t* codes = o.codes + row * o.pitch;
#pragma unroll
  for (int v = 0; v < Kind::kPackets; ++v) {
    if (!at.has(v)) continue;
    store_packet(codes + at.pair(v), encode_packet<elem>(part.activation[v], scale));
  }
  finish_codes(o, row, at.columns, scale);
}

template <typename Kind>
__device__ void store_row(const SwigluBackwardArgs& a, const ThreadColumns<Kind>& at,
                          const Part<Kind::kPackets>& part, int64_t row, const RowTotals& totals) {
  const ActivationRows &h = a.hidden_grad, &act = a.scored_activation;
  if (h.values != nullptr || act.values != nullptr) store_values(a, at, part, row);
  with_elem(a.elem, [&]<ElemDtype elem>() {
    const bool pow2 = a.round_scales_to_power_of_2;
    if (h.codes != nullptr) {
      const float scale = scale_of<elem>(totals.hidden_amax, pow2);
      store_hidden_codes<Kind, elem>(h, at, part, row, scale);
    }
    if (act.codes != nullptr) {
      const float scale = scale_of<elem>(totals.activation_amax, pow2);
      store_activation_codes<Kind, elem>(act, at, part, row, scale);
    }
  });
}

// The maxima of a warp's 32 packets of columns, `step` columns apart, by way of shared memory, so
// that neighbouring lanes send neighbouring atomics. `left`: packets that the warp's first lane may
// send.
using TurnedPackets = Packet16[32];

__device__ void flush_packets(const Packet16& maxima, TurnedPackets& turned, uint32_t* out,
                              int32_t step, int32_t left) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  __syncwarp();
  turned[lane] = maxima;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int packet = 4 * i + lane / 8;
    const uint32_t m = magnitude_bits(reinterpret_cast<const BFloat16*>(&turned[packet])[lane % 8]);
    if (packet < left && m != 0) atomicMax(out + packet * step + lane % 8, m);
  }
}

template <typename Kind>
__device__ void flush_columns(const SwigluBackwardArgs& a, const ThreadColumns<Kind>& at,
                              const Part<Kind::kPackets>& maxima, int64_t group,
                              TurnedPackets* turned) {
  TurnedPackets& own = turned[threadIdx.x / 32];
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  constexpr int kStep = Kind::kLayout == GateLayout::INTERLEAVED ? 16 : 8;
#pragma unroll
  for (int v = 0; v < Kind::kPackets; ++v) {
    const int32_t pair = at.pair(v) - 8 * lane;  // of the warp's first lane
    const int32_t left = (at.columns - pair) / 8;
    if (uint32_t* out = a.hidden_grad.column_amax; out != nullptr) {
      out += group * 2 * a.columns - kStep * lane;
      flush_packets(maxima.hidden[v].first, own, out + at.first(v), kStep, left);
      flush_packets(maxima.hidden[v].second, own, out + at.second(v), kStep, left);
    }
    if (uint32_t* out = a.scored_activation.column_amax; out != nullptr) {
      flush_packets(maxima.activation[v], own, out + group * a.columns + pair, 8, left);
    }
  }
}

// ---- kernel
template <typename Kind>
__global__ void __launch_bounds__(resident_threads(Kind::kPackets), 1)
    swiglu_backward(const __grid_constant__ Params p) {
  extern __shared__ uint4 stages[];
  __shared__ uint64_t ready[kMaxStages];
  __shared__ RowTotals exchange[2][kMaxRowWarps];
  const SwigluBackwardArgs& a = p.args;
  const auto row_bytes = static_cast<uint32_t>(a.columns * sizeof(BFloat16));
  RowQueue<2> queue{{{a.hidden, 2 * row_bytes}, {a.grad, row_bytes}},
                    reinterpret_cast<uint8_t*>(stages),
                    ready,
                    p.stages};
  auto* turned = reinterpret_cast<TurnedPackets*>(queue.memory + p.stages * queue.stage_bytes());
  queue.prepare();
  follow_stream();
  const RowSpan span = rows_of_block(a.groups);
  queue.fetch_first(span.first, span.grouped);
  GroupCursor group(a.groups, span);
  ScoreCursor scores(a, span);
  const ThreadColumns<Kind> at(a.columns);

  const bool wants_maxima = a.hidden_grad.column_amax || a.scored_activation.column_amax;
  int turn = 0;
  for (int32_t row = span.first; row < span.grouped;) {
    group.advance(row);
    Part<Kind::kPackets> maxima{};
    for (const int32_t last = min(span.grouped, group.end); row < last; ++row, turn ^= 1) {
      scores.advance(row);
      Part<Kind::kPackets> part;
      const float score_grad =
          differentiate_row(p, at, queue.wait(), group.group, scores.score, part);
      if (wants_maxima) maxima.update(part);
      const RowTotals totals =
          block_totals({part.hidden_amax(), part.activation_amax(), score_grad}, exchange[turn]);
      queue.advance(row);
      if (threadIdx.x == 0 && a.score_grad) a.score_grad[scores.slot] = totals.score_grad;
      store_row(a, at, part, row, totals);
    }
    if (wants_maxima) flush_columns(a, at, maxima, group.group, turned);
  }
  for (int32_t row = span.grouped; row < span.last; ++row) {
    store_zero_row<true>(a.hidden_grad, row, 2 * a.columns, a);
    store_zero_row<true>(a.scored_activation, row, a.columns, a);
    if (threadIdx.x == 0 && a.score_grad != nullptr) a.score_grad[a.slot_of_row[row]] = 0;
  }
}

// ---- launch
using Choice = SwigluChoice<SwigluBackwardArgs>;

template <int kPackets, GateLayout kLayout, bool kPlain>
constexpr Choice choice() {
  return {swiglu_backward<SwigluKind<kPackets, kLayout, kPlain>>, kPackets, kLayout, kPlain};
}

// Registers hold two packets: what becomes of a row and the column maxima, twelve each per packet.
// Three fit into the plainest kernel.
const Choice* choose(const SwigluBackwardArgs& a) {
  using enum GateLayout;
  static constexpr Choice kChoices[] = {
      choice<2, HALVES, true>(),      choice<3, HALVES, true>(),
      choice<1, HALVES, true>(),      choice<2, HALVES, false>(),
      choice<1, HALVES, false>(),     choice<2, INTERLEAVED, true>(),
      choice<1, INTERLEAVED, true>(), choice<2, INTERLEAVED, false>(),
      choice<1, INTERLEAVED, false>()};
  const bool wide =
      is_wide(a) && is_wide(a.grad) && is_wide(a.hidden_grad) && is_wide(a.scored_activation);
  return wide ? fittest(kChoices, a) : nullptr;
}

const char* refusal(const SwigluBackwardArgs& a) {
  if (const char* why = swiglu_refusal(a)) return why;
  if (const char* why = activation_rows_refusal(a.hidden_grad, 2 * a.columns)) return why;
  if (const char* why = activation_rows_refusal(a.scored_activation, a.columns)) return why;
  const bool has_slots = a.score_grad == nullptr || a.slot_of_row != nullptr;
  return has_slots ? nullptr : "a gradient of scores without slot_of_row";
}

}  // namespace

SwigluVariant choose_swiglu_backward(const SwigluBackwardArgs& args) {
  const Choice* c = choose(args);
  if (c == nullptr) return {0, 0};
  return {static_cast<int>(c->row_threads(args.columns)), c->packets};
}

LaunchStatus launch_swiglu_backward(const SwigluBackwardArgs& a, cudaStream_t stream) {
  if (const char* why = refusal(a)) return refused(why);
  const LaunchStatus cleared =
      launch_clear({{a.hidden_grad.column_amax, a.groups.groups * 2 * a.columns},
                    {a.scored_activation.column_amax, a.groups.groups * a.columns}},
                   stream);
  if (!cleared.ok()) return cleared;
  const bool wants = a.hidden_grad.any() || a.scored_activation.any() || a.score_grad != nullptr;
  if (a.groups.rows == 0 || !wants) return {};
  const Choice* choice = choose(a);
  if (choice == nullptr) return launch_any_swiglu_backward(a, stream);
  const int64_t row_bytes = 3 * a.columns * int64_t{sizeof(BFloat16)};
  const int64_t turned_bytes = choice->row_threads(a.columns) * int64_t{sizeof(Packet16)};
  return launch_rows(*choice, a, row_bytes, turned_bytes, stream);
}

}  // namespace moe8::cuda
