// SPDX-License-Identifier: BSD-3-Clause
// FP8 out and grad_input: the tiles of sm90_grouped_gemm.cuh for groups of rows. With fast
// accumulation the tensor cores add throughout; without it, float32 sums of 128 products each,
// or of 256 where E5M2 has fewer bits to lose: 2 % faster.
#include "cuda/gemm/sm90_grouped_gemm.cuh"
#include "cuda/gemm/sm90_variants.h"

namespace moe8::cuda::sm90 {
namespace {

template <GemmElement kElement, FloatType kOutput, int kRows, int kCols, Schedule kSchedule,
          Shared kShared, int kPromoteBlocks>
using Rows = Config<kElement, kOutput, Grouped::ROWS, Major::K, Major::K, kRows, kCols, kSchedule,
                    kShared, kPromoteBlocks>;

template <GemmElement kElement, int kRows, int kCols, Schedule kSchedule, Shared kShared,
          int kPromoteBlocks>
LaunchStatus launch_tile(const GroupedGemmArgs& a) {
  return a.output == FloatType::BF16 ? launch<Rows<kElement, FloatType::BF16, kRows, kCols,
                                                   kSchedule, kShared, kPromoteBlocks>>(a)
                                     : launch<Rows<kElement, FloatType::F32, kRows, kCols,
                                                   kSchedule, kShared, kPromoteBlocks>>(a);
}

template <int kRows, int kCols, Schedule kSchedule, Shared kShared>
LaunchStatus launch_fast(const GroupedGemmArgs& a) {
  return launch_tile<GemmElement::E4M3, kRows, kCols, kSchedule, kShared, 0>(a);
}

template <GemmElement kElement, int kPromoteBlocks>
LaunchStatus launch_promoted(const GroupedGemmArgs& a) {
  return launch_tile<kElement, 256, 128, Schedule::COOPERATIVE, Shared::LEFT, kPromoteBlocks>(a);
}

}  // namespace

const char* refuses_fp8_rows(const GroupedGemmArgs& a) {
  if (a.element == GemmElement::E5M2_E4M3) return "left holds E5M2 codes";
  if (!a.use_fast_accum) return "it accumulates in the tensor cores throughout";
  return refuses_fp8_rows_promoted(a);
}

const char* refuses_fp8_rows_promoted(const GroupedGemmArgs& a) {
  if (!is_fp8(a.element)) return "operands are not FP8 codes";
  if (a.kind == Gemm::GRAD_WEIGHT) return "groups divide the contraction";
  return refuses_any(a);
}

LaunchStatus launch_fp8_rows_128x256(const GroupedGemmArgs& a) {
  return launch_fast<128, 256, Schedule::COOPERATIVE, Shared::RIGHT>(a);
}

LaunchStatus launch_fp8_rows_pingpong_128(const GroupedGemmArgs& a) {
  return launch_fast<128, 128, Schedule::PINGPONG, Shared::LEFT>(a);
}

LaunchStatus launch_fp8_rows_pingpong_192(const GroupedGemmArgs& a) {
  return launch_fast<128, 192, Schedule::PINGPONG, Shared::LEFT>(a);
}

LaunchStatus launch_fp8_rows_promoted(const GroupedGemmArgs& a) {
  return a.element == GemmElement::E4M3 ? launch_promoted<GemmElement::E4M3, 1>(a)
                                        : launch_promoted<GemmElement::E5M2_E4M3, 2>(a);
}

}  // namespace moe8::cuda::sm90
