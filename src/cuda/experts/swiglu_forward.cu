// SPDX-License-Identifier: BSD-3-Clause
// The gated activation forward: hidden rows in, activations out as FP8 codes with one scale per
// row, as bf16, or both, in one pass over H. How the work is divided: swiglu_backward.cu.
#include "cuda/experts/swiglu.cuh"

namespace moe8::cuda {
namespace {

using Params = SwigluKernelArgs<SwigluArgs>;

// ---- configuration
constexpr int kResidentThreads = 1024;  // on a multiprocessor, that the registers must allow

// ---- device helpers
// A thread's packets of the row at `staged`.
template <typename Kind>
__device__ void activate_row(const Params& p, const ThreadColumns<Kind>& at, const uint8_t* staged,
                             int32_t group, float score, Packet16 (&part)[Kind::kPackets]) {
  const RowFactors factors(p.args, score);
  const auto* hidden = reinterpret_cast<const BFloat16*>(staged);
#pragma unroll
  for (int v = 0; v < Kind::kPackets; ++v) {
    part[v] = {};
    if (!at.has(v)) continue;
    const Pairs h{{load_shared(hidden + at.first(v)), load_shared(hidden + at.second(v))}};
    const PairsOf<Packet32> bias = load_biases<Kind>(p.args, group, at.first(v), at.second(v));
    part[v] = activate_packet<Kind>(p.gate, factors, h, bias);
  }
}

template <int kPackets>
__device__ uint32_t largest(const Packet16 (&part)[kPackets]) {
  Packet16 m = part[0];
#pragma unroll
  for (int v = 1; v < kPackets; ++v) update_magnitudes(m, part[v]);
  return largest_magnitude(m);
}

// The largest value of the block. `shared` must not be written again before all have passed one
// more barrier: callers alternate between two. All threads are done with their row when it returns.
__device__ uint32_t block_max(uint32_t value, uint32_t (&shared)[kMaxRowWarps]) {
  value = __reduce_max_sync(~0u, value);
  if (blockDim.x == 32) return value;
  const unsigned lane = threadIdx.x % 32;
  if (lane == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  return __reduce_max_sync(~0u, lane < blockDim.x / 32 ? shared[lane] : 0u);
}

template <typename Kind>
__device__ void store_row(const SwigluArgs& a, const ThreadColumns<Kind>& at,
                          const Packet16 (&part)[Kind::kPackets], int64_t row, uint32_t amax) {
  const ActivationRows& o = a.out;
  if (o.values != nullptr) {
    BFloat16* values = static_cast<BFloat16*>(o.values) + row * a.columns;
#pragma unroll
    for (int v = 0; v < Kind::kPackets; ++v) {
      if (at.has(v)) store_packet(values + at.pair(v), part[v]);
    }
  }
  if (o.codes == nullptr) return;
  with_elem(a.elem, [&]<ElemDtype elem>() {
    const float scale = scale_of<elem>(amax, a.round_scales_to_power_of_2);
    uint8_t* codes = o.codes + row * o.pitch;
#pragma unroll
    for (int v = 0; v < Kind::kPackets; ++v) {
      if (at.has(v)) store_packet(codes + at.pair(v), encode_packet<elem>(part[v], scale));
    }
    finish_codes(o, row, a.columns, scale);
  });
}

// ---- kernel
template <typename Kind>
__global__ void __launch_bounds__(kResidentThreads, 1) swiglu(const __grid_constant__ Params p) {
  extern __shared__ uint4 stages[];
  __shared__ uint64_t ready[kMaxStages];
  __shared__ uint32_t exchange[2][kMaxRowWarps];
  const SwigluArgs& a = p.args;
  RowQueue<1> queue{{{a.hidden, static_cast<uint32_t>(2 * a.columns * sizeof(BFloat16))}},
                    reinterpret_cast<uint8_t*>(stages),
                    ready,
                    p.stages};
  queue.prepare();
  follow_stream();
  const RowSpan span = rows_of_block(a.groups);
  queue.fetch_first(span.first, span.grouped);
  GroupCursor group(a.groups, span);
  ScoreCursor scores(a, span);
  const ThreadColumns<Kind> at(a.columns);

  int turn = 0;
  for (int32_t row = span.first; row < span.grouped; ++row, turn ^= 1) {
    group.advance(row);
    scores.advance(row);
    Packet16 part[Kind::kPackets];
    activate_row(p, at, queue.wait(), group.group, scores.score, part);
    const uint32_t amax = block_max(largest(part), exchange[turn]);
    queue.advance(row);
    store_row(a, at, part, row, amax);
  }
  for (int32_t row = span.grouped; row < span.last; ++row) {
    store_zero_row<true>(a.out, row, a.columns, a);
  }
}

// ---- launch
using Choice = SwigluChoice<SwigluArgs>;

template <int kPackets, GateLayout kLayout, bool kPlain>
constexpr Choice choice() {
  return {swiglu<SwigluKind<kPackets, kLayout, kPlain>>, kPackets, kLayout, kPlain};
}

const Choice* choose(const SwigluArgs& a) {
  using enum GateLayout;
  static constexpr Choice kChoices[] = {
      choice<2, HALVES, true>(),       choice<3, HALVES, true>(),
      choice<1, HALVES, true>(),       choice<2, HALVES, false>(),
      choice<3, HALVES, false>(),      choice<1, HALVES, false>(),
      choice<2, INTERLEAVED, true>(),  choice<3, INTERLEAVED, true>(),
      choice<1, INTERLEAVED, true>(),  choice<2, INTERLEAVED, false>(),
      choice<3, INTERLEAVED, false>(), choice<1, INTERLEAVED, false>()};
  return is_wide(a) && is_wide(a.out) ? fittest(kChoices, a) : nullptr;
}

}  // namespace

SwigluVariant choose_swiglu(const SwigluArgs& args) {
  const Choice* c = choose(args);
  if (c == nullptr) return {0, 0};
  return {static_cast<int>(c->row_threads(args.columns)), c->packets};
}

LaunchStatus launch_swiglu(const SwigluArgs& a, cudaStream_t stream) {
  if (const char* why = swiglu_refusal(a)) return refused(why);
  if (const char* why = activation_rows_refusal(a.out, a.columns)) return refused(why);
  if (a.out.column_amax != nullptr) return refused("column maxima of the activations forward");
  if (a.groups.rows == 0 || !a.out.any()) return {};
  const Choice* choice = choose(a);
  if (choice == nullptr) return launch_any_swiglu(a, stream);
  return launch_rows(*choice, a, 2 * a.columns * int64_t{sizeof(BFloat16)}, 0, stream);
}

}  // namespace moe8::cuda
