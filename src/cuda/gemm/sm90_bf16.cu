// SPDX-License-Identifier: BSD-3-Clause
// bf16 out, grad_input and grad_weight: the tiles of sm90_grouped_gemm.cuh on operands as they lie
// in training. Tensor cores read bf16 along either dimension, so nothing is transposed or padded,
// and their accumulators are float32 throughout.
#include "cuda/gemm/sm90_grouped_gemm.cuh"
#include "cuda/gemm/sm90_variants.h"

namespace moe8::cuda::sm90 {
namespace {

template <GemmOutput kOutput, GroupedGemmKind kKind, int kRows, int kCols, Schedule kSchedule,
          Shared kShared>
using Bf16 = Config<GemmElement::kBFloat16, kOutput,
                    kKind == GroupedGemmKind::kGradWeight ? Grouped::kDepth : Grouped::kRows,
                    kKind == GroupedGemmKind::kGradWeight ? Major::MN : Major::K,
                    kKind == GroupedGemmKind::kOut ? Major::K : Major::MN, kRows, kCols, kSchedule,
                    kShared, 0>;

template <GroupedGemmKind kKind, int kRows, int kCols, Schedule kSchedule, Shared kShared>
LaunchStatus launch_kind(const GroupedGemmArgs& a) {
  return a.output == GemmOutput::kBFloat16
             ? launch<Bf16<GemmOutput::kBFloat16, kKind, kRows, kCols, kSchedule, kShared>>(a)
             : launch<Bf16<GemmOutput::kFloat32, kKind, kRows, kCols, kSchedule, kShared>>(a);
}

template <int kRows, int kCols, Schedule kSchedule, Shared kShared>
LaunchStatus launch_tile(const GroupedGemmArgs& a) {
  switch (a.kind) {
    case GroupedGemmKind::kOut:
      return launch_kind<GroupedGemmKind::kOut, kRows, kCols, kSchedule, kShared>(a);
    case GroupedGemmKind::kGradInput:
      return launch_kind<GroupedGemmKind::kGradInput, kRows, kCols, kSchedule, kShared>(a);
    case GroupedGemmKind::kGradWeight:
      return launch_kind<GroupedGemmKind::kGradWeight, kRows, kCols, kSchedule, kShared>(a);
  }
  return {cudaErrorInvalidValue, "an unknown kind of product"};
}

}  // namespace

const char* refuses_bf16(const GroupedGemmArgs& a) {
  if (a.element != GemmElement::kBFloat16) return "operands are not bf16";
  return refuses_any(a);
}

LaunchStatus launch_bf16_128x256(const GroupedGemmArgs& a) {
  return launch_tile<128, 256, Schedule::kCooperative, Shared::kRight>(a);
}

LaunchStatus launch_bf16_pingpong_128(const GroupedGemmArgs& a) {
  return launch_tile<128, 128, Schedule::kPingpong, Shared::kLeft>(a);
}

LaunchStatus launch_bf16_pingpong_192(const GroupedGemmArgs& a) {
  return launch_tile<128, 192, Schedule::kPingpong, Shared::kLeft>(a);
}

}  // namespace moe8::cuda::sm90
