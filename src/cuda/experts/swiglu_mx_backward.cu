// SPDX-License-Identifier: BSD-3-Clause
// The gated activation backward, of which the next products read MX values. A warp's tile of H and
// dA goes to shared memory, where gradients and activations replace it, and from there out, a row at
// a time: in registers it would leave room for few warps, and code that is one long line for eight
// rows is fetched more slowly than it runs. Lanes copy and store neighbouring packets, whose gates
// and ups other lanes of the warp may need; no warp waits for another.
#include "cuda/experts/swiglu_mx.cuh"

namespace moe8::cuda {
namespace {

using Params = SwigluMxParams<SwigluMxBackwardArgs>;

// ---- configuration
constexpr int kResident = 4;  // thread blocks on a multiprocessor, each with 48 KiB of staged rows
constexpr int kSumThreads = 256;

// ---- shared memory
// What a lane copies and stores of a row: packets of its own columns. Of the hidden matrix, whose
// rows hold gates and ups, two: of 64 columns of gates and as many of ups, or of 128 of both by turns.
enum Matrix { kFirst, kSecond, kNarrow, kMatrices };
using Staged = Packet16[kMatrices][kPacketRows][kMxThreads];

__device__ Packet16 load_staged(const Packet16& from) {
  const uint4 v = *reinterpret_cast<const uint4*>(&from);
  return {{v.x, v.y, v.z, v.w}};
}
__device__ void store_staged(Packet16& to, const Packet16& x) {
  *reinterpret_cast<uint4*>(&to) = {x.words[0], x.words[1], x.words[2], x.words[3]};
}

// Begins to copy the lane's packets of a matrix; zeros where there are none.
__device__ void stage(Staged& staged, Matrix m, const MxMatrix& from, const void* matrix) {
  const BFloat16* p = static_cast<const BFloat16*>(matrix) + from.first();
#pragma unroll
  for (int i = 0; i < kPacketRows; ++i, p += from.step()) {
    const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(&staged[m][i][threadIdx.x]));
    const int bytes = from.at.reads(i) ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(p), "r"(bytes)
                 : "memory");
  }
}
__device__ void wait_for_staged() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Before lanes read what others of the warp wrote: by halves each has its own packets.
template <typename Kind>
__device__ void wait_for_lanes() {
  if constexpr (Kind::kLayout == GateLayout::INTERLEAVED) __syncwarp();
}

// Where a lane stores its two packets of hidden rows.
struct HiddenPlaces {
  MxPlace first, second;

  template <typename Kind>
  static __device__ HiddenPlaces of(const MxPlace& at, int32_t columns) {
    if (Kind::kLayout == GateLayout::HALVES) return {at, at};
    return {{at.block, 2 * at.tile, 2 * columns}, {at.block, 2 * at.tile + 1, 2 * columns}};
  }
};

// Where the two staged packets with a lane's eight pairs are: its own by halves; else two neighbours
// of the 16 that the lanes of a row have.
template <typename Kind>
struct StagedPairs {
  int first_matrix = kFirst, second_matrix = kSecond;
  unsigned first = threadIdx.x, second = threadIdx.x;

  __device__ StagedPairs() {
    if constexpr (Kind::kLayout == GateLayout::INTERLEAVED) {
      const unsigned across = threadIdx.x % kLanesAcross;
      first_matrix = second_matrix = static_cast<int>(across / (kLanesAcross / 2));
      first = threadIdx.x - across + 2 * across % kLanesAcross;
      second = first + 1;
    }
  }
};

// ---- gradients
// The largest magnitudes of what becomes of the lane's rows, by column.
struct Maxima {
  Packet16 of[kMatrices] = {};

  // From those of the lane's pairs to those of the columns that it stores.
  template <typename Kind>
  __device__ void exchange() {
    if (Kind::kLayout == GateLayout::HALVES) return;
    const unsigned lane = threadIdx.x % 32, across = lane % kLanesAcross;
    const unsigned low = lane - across + across / 2, high = low + kLanesAcross / 2;
    const bool is_second = across % 2;
#pragma unroll
    for (int w = 0; w < Packet16::kWords; ++w) {
      uint32_t &first = of[kFirst].words[w], &second = of[kSecond].words[w];
      const uint32_t low_first = __shfl_sync(~0u, first, low);
      const uint32_t low_second = __shfl_sync(~0u, second, low);
      const uint32_t high_first = __shfl_sync(~0u, first, high);
      const uint32_t high_second = __shfl_sync(~0u, second, high);
      first = is_second ? low_second : low_first;
      second = is_second ? high_second : high_first;
    }
  }
};

// The sum over the lanes that share a row, in each of them.
__device__ float sum_across(float x) {
#pragma unroll
  for (int step = 1; step < kLanesAcross; step *= 2) {
    x = __fadd_rn(x, __shfl_xor_sync(~0u, x, step));
  }
  return x;
}

// Gradients and activations of all rows. `score_grad`: this tile's part of the gradient of the score
// of the lane's row number lane % 8.
template <typename Kind>
__device__ Maxima differentiate_rows(const Params& p, const MxPlace& at, const PairColumns& in,
                                     Staged& staged, float& score_grad) {
  const SwigluMxBackwardArgs& a = p.args;
  const float score = score_of_lane(a, at);
  const PairsOf<Packet32> bias = biases_of<Kind>(a, at, in);
  const StagedPairs<Kind> pairs;
  Maxima maxima;
#pragma unroll 2
  for (int i = 0; i < kPacketRows; ++i) {
    const RowFactors factors(a, __shfl_sync(~0u, score, at.row_of(i)));
    Packet16& first = staged[pairs.first_matrix][i][pairs.first];
    Packet16& second = staged[pairs.second_matrix][i][pairs.second];
    Packet16& narrow = staged[kNarrow][i][threadIdx.x];
    const Pairs h{{load_staged(first), load_staged(second)}};
    const Packet16 grad = load_staged(narrow);
    Pairs hidden;
    Packet16 activation;
    float sum =
        differentiate_packet<Kind>(p.gate, factors, h, bias, grad, 0.0f, hidden, activation);
    if (!at.reads(i)) {  // a bias, or a score that is NaN, makes something of zeros
      hidden = {};
      activation = {};
      sum = 0;
    }
    update_magnitudes(maxima.of[kFirst], hidden.first);
    update_magnitudes(maxima.of[kSecond], hidden.second);
    update_magnitudes(maxima.of[kNarrow], activation);
    store_staged(first, hidden.first);
    store_staged(second, hidden.second);
    store_staged(narrow, activation);
    if (a.score_grad == nullptr) continue;
    sum = sum_across(sum);
    if (static_cast<int>(threadIdx.x % kLanesAcross) == i) score_grad = sum;
  }
  maxima.exchange<Kind>();
  wait_for_lanes<Kind>();
  return maxima;
}

__device__ void store_score_part(const SwigluMxBackwardArgs& a, const MxPlace& at, float part) {
  const int32_t row = at.row_of(static_cast<int>(threadIdx.x % kLanesAcross));
  if (row < at.block.rows) a.score_parts[at.tile * a.groups.rows + at.block.row + row] = part;
}

// ---- results
__device__ Packet16 quantized(const Packet16& x, const ScaleBytes& s, bool plain) {
  return plain ? convert_plain<Packet16, kMxElem>(x, s.bytes)
               : convert<Packet16, kMxElem>(x, s.bytes);
}

struct ColumnScales {
  ScaleBytes s;
  bool plain;

  __device__ ColumnScales(const Packet16& maxima, ScaleCalculationMode mode) {
    uint32_t amax[8];
    amax_of_columns(maxima, amax);
    scales_of<kMxElem>(amax, mode, s.bytes);
    plain = all_plain<Packet16, kMxElem, BFloat16>(amax, s.bytes);
  }
};

// A packet and where it goes in its matrix.
struct PlacedPacket {
  Packet16 x;
  int64_t to;
  bool is_there;

  __device__ void store(void* matrix, const Packet16& values) const {
    if (is_there) store_packet(static_cast<BFloat16*>(matrix) + to, values);
  }
};

// All that is wanted of two packets, each in a row block with those of three other lanes.
__device__ void store_two(const PlacedPacket& a, const PlacedPacket& b, const ColumnScales& of_a,
                          const ColumnScales& of_b, ScaleCalculationMode mode, const MxRows& out) {
  if (out.values != nullptr) {
    a.store(out.values, a.x);
    b.store(out.values, b.x);
  }
  if (out.column_values != nullptr) {
    a.store(out.column_values, quantized(a.x, of_a.s, of_a.plain));
    b.store(out.column_values, quantized(b.x, of_b.s, of_b.plain));
  }
  if (out.row_values == nullptr) return;
  uint32_t amax[2] = {largest_magnitude(a.x), largest_magnitude(b.x)}, s[2];
  share_amax<4>(amax[0], amax[1]);
  scales_of<kMxElem>(amax, mode, s);
  const bool plain = all_plain<Packet16, kMxElem, BFloat16>(amax, s);
  a.store(out.row_values, quantized(a.x, ScaleBytes::all(s[0]), plain));
  b.store(out.row_values, quantized(b.x, ScaleBytes::all(s[1]), plain));
}

__device__ void store_hidden(const SwigluMxBackwardArgs& a, const MxMatrix& first,
                             const MxMatrix& second, const Staged& staged, const Maxima& maxima) {
  if (!a.hidden_grad.any()) return;
  const ColumnScales of_first(maxima.of[kFirst], a.mode), of_second(maxima.of[kSecond], a.mode);
  int64_t to_first = first.first(), to_second = second.first();
#pragma unroll 2
  for (int i = 0; i < kPacketRows; ++i) {
    store_two({load_staged(staged[kFirst][i][threadIdx.x]), to_first, first.at.writes(i)},
              {load_staged(staged[kSecond][i][threadIdx.x]), to_second, second.at.writes(i)},
              of_first, of_second, a.mode, a.hidden_grad);
    to_first += first.step();
    to_second += second.step();
  }
}

__device__ void store_activations(const SwigluMxBackwardArgs& a, const MxMatrix& narrow,
                                  const Staged& staged, const Maxima& maxima) {
  if (!a.scored_activation.any()) return;
  const ColumnScales scales(maxima.of[kNarrow], a.mode);
  int64_t to = narrow.first();
#pragma unroll 2
  for (int i = 0; i < kPacketRows; i += 2) {
    const Packet16(&rows)[kPacketRows][kMxThreads] = staged[kNarrow];
    const int64_t next = to + narrow.step();
    store_two({load_staged(rows[i][threadIdx.x]), to, narrow.at.writes(i)},
              {load_staged(rows[i + 1][threadIdx.x]), next, narrow.at.writes(i + 1)}, scales,
              scales, a.mode, a.scored_activation);
    to = next + narrow.step();
  }
}

// ---- kernels
template <typename Kind>
__global__ void __launch_bounds__(kMxThreads, kResident)
    swiglu_mx_backward(const __grid_constant__ Params p) {
  __shared__ alignas(16) Staged staged;
  follow_stream();
  const SwigluMxBackwardArgs& a = p.args;
  const int32_t columns = p.tiles.columns;
  const MxPlace at = place_of(p);
  if (at.block.rows == 0) return;
  const HiddenPlaces hidden = HiddenPlaces::of<Kind>(at, columns);
  constexpr bool kHalves = Kind::kLayout == GateLayout::HALVES;
  const MxMatrix first{hidden.first, 2 * columns, hidden.first.column},
      second{hidden.second, 2 * columns, hidden.second.column + (kHalves ? columns : 0)},
      narrow{at, columns, at.column};
  stage(staged, kFirst, first, a.hidden);
  stage(staged, kSecond, second, a.hidden);
  stage(staged, kNarrow, narrow, a.grad);
  wait_for_staged();
  wait_for_lanes<Kind>();
  float score_grad = 0;
  const Maxima maxima =
      differentiate_rows<Kind>(p, at, pair_columns<Kind>(at, columns), staged, score_grad);
  if (a.score_grad != nullptr) store_score_part(a, at, score_grad);
  store_activations(a, narrow, staged, maxima);
  store_hidden(a, first, second, staged, maxima);
}

__global__ void __launch_bounds__(kSumThreads)
    sum_score_parts(const __grid_constant__ SwigluMxBackwardArgs a, int64_t parts) {
  follow_stream();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (row >= a.groups.rows) return;
  float sum = 0;
#pragma unroll 8
  for (int64_t i = 0; i < parts; ++i) {
    sum = __fadd_rn(sum, __ldcs(a.score_parts + i * a.groups.rows + row));
  }
  a.score_grad[a.slot_of_row[row]] = sum;
}

// ---- launch
const char* refusal(const SwigluMxBackwardArgs& a) {
  if (const char* why = swiglu_mx_refusal(a)) return why;
  const bool wide =
      is_wide(a) && is_wide(a.grad) && is_wide(a.hidden_grad) && is_wide(a.scored_activation);
  if (!wide) return "rows not 16-byte aligned";
  const bool splits_blocks =
      a.activation.layout == GateLayout::HALVES && a.columns % kBlockRows != 0;
  if (splits_blocks && a.hidden_grad.row_values != nullptr) return "halves of no whole blocks";
  const bool can_sum = a.slot_of_row != nullptr && a.score_parts != nullptr;
  if (a.score_grad == nullptr || can_sum) return nullptr;
  return "a gradient of scores without slot_of_row or score_parts";
}

LaunchStatus launch_tiles(const SwigluMxBackwardArgs& a, cudaStream_t stream) {
  const Params p(a);
  const auto kernel = swiglu_mx_instance(
      a, []<typename Kind>(std::type_identity<Kind>) { return swiglu_mx_backward<Kind>; });
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return {error, "cudaFuncSetAttribute"};
  return launch_early(kernel, p.thread_blocks(), kMxThreads, 0, stream, p);
}

}  // namespace

LaunchStatus launch_swiglu_mx_backward(const SwigluMxBackwardArgs& a, cudaStream_t stream) {
  if (const char* why = refusal(a)) return refused(why);
  const bool wants = a.hidden_grad.any() || a.scored_activation.any() || a.score_grad != nullptr;
  if (a.groups.rows == 0 || !wants) return {};
  if (a.columns > 0) {
    const LaunchStatus status = launch_tiles(a, stream);
    if (!status.ok()) return status;
  }
  if (a.score_grad == nullptr) return {};
  return launch_early(sum_score_parts, ceil_div(a.groups.rows, int64_t{kSumThreads}), kSumThreads,
                      0, stream, a, swiglu_mx_score_parts(a.columns));
}

int64_t swiglu_mx_score_parts(int64_t columns) {
  return ceil_div(columns, int64_t{kWarpColumns});
}

}  // namespace moe8::cuda
