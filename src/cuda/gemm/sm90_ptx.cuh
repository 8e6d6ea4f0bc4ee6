// SPDX-License-Identifier: BSD-3-Clause
// What the GEMM kernels use of Hopper's instructions: thin names over CuTe's arch wrappers (matrix
// multiply, bulk tensor copy, barriers). The schedule is in sm90_grouped_gemm.cuh.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include <cstdint>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/copy_sm90.hpp>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_desc.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

#include "cuda/gemm/grouped_gemm.h"

namespace moe8::cuda::sm90 {

using Barrier = cutlass::arch::ClusterTransactionBarrier;
using cute::SM90::GMMA::Major;
using cute::SM90::GMMA::ScaleOut;

inline constexpr int kSwizzleBytes = 128;               // one row of a shared-memory tile
inline constexpr int kAtomBytes = 8 * kSwizzleBytes;    // 8 rows: the unit of the swizzle
inline constexpr int kChunkBytes = 64 * kSwizzleBytes;  // 64 rows: one box of an MN-major operand
inline constexpr int kStepBytes = 32;                   // contraction of one wgmma
inline constexpr int kStepsPerBlock = kSwizzleBytes / kStepBytes;

/// The instruction that multiplies 64 x kCols x 32 bytes from shared memory.
template <GemmElement kElement, int kCols, Major kLeft, Major kRight>
struct Wgmma;
#define MOE8_WGMMA(cols)                                             \
  template <>                                                        \
  struct Wgmma<GemmElement::E4M3, cols, Major::K, Major::K>          \
      : cute::SM90::GMMA::MMA_64x##cols##x32_F32E4M3E4M3_SS_TN<> {}; \
  template <>                                                        \
  struct Wgmma<GemmElement::E5M2_E4M3, cols, Major::K, Major::K>     \
      : cute::SM90::GMMA::MMA_64x##cols##x32_F32E5M2E4M3_SS_TN<> {}; \
  template <Major kLeft, Major kRight>                               \
  struct Wgmma<GemmElement::BF16, cols, kLeft, kRight>               \
      : cute::SM90::GMMA::MMA_64x##cols##x16_F32BF16BF16_SS<kLeft, kRight> {};
MOE8_WGMMA(128)
MOE8_WGMMA(192)
MOE8_WGMMA(256)
#undef MOE8_WGMMA

/// d = left * right, + d if `keep` says so, asynchronously; CuTe wants one argument a register.
template <typename Instruction, int kCount>
__device__ __forceinline__ void multiply_add(float (&d)[kCount], uint64_t left, uint64_t right,
                                             ScaleOut keep = ScaleOut::One) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    Instruction::fma(left, right, d[i]..., keep);
  }
  (std::make_integer_sequence<int, kCount>{});
}

/// Keeps the compiler from moving uses of the accumulators over the asynchronous multiplies.
template <int kCount>
__device__ __forceinline__ void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) cute::warpgroup_fence_operand(d[i]);
}

/// Describes a 128-byte-swizzled operand at a shared-memory address. K-major: rows of 128 bytes of
/// contraction. MN-major: chunks of 64 columns, each 64 contraction rows of 128 bytes.
template <Major kMajor>
__device__ __forceinline__ uint64_t describe(uint32_t address) {
  cute::GmmaDescriptor d;
  d.bitfield.start_address_ = address >> 4;
  d.bitfield.leading_byte_offset_ = kMajor == Major::K ? 1 : kChunkBytes >> 4;
  d.bitfield.stride_byte_offset_ = kAtomBytes >> 4;
  d.bitfield.layout_type_ = 1;  // 128-byte swizzle
  return d;
}

/// What to add to a descriptor for the next 32 bytes of contraction.
template <Major kMajor>
inline constexpr uint64_t kNextStep = (kMajor == Major::K ? kStepBytes : 16 * kSwizzleBytes) >> 4;

/// Copies one box to this CTA (one_cta) or to both CTAs of the pair at the same offset.
__device__ __forceinline__ void load_box(const CUtensorMap& map, uint64_t* full, void* to,
                                         bool both, int x, int y, int z) {
  constexpr auto kHint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
  if (both) {
    cute::SM90_TMA_LOAD_MULTICAST_3D::copy(&map, full, uint16_t{3}, kHint, to, x, y, z);
  } else {
    cute::SM90_TMA_LOAD_3D::copy(&map, full, kHint, to, x, y, z);
  }
}

}  // namespace moe8::cuda::sm90
