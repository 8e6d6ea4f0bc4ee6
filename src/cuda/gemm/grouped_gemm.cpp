// SPDX-License-Identifier: BSD-3-Clause
// The list of grouped GEMM kernels and the choice from it. The choice sees only sizes that the host
// knows (M, N, K, E), never how tokens are spread over the groups.
#include "cuda/gemm/grouped_gemm.h"

#include <array>

#include "cuda/gemm/sm90_variants.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// All measured on one H200 with ragged groups, every kernel interleaved with its rivals:
// bench/cuda_gemm_bench prints the table again.

// The cooperative 128x256 tile loads least, but nothing hides its stores: it wins when groups fill
// its 256 rows well and each tile multiplies for long.
const char* declines_128x256(const GroupedGemmArgs& a) {
  constexpr int64_t kManyRows = 2048;
  constexpr int64_t kLongBytes = 4096;
  if (a.E == 0 || a.M < kManyRows * a.E) return "fewer than 2048 tokens a group";
  const int64_t bytes = is_fp8(a.element) ? 1 : 2;
  const int64_t depth = a.kind == Gemm::OUT ? a.K : a.kind == Gemm::GRAD_INPUT ? a.N : a.M / a.E;
  return depth * bytes < kLongBytes ? "contraction shorter than 4096 bytes" : nullptr;
}

// The pingpong tiles hide their stores. 192 columns load less than 128, unless pairs of them reach
// too far past the last column.
const char* declines_128x192(const GroupedGemmArgs& a) {
  const int64_t cols = a.kind == Gemm::OUT ? a.N : a.K;
  constexpr int64_t kPairOf192 = int64_t{2} * 192, kPairOf128 = int64_t{2} * 128;
  return round_up(cols, kPairOf192) > round_up(cols, kPairOf128) + cols / 32
             ? "pairs of 192 columns waste more than pairs of 128"
             : nullptr;
}

const char* never_declines(const GroupedGemmArgs&) {
  return nullptr;
}

constexpr std::array kVariants = {
    GroupedGemmVariant{"sm90_fp8_rows_128x256", "out and grad_input of large groups",
                       sm90::refuses_fp8_rows, declines_128x256, sm90::launch_fp8_rows_128x256},
    GroupedGemmVariant{"sm90_fp8_rows_pingpong_128x192", "out and grad_input of small groups",
                       sm90::refuses_fp8_rows, declines_128x192,
                       sm90::launch_fp8_rows_pingpong_192},
    GroupedGemmVariant{"sm90_fp8_rows_pingpong_128x128", "out and grad_input, the rest",
                       sm90::refuses_fp8_rows, never_declines, sm90::launch_fp8_rows_pingpong_128},
    GroupedGemmVariant{"sm90_fp8_rows_promoted_256x128",
                       "out and grad_input in float32 sums, and of gradients in E5M2",
                       sm90::refuses_fp8_rows_promoted, never_declines,
                       sm90::launch_fp8_rows_promoted},
    GroupedGemmVariant{"sm90_fp8_depth_256x128", "grad_weight", sm90::refuses_fp8_depth,
                       never_declines, sm90::launch_fp8_depth_256x128},
    GroupedGemmVariant{"sm90_bf16_128x256", "bf16, large groups", sm90::refuses_bf16,
                       declines_128x256, sm90::launch_bf16_128x256},
    GroupedGemmVariant{"sm90_bf16_pingpong_128x192", "bf16, small groups", sm90::refuses_bf16,
                       declines_128x192, sm90::launch_bf16_pingpong_192},
    GroupedGemmVariant{"sm90_bf16_pingpong_128x128", "bf16, the rest", sm90::refuses_bf16,
                       never_declines, sm90::launch_bf16_pingpong_128},
};

static_assert(kVariants.size() == kGroupedGemmVariants);

}  // namespace

std::span<const GroupedGemmVariant> grouped_gemm_variants() {
  return kVariants;
}

VariantChoice choose_grouped_gemm(const GroupedGemmArgs& args) {
  VariantChoice choice;
  for (size_t i = 0; i < kVariants.size(); ++i) {
    const char* const refusal = kVariants[i].refuses(args);
    choice.said[i] = refusal != nullptr ? refusal : kVariants[i].declines(args);
    if (refusal == nullptr && (choice.chosen == nullptr || choice.said[i] == nullptr)) {
      choice.chosen = &kVariants[i];
    }
    if (choice.chosen == &kVariants[i] && choice.said[i] == nullptr) break;
  }
  return choice;
}

LaunchStatus launch_grouped_gemm(const VariantChoice& choice, const GroupedGemmArgs& args) {
  if (choice.chosen == nullptr) return {cudaErrorNotSupported, "every kernel of the list refuses"};
  return choice.chosen->launch(args);
}

}  // namespace moe8::cuda
