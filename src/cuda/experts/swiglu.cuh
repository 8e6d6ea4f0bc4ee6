// SPDX-License-Identifier: BSD-3-Clause
// What the kernels of the gated activation share: their parameters, which rows a block takes,
// biases and scores, what becomes of a row. The kernels are in swiglu_forward.cu and
// swiglu_backward.cu, those for rows of any length at any address in swiglu_any.cu.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/experts/gate.cuh"
#include "cuda/experts/row_queue.cuh"
#include "cuda/experts/swiglu.h"
#include "cuda/launch.cuh"
#include "cuda/quantize/float8.cuh"
#include "formats/integers.h"

namespace moe8::cuda {

// ---- configuration

inline constexpr int kMaxRowThreads = 512;
inline constexpr int kMaxRowWarps = kMaxRowThreads / 32;

inline constexpr int64_t kRowsPerBlock = 128;  // about: enough to spread the cost of the maxima

/// What an instance of a kernel is made for. kPlain: SWIGLU, no bias, no scores on the input.
template <int packets, GateLayout layout, bool plain>
struct SwigluKind {
  static constexpr int kPackets = packets;  // of eight pairs that a thread has of a row
  static constexpr GateLayout kLayout = layout;
  static constexpr bool kPlain = plain;
};

/// What a kernel is given.
template <typename Args>
struct SwigluKernelArgs {
  Args args;
  GateNumbers gate;
  int stages;  // of the RowQueue
};

// ---- rows
/// Rows [first, last) are a block's; those from `grouped` on are past the last group.
struct RowSpan {
  int32_t first;
  int32_t grouped;
  int32_t last;
};

__device__ inline RowSpan rows_of_block(const RowGroups& g) {
  const auto first = static_cast<int32_t>(g.rows * blockIdx.x / gridDim.x);
  const auto last = static_cast<int32_t>(g.rows * (blockIdx.x + 1) / gridDim.x);
  const int32_t end = g.jagged.begins[g.groups];
  return {first, max(first, min(last, end)), last};
}

/// The group of a row, for rows in ascending order.
struct GroupCursor {
  const int32_t* ends;
  int32_t group = 0;
  int32_t end = 0;

  /// By whole warps.
  __device__ GroupCursor(const RowGroups& g, const RowSpan& span) : ends(g.jagged.begins + 1) {
    if (span.first >= span.grouped) return;
    unsigned before = 0;
    for (int64_t i = threadIdx.x % 32; i < g.groups; i += 32) before += ends[i] <= span.first;
    group = static_cast<int32_t>(__reduce_add_sync(~0u, before));
    end = ends[group];
  }
  __device__ void advance(int32_t row) {
    while (row >= end) end = ends[++group];
  }
};

/// The scores of consecutive rows, read ahead: each is two loads, of which the second waits for the
/// first.
struct ScoreCursor {
  const int32_t* slots;
  const float* scores;
  int32_t last;

  int32_t slot = 0, next_slot = 0, slot_after = 0;
  float score = 1, next_score = 1;

  __device__ ScoreCursor(const SwigluSource& a, const RowSpan& span)
      : slots(a.slot_of_row), scores(a.scores), last(span.last) {
    next_slot = slot_at(span.first);
    next_score = score_at(next_slot);
    slot_after = slot_at(span.first + 1);
  }
  /// To `row`, the first one or the one after the current one.
  __device__ void advance(int32_t row) {
    slot = next_slot;
    score = next_score;
    next_slot = slot_after;
    next_score = score_at(next_slot);
    slot_after = slot_at(row + 2);
  }

 private:
  __device__ int32_t slot_at(int32_t row) const {
    return slots != nullptr && row < last ? slots[row] : 0;
  }
  __device__ float score_at(int32_t s) const { return scores != nullptr ? scores[s] : 1.0f; }
};

/// Where a thread's packets lie: packet v is that of the eight pairs from pair(v) on, its two
/// packets of hidden values from first(v) and second(v) on.
template <typename Kind>
struct ThreadColumns {
  int32_t columns;
  bool has_last;

  __device__ explicit ThreadColumns(int64_t h)
      : columns(static_cast<int32_t>(h)), has_last(pair(Kind::kPackets - 1) < columns) {}
  /// The launch sees to it that all threads have all packets but the last.
  __device__ bool has(int v) const { return v < Kind::kPackets - 1 || has_last; }
  __device__ int32_t pair(int v) const {
    return static_cast<int32_t>(8 * (v * blockDim.x + threadIdx.x));
  }
  __device__ int32_t first(int v) const {
    return Kind::kLayout == GateLayout::INTERLEAVED ? 2 * pair(v) : pair(v);
  }
  __device__ int32_t second(int v) const {
    return first(v) + (Kind::kLayout == GateLayout::INTERLEAVED ? 8 : columns);
  }
};

/// Eight elements of a row in shared memory.
__device__ inline Packet16 load_shared(const BFloat16* p) {
  const uint4 v = *reinterpret_cast<const uint4*>(p);
  return {{v.x, v.y, v.z, v.w}};
}

/// A row's score on the side where it belongs; 1 on the other.
struct RowFactors {
  bool is_input;
  float input, output;

  __device__ RowFactors(const SwigluSource& a, float score)
      : is_input(a.placement == GateScores::INPUT),
        input(is_input ? score : 1.0f),
        output(is_input ? 1.0f : score) {}
};

// ---- one pair
struct Pair {
  float gate, up;
};

template <GateLayout kLayout, typename P>
__device__ Pair pair_of(const PairsOf<P>& pairs, int i) {
  return {pairs.template gate<kLayout>(i), pairs.template up<kLayout>(i)};
}

/// act(H'). kPlain: H' = H and SWIGLU, whatever the arguments say.
template <bool kPlain>
__device__ Activated activate(const GateNumbers& n, const RowFactors& f, Pair h, Pair bias) {
  if constexpr (kPlain) return activate<true>(n, h.gate, h.up);
  return activate<false>(n, __fmaf_rn(f.input, h.gate, bias.gate),
                         __fmaf_rn(f.input, h.up, bias.up));
}

struct PairGradient {
  Pair hidden;
  float activation;
  float score;  // the sum so far and this pair's part of it
};

/// What becomes of a pair whose activation has the gradient `grad`. kInput: f.is_input.
template <bool kPlain, bool kInput>
__device__ PairGradient differentiate(const GateNumbers& n, const RowFactors& f, Pair h, Pair bias,
                                      float grad, float score) {
  const Activated a = activate<kPlain>(n, f, h, bias);
  const float dact = __fmul_rn(f.output, grad);
  const Pair d{__fmul_rn(dact, a.by_gate), __fmul_rn(dact, a.by_up)};
  const float activation = __fmul_rn(f.output, a.value);
  if constexpr (!kInput) return {d, activation, __fmaf_rn(grad, a.value, score)};
  return {{__fmul_rn(f.input, d.gate), __fmul_rn(f.input, d.up)},
          activation,
          __fmaf_rn(d.gate, h.gate, __fmaf_rn(d.up, h.up, score))};
}

// ---- packets
using Packet32 = Packet<float>;

/// Eight biases. Unlike rows they are read again and again: they stay in L1.
__device__ inline Packet32 load_bias(const SwigluSource& a, int64_t at) {
  if (a.bias_type == FloatType::F32) {
    const uint4* p = reinterpret_cast<const uint4*>(static_cast<const float*>(a.bias) + at);
    const uint4 low = p[0], high = p[1];
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  }
  const uint4 v = *reinterpret_cast<const uint4*>(static_cast<const BFloat16*>(a.bias) + at);
  const Packet16 half{{v.x, v.y, v.z, v.w}};
  Packet32 bias;
#pragma unroll
  for (int i = 0; i < 8; ++i) bias.words[i] = __float_as_uint(half.get(i));
  return bias;
}

/// The biases of eight pairs of a group, whose two packets lie at these columns; without any -0.0,
/// which adds nothing to anything.
template <typename Kind>
__device__ PairsOf<Packet32> load_biases(const SwigluSource& a, int32_t group, int32_t first,
                                         int32_t second) {
  PairsOf<Packet32> bias{};
  if (Kind::kPlain) return bias;
  if (a.bias != nullptr) {
    const int64_t row = group * 2 * a.columns;
    return {load_bias(a, row + first), load_bias(a, row + second)};
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) bias.first.words[i] = bias.second.words[i] = 0x80000000u;
  return bias;
}

/// Eight activations.
template <typename Kind>
__device__ Packet16 activate_packet(const GateNumbers& n, const RowFactors& factors, const Pairs& h,
                                    const PairsOf<Packet32>& bias) {
  constexpr GateLayout kLayout = Kind::kLayout;
  Packet16 out;
#pragma unroll
  for (int w = 0; w < Packet16::kWords; ++w) {
    float value[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Pair pair = pair_of<kLayout>(h, 2 * w + i), b = pair_of<kLayout>(bias, 2 * w + i);
      value[i] = activate<Kind::kPlain>(n, factors, pair, b).value;
    }
    out.words[w] = round_pair(value[0], value[1]);
  }
  return out;
}

/// Eight pairs of gradients and eight activations. Returns `score` and what they add to it.
template <typename Kind, bool kInput>
__device__ float differentiate_packet(const GateNumbers& n, const RowFactors& factors,
                                      const Pairs& h, const PairsOf<Packet32>& bias,
                                      const Packet16& grad, float score, Pairs& hidden,
                                      Packet16& activation) {
  constexpr GateLayout kLayout = Kind::kLayout;
#pragma unroll
  for (int w = 0; w < Packet16::kWords; ++w) {
    float gate[2], up[2], value[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = 2 * w + i;
      const PairGradient d = differentiate<Kind::kPlain, kInput>(
          n, factors, pair_of<kLayout>(h, at), pair_of<kLayout>(bias, at), grad.get(at), score);
      gate[i] = d.hidden.gate;
      up[i] = d.hidden.up;
      value[i] = d.activation;
      score = d.score;
    }
    hidden.template set<kLayout>(w, gate, up);
    activation.words[w] = round_pair(value[0], value[1]);
  }
  return score;
}
template <typename Kind>
__device__ float differentiate_packet(const GateNumbers& n, const RowFactors& factors,
                                      const Pairs& h, const PairsOf<Packet32>& bias,
                                      const Packet16& grad, float score, Pairs& hidden,
                                      Packet16& activation) {
  if (!Kind::kPlain && factors.is_input) {
    return differentiate_packet<Kind, true>(n, factors, h, bias, grad, score, hidden, activation);
  }
  return differentiate_packet<Kind, false>(n, factors, h, bias, grad, score, hidden, activation);
}

// ---- results
/// elem to a template argument: f.operator()<elem>().
template <typename F>
__device__ void with_elem(ElemDtype elem, F f) {
  if (elem == ElemDtype::E4M3) {
    f.template operator()<ElemDtype::E4M3>();
  } else {
    f.template operator()<ElemDtype::E5M2>();
  }
}

/// What belongs to a row of codes beside the codes: its scale, and zeros from column `columns` on,
/// which is a multiple of 8.
__device__ inline void finish_codes(const ActivationRows& o, int64_t row, int64_t columns,
                                    float scale) {
  if (threadIdx.x == 0) o.inverse_scale[row] = inverse_of(scale);
  for (int64_t c = columns + 8 * threadIdx.x; c < o.pitch; c += 8 * blockDim.x) {
    store_packet(o.codes + row * o.pitch + c, Codes{});
  }
}

/// A row past the last group: zeros, with the scale of a row of zeros. kWide: `columns` is a
/// multiple of 8 and stores may be wide ones.
template <bool kWide>
__device__ void store_zero_row(const ActivationRows& o, int64_t row, int64_t columns,
                               const SwigluSource& a) {
  constexpr int kStep = kWide ? 8 : 1;
  const int64_t first = kStep * threadIdx.x, step = kStep * blockDim.x;
  if (o.values != nullptr) {
    BFloat16* values = static_cast<BFloat16*>(o.values) + row * columns;
    for (int64_t c = first; c < columns; c += step) {
      if constexpr (kWide) {
        store_packet(values + c, Packet16{});
      } else {
        values[c] = {};
      }
    }
  }
  if (o.codes == nullptr) return;
  uint8_t* codes = o.codes + row * o.pitch;
  for (int64_t c = first; c < o.pitch; c += step) {
    if constexpr (kWide) {
      store_packet(codes + c, Codes{});
    } else {
      codes[c] = 0;
    }
  }
  if (threadIdx.x != 0) return;
  with_elem(a.elem, [&]<ElemDtype elem>() {
    o.inverse_scale[row] = inverse_of(scale_of<elem>(0, a.round_scales_to_power_of_2));
  });
}

// ---- launch
/// Why no kernel takes these arguments; nullptr: one does.
const char* swiglu_refusal(const SwigluSource& a);
const char* activation_rows_refusal(const ActivationRows& o, int64_t columns);

inline bool is_wide(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}
inline bool is_wide(const ActivationRows& o) {
  return is_wide(o.values) && is_wide(o.codes);
}
/// Whether rows of this source are whole 16-byte pieces, whether read or written.
inline bool is_wide(const SwigluSource& a) {
  return a.columns % 8 == 0 && is_wide(a.hidden) && is_wide(a.bias);
}

/// SWIGLU of H as it is, with scores on the output if anywhere.
inline bool is_plain(const SwigluSource& a) {
  return a.activation.function == GateFunction::SWIGLU && a.bias == nullptr &&
         a.placement == GateScores::OUTPUT;
}

/// The kernels for rows of any length at any address.
LaunchStatus launch_any_swiglu(const SwigluArgs& args, cudaStream_t stream);
LaunchStatus launch_any_swiglu_backward(const SwigluBackwardArgs& args, cudaStream_t stream);

/// An instance of a kernel.
template <typename Args>
struct SwigluChoice {
  void (*kernel)(SwigluKernelArgs<Args>);
  int packets;  // as in SwigluKind
  GateLayout layout;
  bool plain;

  int64_t row_threads(int64_t columns) const {
    const int64_t threads = ceil_div(columns / 8, packets);
    return std::max<int64_t>(round_up(threads, 32), 32);
  }
  int64_t row_packets(int64_t columns) const { return row_threads(columns) * packets; }
  /// Whether it can take these arguments: all threads have all packets but the last
  /// (ThreadColumns).
  bool takes(const SwigluSource& a) const {
    const int64_t threads = row_threads(a.columns);
    return layout == a.activation.layout && plain == is_plain(a) && threads <= kMaxRowThreads &&
           (packets - 1) * threads <= a.columns / 8;
  }
};

/// The one with the fewest idle threads, the first among equals; nullptr: none takes the arguments.
template <typename Args, size_t kCount>
const SwigluChoice<Args>* fittest(const SwigluChoice<Args> (&choices)[kCount],
                                  const SwigluSource& a) {
  const SwigluChoice<Args>* best = nullptr;
  for (const SwigluChoice<Args>& c : choices) {
    if (!c.takes(a)) continue;
    if (best == nullptr || c.row_packets(a.columns) < best->row_packets(a.columns)) best = &c;
  }
  return best;
}

/// Launches with as many stages and blocks as fill the device: whole waves of blocks of about
/// kRowsPerBlock rows, so that all multiprocessors end together.
template <typename Args>
LaunchStatus launch_rows(const SwigluChoice<Args>& choice, const Args& args, int64_t row_bytes,
                         int64_t more_bytes, cudaStream_t stream) {
  const auto threads = static_cast<int>(choice.row_threads(args.columns));
  constexpr int64_t kSharedBytes = 200 * 1024;
  const int stages = static_cast<int>(std::clamp<int64_t>(kSharedBytes / row_bytes, 1, 2));
  const int bytes = static_cast<int>(stages * row_bytes + more_bytes);
  cudaError_t error =
      cudaFuncSetAttribute(choice.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return {error, "cudaFuncSetAttribute"};
  int resident = 0;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, choice.kernel, threads, bytes);
  if (error != cudaSuccess) return {error, "cudaOccupancyMaxActiveBlocksPerMultiprocessor"};
  const int64_t wave = std::max(resident, 1) * int64_t{multiprocessor_count()};
  const int64_t waves = std::max<int64_t>(args.groups.rows / (wave * kRowsPerBlock), 1);
  const int64_t blocks = std::min(args.groups.rows, wave * waves);
  return launch_early(choice.kernel, blocks, threads, static_cast<size_t>(bytes), stream,
                      SwigluKernelArgs<Args>{args, GateNumbers::of(args.activation), stages});
}

}  // namespace moe8::cuda
