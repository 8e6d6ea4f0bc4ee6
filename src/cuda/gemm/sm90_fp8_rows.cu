// SPDX-License-Identifier: BSD-3-Clause
// FP8 out and grad_input: the tiles of sm90_grouped_gemm.cuh for groups of rows, accumulated in the
// tensor cores throughout.
#include "cuda/gemm/sm90_grouped_gemm.cuh"
#include "cuda/gemm/sm90_variants.h"

namespace moe8::cuda::sm90 {
namespace {

template <GemmOutput kOutput, int kRows, int kCols, Schedule kSchedule, Shared kShared>
using Rows = Config<GemmElement::kE4M3, kOutput, Grouped::kRows, Major::K, Major::K, kRows, kCols,
                    kSchedule, kShared, 0>;

template <int kRows, int kCols, Schedule kSchedule, Shared kShared>
LaunchStatus launch_tile(const GroupedGemmArgs& a) {
  return a.output == GemmOutput::kBFloat16
             ? launch<Rows<GemmOutput::kBFloat16, kRows, kCols, kSchedule, kShared>>(a)
             : launch<Rows<GemmOutput::kFloat32, kRows, kCols, kSchedule, kShared>>(a);
}

}  // namespace

const char* refuses_fp8_rows(const GroupedGemmArgs& a) {
  if (a.element != GemmElement::kE4M3) return "operands are not FP8 codes";
  if (a.kind == GroupedGemmKind::kGradWeight) return "groups divide the contraction";
  return refuses_any(a);
}

LaunchStatus launch_fp8_rows_128x256(const GroupedGemmArgs& a) {
  return launch_tile<128, 256, Schedule::kCooperative, Shared::kRight>(a);
}

LaunchStatus launch_fp8_rows_pingpong_128(const GroupedGemmArgs& a) {
  return launch_tile<128, 128, Schedule::kPingpong, Shared::kLeft>(a);
}

LaunchStatus launch_fp8_rows_pingpong_192(const GroupedGemmArgs& a) {
  return launch_tile<128, 192, Schedule::kPingpong, Shared::kLeft>(a);
}

}  // namespace moe8::cuda::sm90
