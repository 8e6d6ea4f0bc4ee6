// SPDX-License-Identifier: BSD-3-Clause
// FP8 grad_weight: the tiles of sm90_grouped_gemm.cuh for groups of contraction, promoted to
// float32 every 256 tokens, because FP8 tensor-core accumulators keep 13 bits and groups are long.
#include "cuda/gemm/sm90_grouped_gemm.cuh"
#include "cuda/gemm/sm90_variants.h"

namespace moe8::cuda::sm90 {
namespace {

template <GemmElement kElement, GemmOutput kOutput, int kRows, int kCols, Schedule kSchedule,
          int kPromoteBlocks>
using Depth = Config<kElement, kOutput, Grouped::kDepth, Major::K, Major::K, kRows, kCols,
                     kSchedule, Shared::kLeft, kPromoteBlocks>;

template <GemmElement kElement, int kRows, int kCols, Schedule kSchedule, int kPromoteBlocks>
LaunchStatus launch_tile(const GroupedGemmArgs& a) {
  using enum GemmOutput;
  return a.output == kBFloat16
             ? launch<Depth<kElement, kBFloat16, kRows, kCols, kSchedule, kPromoteBlocks>>(a)
             : launch<Depth<kElement, kFloat32, kRows, kCols, kSchedule, kPromoteBlocks>>(a);
}

template <GemmElement kElement>
LaunchStatus launch_256x128(const GroupedGemmArgs& a) {
  return launch_tile<kElement, 256, 128, Schedule::kCooperative, 2>(a);
}

}  // namespace

const char* refuses_fp8_depth(const GroupedGemmArgs& a) {
  if (!is_fp8(a.element)) return "operands are not FP8 codes";
  if (a.kind != GroupedGemmKind::kGradWeight) return "groups divide the rows";
  return refuses_any(a);
}

const char* refuses_fp8_depth_twin(const GroupedGemmArgs& a) {
  if (a.element == GemmElement::kE5M2E4M3) return "left holds E5M2 codes";
  return refuses_fp8_depth(a);
}

LaunchStatus launch_fp8_depth_256x128(const GroupedGemmArgs& a) {
  return a.element == GemmElement::kE4M3 ? launch_256x128<GemmElement::kE4M3>(a)
                                         : launch_256x128<GemmElement::kE5M2E4M3>(a);
}

LaunchStatus launch_fp8_depth_twin(const GroupedGemmArgs& a) {
  return launch_tile<GemmElement::kE4M3, 128, 128, Schedule::kTwin, 1>(a);
}

}  // namespace moe8::cuda::sm90
