// SPDX-License-Identifier: BSD-3-Clause
// FP8 grad_weight: the tiles of sm90_grouped_gemm.cuh for groups of contraction, promoted to
// float32 every 256 tokens, because FP8 tensor-core accumulators keep 13 bits and groups are long.
#include "cuda/gemm/sm90_grouped_gemm.cuh"
#include "cuda/gemm/sm90_variants.h"

namespace moe8::cuda::sm90 {
namespace {

template <GemmElement kElement, FloatType kOutput>
using Depth = Config<kElement, kOutput, Grouped::DEPTH, Major::K, Major::K, 256, 128,
                     Schedule::COOPERATIVE, Shared::LEFT, /*kPromoteBlocks=*/2>;

template <GemmElement kElement>
LaunchStatus launch_256x128(const GroupedGemmArgs& a) {
  if (a.adds) return launch<Adding<Depth<kElement, FloatType::F32>>>(a);
  return a.output == FloatType::BF16 ? launch<Depth<kElement, FloatType::BF16>>(a)
                                     : launch<Depth<kElement, FloatType::F32>>(a);
}

}  // namespace

const char* refuses_fp8_depth(const GroupedGemmArgs& a) {
  if (!is_fp8(a.element)) return "operands are not FP8 codes";
  if (a.kind != Gemm::GRAD_WEIGHT) return "groups divide the rows";
  return refuses_any(a);
}

LaunchStatus launch_fp8_depth_256x128(const GroupedGemmArgs& a) {
  return a.element == GemmElement::E4M3 ? launch_256x128<GemmElement::E4M3>(a)
                                        : launch_256x128<GemmElement::E5M2_E4M3>(a);
}

}  // namespace moe8::cuda::sm90
