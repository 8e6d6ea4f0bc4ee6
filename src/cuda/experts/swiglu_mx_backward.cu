// SPDX-License-Identifier: BSD-3-Clause
// The gated activation backward, of which the next products read MX values. A warp's tile of H and
// dA goes to shared memory, where gradients and activations replace it, and from there out, a row at
// a time: in registers it would leave room for few warps, and code that is one long line for eight
// rows is fetched more slowly than it runs. A lane has its own packets; none waits for another.
#include "cuda/experts/swiglu_mx.cuh"

namespace moe8::cuda {
namespace {

using Params = SwigluMxParams<SwigluMxBackwardArgs>;

// ---- configuration
constexpr int kResident = 4;  // thread blocks on a multiprocessor, each with 48 KiB of staged rows
constexpr int kSumThreads = 256;

// ---- shared memory
// A lane's packets: gates and ups, or neighbours of both, then their gradients; dA, then A.
enum Matrix { kFirst, kSecond, kNarrow, kMatrices };
using Staged = Packet16[kMatrices][kPacketRows][kMxThreads];

__device__ Packet16 load_staged(const Staged& staged, Matrix m, int i) {
  const uint4 v = *reinterpret_cast<const uint4*>(&staged[m][i][threadIdx.x]);
  return {{v.x, v.y, v.z, v.w}};
}
__device__ void store_staged(Staged& staged, Matrix m, int i, const Packet16& x) {
  *reinterpret_cast<uint4*>(&staged[m][i][threadIdx.x]) = {x.words[0], x.words[1], x.words[2],
                                                           x.words[3]};
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

// ---- gradients
// Of the lane's columns, the largest magnitudes of what becomes of its rows.
struct Maxima {
  Packet16 of[kMatrices] = {};
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
  Maxima maxima;
#pragma unroll 2
  for (int i = 0; i < kPacketRows; ++i) {
    const RowFactors factors(a, __shfl_sync(~0u, score, at.row_of(i)));
    const Pairs h{{load_staged(staged, kFirst, i), load_staged(staged, kSecond, i)}};
    const Packet16 grad = load_staged(staged, kNarrow, i);
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
    store_staged(staged, kFirst, i, hidden.first);
    store_staged(staged, kSecond, i, hidden.second);
    store_staged(staged, kNarrow, i, activation);
    if (a.score_grad == nullptr) continue;
    sum = sum_across(sum);
    if (static_cast<int>(threadIdx.x % kLanesAcross) == i) score_grad = sum;
  }
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

// All that is wanted of two packets. kOneBlock: they are neighbours and share a row block with those
// of the next lane; else the block of each is that of four lanes.
template <bool kOneBlock>
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
  if constexpr (kOneBlock) amax[0] = amax[1] = max(amax[0], amax[1]);
  share_amax<kOneBlock ? 2 : 4>(amax[0], amax[1]);
  scales_of<kMxElem>(amax, mode, s);
  const bool plain = all_plain<Packet16, kMxElem, BFloat16>(amax, s);
  a.store(out.row_values, quantized(a.x, ScaleBytes::all(s[0]), plain));
  b.store(out.row_values, quantized(b.x, ScaleBytes::all(s[1]), plain));
}

template <typename Kind>
__device__ void store_pairs(const SwigluMxBackwardArgs& a, const MxMatrix& first,
                            const MxMatrix& second, const Staged& staged, const Maxima& maxima) {
  if (!a.hidden_grad.any()) return;
  constexpr bool kOneBlock = Kind::kLayout == GateLayout::INTERLEAVED;
  const ColumnScales of_first(maxima.of[kFirst], a.mode), of_second(maxima.of[kSecond], a.mode);
  int64_t to_first = first.first(), to_second = second.first();
#pragma unroll 2
  for (int i = 0; i < kPacketRows; ++i) {
    const bool is_there = first.at.writes(i);
    store_two<kOneBlock>({load_staged(staged, kFirst, i), to_first, is_there},
                         {load_staged(staged, kSecond, i), to_second, is_there}, of_first,
                         of_second, a.mode, a.hidden_grad);
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
    const int64_t next = to + narrow.step();
    store_two<false>({load_staged(staged, kNarrow, i), to, narrow.at.writes(i)},
                     {load_staged(staged, kNarrow, i + 1), next, narrow.at.writes(i + 1)}, scales,
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
  const PairColumns in = pair_columns<Kind>(at, columns);
  const MxMatrix first{at, 2 * columns, in.first}, second{at, 2 * columns, in.second},
      narrow{at, columns, at.column};
  stage(staged, kFirst, first, a.hidden);
  stage(staged, kSecond, second, a.hidden);
  stage(staged, kNarrow, narrow, a.grad);
  wait_for_staged();
  float score_grad = 0;
  const Maxima maxima = differentiate_rows<Kind>(p, at, in, staged, score_grad);
  if (a.score_grad != nullptr) store_score_part(a, at, score_grad);
  store_activations(a, narrow, staged, maxima);
  store_pairs<Kind>(a, first, second, staged, maxima);
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
