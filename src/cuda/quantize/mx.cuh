// SPDX-License-Identifier: BSD-3-Clause
// The MX kernel: tile, amax, scales; and how a packet becomes codes or values. The instances are in
// mx_values.cu and mx_codes.cu.
// Cost floor (bf16): 2 bytes read, 2 written per direction as values, 1 as codes.
//
// A warp takes a block of 32 rows and 64 columns, a lane 8 packets of 8 columns, 4 rows apart:
// loads are whole 128-byte lines, and the amax of row blocks is found among 4 lanes, that of column
// blocks among the other 4, by two shuffles each. No shared memory.
#pragma once

#include <bit>

#include "cuda/launch.cuh"
#include "cuda/quantize/float8.cuh"
#include "cuda/quantize/mx.h"
#include "cuda/quantize/packet.cuh"
#include "formats/e8m0.h"

namespace moe8::cuda {

// ---- configuration
inline constexpr int kMxThreads = 128;
inline constexpr int kMxWarps = kMxThreads / 32;
// Blocks on a multiprocessor, so that enough loads are in flight: caps the registers.
template <typename T, typename Out>
inline constexpr int kMxResident = Out::kWords == 8 ? 3
                                   : sizeof(T) == 2 ? 5
                                                    : 4;
inline constexpr int kPacketRows = 8;   // packets of a lane
inline constexpr int kRowStep = 4;      // rows between them: lanes of a warp that differ in row
inline constexpr int kLanesAcross = 8;  // 64 columns
inline constexpr int kWarpColumns = kLanesAcross * 8;

struct Mx {
  MxArgs args;
  RowChunks blocks;
  int32_t wide;  // warps across the columns, a multiple of kMxWarps: a thread block has one block
  int64_t warps;
  bool aligned;  // every access of a whole packet may be a wide one
};

// ---- one element
/// q rounded to `elem`, ties to even, saturating, as the sum of its magnitude and 1.5 * 2^k: k is
/// chosen from q's exponent so that the sum's last bit is the element's step there, and the adder
/// rounds for us. Below the smallest normal the step stays. NaN rounds like a number: its block's
/// scale tells.
template <ElemDtype elem>
struct Rounded {
  static constexpr ElemLayout f = layout_of(elem);
  static constexpr float kShift = 1.5f * (1 << (23 - f.mantissa_bits));

  float power;  // of two: q's binade
  float sum;

  __device__ explicit Rounded(float q) {
    constexpr float kSmallestNormal = exp2_exact(f.min_exponent());
    const float m = fminf(fabsf(q), f.max);
    power = __uint_as_float(__float_as_uint(fmaxf(m, kSmallestNormal)) & 0x7F800000u);
    sum = __fmaf_rn(power, kShift, m);
  }

  __device__ float magnitude() const { return __fmaf_rn(power, -kShift, sum); }

  /// The code without sign. The sum's low bits count steps; each binade is 2^mantissa_bits codes.
  __device__ uint32_t code() const {
    constexpr uint32_t kFirst = (127 + f.min_exponent()) << f.mantissa_bits;
    const uint32_t binade = __float_as_uint(power) >> (23 - f.mantissa_bits);
    return binade + (__float_as_uint(sum) & 0x3FFFFFu) - kFirst;
  }
};

template <ElemDtype elem>
__device__ uint32_t code_of(float q) {
  constexpr int kSign = layout_of(elem).bits() - 1;
  return Rounded<elem>(q).code() | __float_as_uint(q) >> 31 << kSign;
}

/// 2^(127 - s) and 2^(s - 127), as mx_scale_inverse() and mx_scale_value(), by selection.
__device__ inline float inverse_of_scale(uint32_t s) {
  const uint32_t bits = s == 254 ? 0x00400000u : (254u - s) << 23;
  return __uint_as_float(s == kE8m0NaN ? 0x7FC00000u : bits);
}
__device__ inline float value_of_scale(uint32_t s) {
  return __uint_as_float(s == 0 ? 0x00400000u : s << 23);  // 255, NaN, is not asked for
}

// ---- a packet: elements whose blocks have the scale bytes s
/// bf16 values in bf16 arithmetic, two at a time. Only where is_plain(): elsewhere powers leave the
/// range of bf16. T, the smallest normal of the element format, and S, its largest value, are
/// scaled to the block instead of the block to them.
template <ElemDtype elem>
struct PlainBf16 {
  static constexpr ElemLayout f = layout_of(elem);
  // The last bit of power * kShift is the element's step: bf16 has 7 mantissa bits.
  static constexpr uint32_t kShift = std::bit_cast<uint32_t>(1.5f * (1 << (7 - f.mantissa_bits)));
  static constexpr uint32_t kShifts = (kShift & 0xFFFF0000u) | kShift >> 16;

  /// For blocks of zeros, and of magnitudes whose roundings stay normal. None with a NaN.
  static __device__ bool is_plain(uint32_t amax_bits, uint32_t s) {
    constexpr uint32_t kHighest = 127 + 119;  // 1.5 * 2^(7 - 1) * 2^119 is below 2^127
    constexpr int kLowest = 1 - f.min_exponent();
    const bool in_range = static_cast<int>(s) >= kLowest && (amax_bits >> 23) <= kHighest;
    return amax_bits == 0 || in_range;
  }

  static __device__ uint32_t smallest(uint32_t s) {
    return static_cast<uint32_t>(max(static_cast<int>(s) + f.min_exponent(), 1)) << 7;
  }
  static __device__ uint32_t largest(uint32_t s) {
    constexpr uint32_t kMax = std::bit_cast<uint32_t>(f.max) >> 16;
    return (kMax + (s << 7) - (127u << 7)) & 0x7FFFu;
  }

  static __device__ uint32_t smallest_pair(uint32_t s_low, uint32_t s_high) {
    return smallest(s_low) | smallest(s_high) << 16;
  }
  static __device__ uint32_t largest_pair(uint32_t s_low, uint32_t s_high) {
    return largest(s_low) | largest(s_high) << 16;
  }

  /// The powers of two of magnitudes, at least T; and their sums with 1.5 * 2^k.
  static __device__ uint32_t powers(uint32_t m, uint32_t t) {
    uint32_t power;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(power) : "r"(m), "r"(t));
    return power & 0x7F807F80u;
  }
  static __device__ uint32_t sums(uint32_t power, uint32_t factor, uint32_t x) {
    uint32_t sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(power), "r"(factor), "r"(x));
    return sum;
  }

  /// Two values.
  static __device__ uint32_t round_pair(uint32_t x, uint32_t s_low, uint32_t s_high) {
    const uint32_t power = powers(x & 0x7FFF7FFFu, smallest_pair(s_low, s_high));
    uint32_t y = sums(power, kShifts ^ 0x80008000u, sums(power, kShifts, x));
    asm("min.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(y), "r"(largest_pair(s_low, s_high)));
    return y | (x & 0x80008000u);
  }

  /// Two codes, 16 bits apart, as Rounded::code() makes one.
  static __device__ uint32_t encode_pair(uint32_t x, uint32_t s_low, uint32_t s_high) {
    constexpr uint32_t kSign = 1u << (f.bits() - 1);
    const uint32_t t = smallest_pair(s_low, s_high);
    uint32_t m;
    asm("min.bf16x2 %0, %1, %2;"
        : "=r"(m)
        : "r"(x & 0x7FFF7FFFu), "r"(largest_pair(s_low, s_high)));
    const uint32_t power = powers(m, t);
    const uint32_t steps = sums(power, kShifts, m) & 0x003F003Fu;
    const uint32_t sign = x >> (16 - f.bits()) & (kSign | kSign << 16);
    return (((power - t) >> (7 - f.mantissa_bits)) + steps) | sign;
  }
};

/// Word by word: NaN where the scale says so.
template <int kWords>
__device__ void name_nans(uint32_t (&words)[kWords], const uint32_t (&s)[8], uint32_t nan) {
  constexpr int kPerWord = 8 / kWords;
  constexpr int kBits = 32 / kPerWord;
  constexpr uint32_t kOnes = kBits == 32 ? ~0u : (1u << kBits % 32) - 1;
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    uint32_t keep = ~0u, named = 0;
#pragma unroll
    for (int i = 0; i < kPerWord; ++i) {
      const bool is_nan = s[w * kPerWord + i] == kE8m0NaN;
      keep &= is_nan ? ~(kOnes << i * kBits) : ~0u;
      named |= is_nan ? nan << i * kBits : 0u;
    }
    words[w] = (words[w] & keep) | named;
  }
}

template <ElemDtype elem, typename T>
__device__ float value_at(const Packet<T>& x, const uint32_t (&s)[8], int i) {
  const float q = x.get(i) * inverse_of_scale(s[i]);
  return copysignf(Rounded<elem>(q).magnitude(), q) * value_of_scale(s[i]);
}

/// Out: Codes, Packet<BFloat16> or Packet<float>.
template <typename Out, ElemDtype elem, typename T>
__device__ Out convert(const Packet<T>& x, const uint32_t (&s)[8]) {
  Out out{};
  if constexpr (Out::kWords == 2 && kHasConversion<elem>) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      out.words[i / 4] |= encode_pair<elem>(x.get(i) * inverse_of_scale(s[i]),
                                            x.get(i + 1) * inverse_of_scale(s[i + 1]))
                          << i % 4 * 8;
    }
  } else if constexpr (Out::kWords == 2) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      out.words[i / 4] |= code_of<elem>(x.get(i) * inverse_of_scale(s[i])) << i % 4 * 8;
    }
    name_nans(out.words, s, layout_of(elem).nan_cast);
  } else if constexpr (Out::kWords == 4) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;"
          : "=r"(out.words[w])
          : "f"(value_at<elem>(x, s, 2 * w + 1)), "f"(value_at<elem>(x, s, 2 * w)));
    }
    name_nans(out.words, s, 0x7FC0u);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) out.words[i] = __float_as_uint(value_at<elem>(x, s, i));
    name_nans(out.words, s, 0x7FC00000u);
  }
  return out;
}

/// Whether bf16 arithmetic makes `Out` of `T`. Formats that the hardware converts to need none.
template <typename Out, ElemDtype elem, typename T>
inline constexpr bool kHasPlain = sizeof(T) == 2 &&
                                  (Out::kWords == 4 || (Out::kWords == 2 && !kHasConversion<elem>));

template <typename Out, ElemDtype elem>
__device__ Out convert_plain(const Packet<BFloat16>& x, const uint32_t (&s)[8]) {
  using Plain = PlainBf16<elem>;
  Out out;
  if constexpr (Out::kWords == 4) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      out.words[w] = Plain::round_pair(x.words[w], s[2 * w], s[2 * w + 1]);
    }
  } else {
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      out.words[w] =
          __byte_perm(Plain::encode_pair(x.words[2 * w], s[4 * w], s[4 * w + 1]),
                      Plain::encode_pair(x.words[2 * w + 1], s[4 * w + 2], s[4 * w + 3]), 0x6420);
    }
  }
  return out;
}

// ---- a lane's share of a tile
/// The amax of two row blocks of bf16 whose packets kLanes neighbouring lanes have, from those of the
/// lane's own packets: both in one shuffle.
template <int kLanes>
__device__ void share_amax(uint32_t& a, uint32_t& b) {
  uint32_t pair = a >> 16 | b;
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    pair = __vmaxu2(pair, __shfl_xor_sync(~0u, pair, step));
  }
  a = pair << 16;
  b = pair & 0xFFFF0000u;
}

/// The amax of each of a lane's columns, from the largest magnitudes of its own packets.
template <typename T>
__device__ void amax_of_columns(Packet<T> m, uint32_t (&amax)[8]) {
#pragma unroll
  for (int w = 0; w < Packet<T>::kWords; ++w) {
    m.words[w] = max_magnitude<T>(m.words[w], __shfl_xor_sync(~0u, m.words[w], 8));
    m.words[w] = max_magnitude<T>(m.words[w], __shfl_xor_sync(~0u, m.words[w], 16));
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) amax[i] = magnitude_at(m, i);
}

template <typename T>
struct MxPackets {
  Packet<T> packets[kPacketRows];

  /// The amax of each packet's row block.
  __device__ void row_amax(uint32_t (&amax)[8]) const {
#pragma unroll
    for (int i = 0; i < kPacketRows; ++i) amax[i] = largest_magnitude(packets[i]);
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int i = 0; i < kPacketRows; i += 2) share_amax<4>(amax[i], amax[i + 1]);
    } else {
#pragma unroll
      for (int i = 0; i < kPacketRows; ++i) {
        amax[i] = max(amax[i], __shfl_xor_sync(~0u, amax[i], 1));
        amax[i] = max(amax[i], __shfl_xor_sync(~0u, amax[i], 2));
      }
    }
  }

  /// The amax of each of the lane's columns.
  __device__ void column_amax(uint32_t (&amax)[8]) const {
    Packet<T> m = packets[0];
#pragma unroll
    for (int i = 1; i < kPacketRows; ++i) update_magnitudes(m, packets[i]);
    amax_of_columns(m, amax);
  }
};

/// And where it lies.
template <typename T>
struct MxTile : MxPackets<T> {
  using MxPackets<T>::packets;
  RowChunk block;
  int32_t block_index;
  int32_t column;  // of the lane's first element
  int row;         // of its first packet in the block

  __device__ int row_of(int i) const { return i * kRowStep + row; }

  /// From here on the rows are those of the joined result.
  __device__ void join(const MxArgs& a) {
    if (a.joined.group_rows == 0) return;  // not joined
    block.row += block.group * (a.joined.group_rows - a.groups.group_rows) + a.joined.first;
  }

  __device__ void load(const Mx& p) {
    const T* x = static_cast<const T*>(p.args.x) + block.row * p.args.columns + column;
    const int32_t left = static_cast<int32_t>(p.args.columns) - column;
    if (p.aligned) {
#pragma unroll
      for (int i = 0; i < kPacketRows; ++i) {
        packets[i] = row_of(i) < block.rows && left > 0
                         ? load_packet(x + row_of(i) * p.args.columns)
                         : Packet<T>{};
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPacketRows; ++i) {
        packets[i] =
            load_elements(x + row_of(i) * p.args.columns, row_of(i) < block.rows ? left : 0);
      }
    }
  }

  template <typename Out>
  __device__ void store(const Mx& p, void* base, int i, const Out& out) const {
    const int32_t left = static_cast<int32_t>(p.args.columns) - column;
    if (row_of(i) >= block.rows || left <= 0) return;
    const int64_t at = (block.row + row_of(i)) * p.args.columns + column;
    void* address = static_cast<char*>(base) + at * (Out::kWords / 2);
    if (p.aligned) {
      store_packet(address, out);
    } else {
      store_elements(address, out, left);
    }
  }
};

template <ElemDtype elem, int kCount>
__device__ void scales_of(const uint32_t (&amax)[kCount], ScaleCalculationMode mode,
                          uint32_t (&s)[kCount]) {
  const auto of_mode = [&]<ScaleCalculationMode kMode>() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) s[i] = mx_scale(amax[i], elem, kMode);
  };
  using enum ScaleCalculationMode;
  switch (mode) {
    case FLOOR:
      return of_mode.template operator()<FLOOR>();
    case RCEIL:
      return of_mode.template operator()<RCEIL>();
    case CEIL:
      return of_mode.template operator()<CEIL>();
    case EVEN:
      return of_mode.template operator()<EVEN>();
  }
}

/// Whether the whole warp may use the arithmetic of bf16.
template <typename Out, ElemDtype elem, typename T, int kCount>
__device__ bool all_plain(const uint32_t (&amax)[kCount], const uint32_t (&s)[kCount]) {
  if constexpr (!kHasPlain<Out, elem, T>) return false;
  bool plain = true;
#pragma unroll
  for (int i = 0; i < kCount; ++i) plain &= PlainBf16<elem>::is_plain(amax[i], s[i]);
  return __all_sync(~0u, plain);
}

struct ScaleBytes {
  uint32_t bytes[8];

  /// Of a packet within one row block.
  static __device__ ScaleBytes all(uint32_t s) { return {{s, s, s, s, s, s, s, s}}; }
};

/// Converts the lane's packets and calls store(i, result); s(i): the scale bytes of packet i.
template <typename Out, ElemDtype elem, typename T, typename Scales, typename Store>
__device__ void emit(const MxPackets<T>& x, bool plain, Scales s, Store store) {
  if constexpr (kHasPlain<Out, elem, T>) {
    if (plain) {
#pragma unroll
      for (int i = 0; i < kPacketRows; ++i) {
        store(i, convert_plain<Out, elem>(x.packets[i], s(i).bytes));
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kPacketRows; ++i) {
    store(i, convert<Out, elem>(x.packets[i], s(i).bytes));
  }
}

/// The scale bytes of a thread block's row blocks: gathered, as single bytes cost a sector each.
inline constexpr int kRowScales = kMxWarps * kWarpColumns / kBlockRows;
using RowScales = uint8_t[kBlockRows][kRowScales];

/// Writes them after all warps have put theirs there: a row a thread in one store, or a quarter of
/// a row where rows are not aligned. Where they go is worked out again, as what is kept until here
/// costs registers.
__device__ inline void store_row_scales(const Mx& p, const RowScales& scales) {
  static_assert(kRowScales == sizeof(uint2) && kMxThreads == 4 * kBlockRows);
  const int64_t across = (p.args.columns + kBlockRows - 1) / kBlockRows;
  const unsigned wide = p.wide / kMxWarps;
  const int64_t first = blockIdx.x % wide * kRowScales;
  const RowChunk block = p.blocks.at(blockIdx.x / wide);
  uint8_t* out = p.args.row_blocks.scale + block.row * across + first;
  if (across % kRowScales == 0 && reinterpret_cast<uintptr_t>(out) % kRowScales == 0) {
    const int row = static_cast<int>(threadIdx.x);
    if (row >= block.rows) return;
    *reinterpret_cast<uint2*>(out + row * across) = *reinterpret_cast<const uint2*>(scales[row]);
    return;
  }
  const int row = static_cast<int>(threadIdx.x / 4);
  const int begin = static_cast<int>(threadIdx.x % 4 * 2);
  if (row >= block.rows) return;
  for (int i = begin; i < begin + 2 && first + i < across; ++i) {
    out[row * across + i] = scales[row][i];
  }
}

template <typename Out, ElemDtype elem, typename T>
__device__ void emit_rows(const Mx& p, const MxTile<T>& tile, RowScales& scales) {
  const MxOutputs& o = p.args.row_blocks;
  uint32_t amax[8], s[8];
  tile.row_amax(amax);
  scales_of<elem>(amax, p.args.mode, s);
  if (tile.column % kBlockRows == 0) {
#pragma unroll
    for (int i = 0; i < kPacketRows; ++i) {
      scales[tile.row_of(i)][tile.column / kBlockRows % kRowScales] = static_cast<uint8_t>(s[i]);
    }
  }
  void* base = Out::kWords == 2 ? o.codes : o.values;
  if (base == nullptr) return;
  emit<Out, elem>(
      tile, all_plain<Out, elem, T>(amax, s), [&](int i) { return ScaleBytes::all(s[i]); },
      [&](int i, const Out& out) { tile.store(p, base, i, out); });
}

template <typename Out, ElemDtype elem, typename T>
__device__ void emit_columns(const Mx& p, const MxTile<T>& tile) {
  const MxOutputs& o = p.args.column_blocks;
  const bool grouped = tile.block.group != kNoGroup;
  uint32_t amax[8];
  ScaleBytes s;
  tile.column_amax(amax);
  scales_of<elem>(amax, p.args.mode, s.bytes);
  const int32_t left = static_cast<int32_t>(p.args.columns) - tile.column;
  if (o.scale != nullptr && tile.row == 0 && left > 0 &&
      tile.block_index < p.args.column_scale_rows) {
    Codes bytes{};
#pragma unroll
    for (int i = 0; i < 8; ++i) bytes.words[i / 4] |= (grouped ? s.bytes[i] : 0u) << (i % 4 * 8);
    uint8_t* address = o.scale + tile.block_index * p.args.columns + tile.column;
    p.aligned ? store_packet(address, bytes) : store_elements(address, bytes, left);
  }
  void* base = Out::kWords == 2 ? o.codes : o.values;
  if (base == nullptr) return;
  if (!grouped) {
#pragma unroll
    for (int i = 0; i < kPacketRows; ++i) tile.store(p, base, i, Out{});
    return;
  }
  emit<Out, elem>(
      tile, all_plain<Out, elem, T>(amax, s.bytes), [&](int) { return s; },
      [&](int i, const Out& out) { tile.store(p, base, i, out); });
}

// ---- kernel
template <typename T, typename Out, ElemDtype elem>
__global__ void __launch_bounds__(kMxThreads, (kMxResident<T, Out>))
    quantize_mx(const __grid_constant__ Mx p) {
  follow_stream();
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kMxWarps + threadIdx.x / 32;
  if (warp >= p.warps) return;
  const int lane = threadIdx.x % 32;
  MxTile<T> tile;
  tile.block_index = static_cast<int32_t>(warp / p.wide);
  tile.block = p.blocks.at(tile.block_index);
  tile.column = static_cast<int32_t>(warp % p.wide) * kWarpColumns + lane % kLanesAcross * 8;
  tile.row = lane / kLanesAcross;
  tile.load(p);
  tile.join(p.args);
  __shared__ alignas(8) RowScales scales;
  if (p.args.row_blocks.any()) emit_rows<Out, elem>(p, tile, scales);
  if (p.args.column_blocks.any()) emit_columns<Out, elem>(p, tile);
  if (p.args.row_blocks.scale == nullptr) return;
  __syncthreads();
  store_row_scales(p, scales);
}

using MxKernel = void (*)(Mx);

/// The instance for these types; defined in mx_values.cu and mx_codes.cu.
MxKernel mx_values_kernel(FloatType x, FloatType values, ElemDtype elem);
MxKernel mx_codes_kernel(FloatType x, ElemDtype elem);

}  // namespace moe8::cuda
