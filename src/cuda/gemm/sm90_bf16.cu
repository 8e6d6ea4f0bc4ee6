// SPDX-License-Identifier: BSD-3-Clause
// bf16 out, grad_input and grad_weight: the tiles of sm90_grouped_gemm.cuh on operands as they lie
// in training. Tensor cores read bf16 along either dimension, so nothing is transposed or padded,
// and their accumulators are float32 throughout.
#include "cuda/gemm/sm90_grouped_gemm.cuh"
#include "cuda/gemm/sm90_variants.h"

namespace moe8::cuda::sm90 {
namespace {

template <FloatType kOutput, Gemm kKind, int kRows, int kCols, Schedule kSchedule, Shared kShared>
using Bf16 =
    Config<GemmElement::BF16, kOutput, kKind == Gemm::GRAD_WEIGHT ? Grouped::DEPTH : Grouped::ROWS,
           kKind == Gemm::GRAD_WEIGHT ? Major::MN : Major::K,
           kKind == Gemm::OUT ? Major::K : Major::MN, kRows, kCols, kSchedule, kShared, 0>;

template <Gemm kKind, int kRows, int kCols, Schedule kSchedule, Shared kShared>
LaunchStatus launch_kind(const GroupedGemmArgs& a) {
  using ToBf16 = Bf16<FloatType::BF16, kKind, kRows, kCols, kSchedule, kShared>;
  using ToFloat32 = Bf16<FloatType::F32, kKind, kRows, kCols, kSchedule, kShared>;
  if constexpr (kKind == Gemm::GRAD_WEIGHT) {
    if (a.adds) return launch<Adding<ToFloat32>>(a);
  }
  return a.output == FloatType::BF16 ? launch<ToBf16>(a) : launch<ToFloat32>(a);
}

template <int kRows, int kCols, Schedule kSchedule, Shared kShared>
LaunchStatus launch_tile(const GroupedGemmArgs& a) {
  switch (a.kind) {
    case Gemm::OUT:
      return launch_kind<Gemm::OUT, kRows, kCols, kSchedule, kShared>(a);
    case Gemm::GRAD_INPUT:
      return launch_kind<Gemm::GRAD_INPUT, kRows, kCols, kSchedule, kShared>(a);
    case Gemm::GRAD_WEIGHT:
      return launch_kind<Gemm::GRAD_WEIGHT, kRows, kCols, kSchedule, kShared>(a);
  }
  return refused("an unknown kind of product");
}

}  // namespace

const char* refuses_bf16(const GroupedGemmArgs& a) {
  if (a.element != GemmElement::BF16) return "operands are not bf16";
  return refuses_any(a);
}

LaunchStatus launch_bf16_128x256(const GroupedGemmArgs& a) {
  return launch_tile<128, 256, Schedule::COOPERATIVE, Shared::RIGHT>(a);
}

LaunchStatus launch_bf16_pingpong_128(const GroupedGemmArgs& a) {
  return launch_tile<128, 128, Schedule::PINGPONG, Shared::LEFT>(a);
}

LaunchStatus launch_bf16_pingpong_192(const GroupedGemmArgs& a) {
  return launch_tile<128, 192, Schedule::PINGPONG, Shared::LEFT>(a);
}

}  // namespace moe8::cuda::sm90
