// SPDX-License-Identifier: BSD-3-Clause
// From codes with scales along rows back to numbers. A thread block has a piece of a row: one scale is
// the same number for all threads, one of a block of 32 serves the packets of four.
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/quantize/decode_rows.h"
#include "cuda/quantize/packet.cuh"
#include "formats/e8m0.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kThreads = 128;
constexpr int kPackets = 4;  // of eight elements, that a thread has at once
constexpr int64_t kPieceColumns = int64_t{kThreads} * kPackets * 8;

struct Decode {
  DecodeRowsArgs args;
  uint32_t pieces;  // of a row
  bool aligned;     // every access of a whole packet may be a wide one
};

// ---- device helpers
__device__ Codes load_codes(const uint8_t* p) {
  const uint2 v = __ldcs(reinterpret_cast<const uint2*>(p));
  return {{v.x, v.y}};
}

template <ElemDtype elem, typename T>
__device__ T value_of(uint32_t code, float factor) {
  const float value = __fmul_rn(decode(code & 0xFFu, elem), factor);
  return from_float<T>(isnan(value) ? __uint_as_float(0x7FC00000u) : value);
}

template <ElemDtype elem>
__device__ void decode_into(Packet<BFloat16>& out, const Codes& codes, float factor) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const BFloat16 v = value_of<elem, BFloat16>(codes.words[i / 4] >> (i % 4 * 8), factor);
    out.words[i / 2] |= uint32_t{v.bits} << (i % 2 * 16);
  }
}
template <ElemDtype elem>
__device__ void decode_into(Packet<float>& out, const Codes& codes, float factor) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float v = value_of<elem, float>(codes.words[i / 4] >> (i % 4 * 8), factor);
    out.words[i] = __float_as_uint(v);
  }
}

/// What the codes of a row are multiplied by.
struct RowFactor {
  float value;
  __device__ float at(int64_t) const { return value; }
};
struct BlockFactors {
  const uint8_t* scales;
  __device__ float at(int64_t column) const { return mx_scale_value(scales[column / kMxBlock]); }
};

template <typename Factor>
__device__ Factor factor_of(const DecodeRowsArgs& a, int64_t row) {
  if constexpr (std::is_same_v<Factor, RowFactor>) {
    return {__fdiv_rn(1.0f, a.scale[row])};
  } else {
    return {a.block_scale + row * ((a.columns + kMxBlock - 1) / kMxBlock)};
  }
}

// ---- kernel
template <ElemDtype elem, typename Factor, typename T>
__global__ void __launch_bounds__(kThreads) decode_rows(const __grid_constant__ Decode p) {
  follow_stream();
  const DecodeRowsArgs& a = p.args;
  const int64_t row = blockIdx.x / p.pieces, piece = blockIdx.x - row * p.pieces;
  const auto factor = factor_of<Factor>(a, row);
  const uint8_t* codes = a.codes + row * a.columns;
  T* out = static_cast<T*>(a.out) + row * a.columns;
  const int64_t first = piece * kPieceColumns + threadIdx.x * 8;
  if (!p.aligned) {
    const int64_t end = min(a.columns, (piece + 1) * kPieceColumns);
    for (int64_t c = piece * kPieceColumns + threadIdx.x; c < end; c += kThreads) {
      out[c] = value_of<elem, T>(codes[c], factor.at(c));
    }
    return;
  }
  Codes packets[kPackets];
#pragma unroll
  for (int i = 0; i < kPackets; ++i) {
    const int64_t c = first + i * kThreads * 8;
    packets[i] = c < a.columns ? load_codes(codes + c) : Codes{};
  }
#pragma unroll
  for (int i = 0; i < kPackets; ++i) {
    const int64_t c = first + i * kThreads * 8;
    if (c >= a.columns) continue;
    Packet<T> values{};
    decode_into<elem>(values, packets[i], factor.at(c));
    store_packet(out + c, values);
  }
}

template <typename Factor, typename T>
auto kernel_of(ElemDtype elem) {
  return elem == ElemDtype::E4M3 ? decode_rows<ElemDtype::E4M3, Factor, T>
                                 : decode_rows<ElemDtype::E5M2, Factor, T>;
}
template <typename T>
auto kernel_of(const DecodeRowsArgs& a) {
  return a.scale ? kernel_of<RowFactor, T>(a.elem) : kernel_of<BlockFactors, T>(a.elem);
}

}  // namespace

LaunchStatus launch_decode_rows(const DecodeRowsArgs& a, cudaStream_t stream) {
  if (a.elem != ElemDtype::E4M3 && a.elem != ElemDtype::E5M2)
    return refused("codes that are not FP8 numbers");
  if (a.rows * a.columns == 0) return {};
  const int64_t pieces = ceil_div(a.columns, kPieceColumns);
  if (a.rows > INT32_MAX / pieces) return refused("more rows than can be");
  const bool aligned = is_aligned(a.out, 8, 2) && a.columns % 8 == 0 &&
                       reinterpret_cast<uintptr_t>(a.codes) % 8 == 0;
  const auto kernel = a.out_type == FloatType::BF16 ? kernel_of<BFloat16>(a) : kernel_of<float>(a);
  return launch_early(kernel, a.rows * pieces, kThreads, 0, stream,
                      Decode{a, static_cast<uint32_t>(pieces), aligned});
}

}  // namespace moe8::cuda
