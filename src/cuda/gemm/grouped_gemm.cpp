// SPDX-License-Identifier: BSD-3-Clause
// The list of grouped GEMM kernels and the choice from it. The choice sees only sizes that the host
// knows (M, N, K, E), never how tokens are spread over the groups.
#include "cuda/gemm/grouped_gemm.h"

#include <array>

#include "cuda/gemm/sm90_variants.h"

namespace moe8::cuda {
namespace {

// Measured on one H200 with ragged groups (docs/benchmarking.md): from this many tokens a group on,
// the larger tile's smaller traffic beats the hidden stores of the pingpong schedule.
constexpr int64_t kManyRows = 2048;

const char* declines_few_rows(const GroupedGemmArgs& a) {
  return a.M < kManyRows * a.E ? "fewer than 2048 tokens a group" : nullptr;
}

const char* never_declines(const GroupedGemmArgs&) { return nullptr; }

constexpr std::array kVariants = {
    GroupedGemmVariant{"sm90_fp8_rows_128x256", "out and grad_input, large groups",
                       sm90::refuses_fp8_rows, declines_few_rows, sm90::launch_fp8_rows_128x256},
    GroupedGemmVariant{"sm90_fp8_rows_pingpong", "out and grad_input, small groups",
                       sm90::refuses_fp8_rows, never_declines, sm90::launch_fp8_rows_pingpong},
    GroupedGemmVariant{"sm90_fp8_rows_pingpong_192", "out and grad_input, small groups",
                       sm90::refuses_fp8_rows, never_declines, sm90::launch_fp8_rows_pingpong_192},
    GroupedGemmVariant{"sm90_fp8_rows_pingpong_right", "out and grad_input, small groups",
                       sm90::refuses_fp8_rows, never_declines, sm90::launch_fp8_rows_pingpong_right},
    GroupedGemmVariant{"sm90_fp8_depth_256x128", "grad_weight, large groups",
                       sm90::refuses_fp8_depth, declines_few_rows, sm90::launch_fp8_depth_256x128},
    GroupedGemmVariant{"sm90_fp8_depth_pingpong", "grad_weight, small groups",
                       sm90::refuses_fp8_depth, never_declines, sm90::launch_fp8_depth_pingpong},
    GroupedGemmVariant{"sm90_fp8_depth_128x192", "grad_weight, small groups",
                       sm90::refuses_fp8_depth, never_declines, sm90::launch_fp8_depth_128x192},
};

}  // namespace

std::span<const GroupedGemmVariant> grouped_gemm_variants() { return kVariants; }

const GroupedGemmVariant* choose_grouped_gemm(const GroupedGemmArgs& args) {
  const GroupedGemmVariant* able = nullptr;
  for (const GroupedGemmVariant& variant : kVariants) {
    if (variant.refuses(args) != nullptr) continue;
    if (variant.declines(args) == nullptr) return &variant;
    if (able == nullptr) able = &variant;
  }
  return able;
}

LaunchStatus launch_grouped_gemm(const GroupedGemmArgs& args) {
  const GroupedGemmVariant* variant = choose_grouped_gemm(args);
  if (variant == nullptr) return {cudaErrorNotSupported, "every kernel of the list refuses"};
  return variant->launch(args);
}

}  // namespace moe8::cuda
