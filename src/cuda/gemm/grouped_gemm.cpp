// SPDX-License-Identifier: BSD-3-Clause
// The list of grouped GEMM kernels and the choice from it. The choice sees only sizes that the host
// knows (M, N, K, E), never how tokens are spread over the groups.
#include "cuda/gemm/grouped_gemm.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "cuda/gemm/sm90_variants.h"
#include "cuda/gemm/sum_slices.h"
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

// ---- slices -----------------------------------------------------------------
constexpr int64_t kClusters = 66;          // of an H100 or H200, each with a super-tile at a time
constexpr int64_t kSuperTile = 256;        // rows and columns, of most variants
constexpr int64_t kStepTokens = 256;       // of a super-tile that are multiplied at a time
constexpr int64_t kMaxPartial = 32 << 20;  // bytes
constexpr double kStepMicroseconds = 2;    // of FP8; bf16 takes twice as long
constexpr double kLaunchMicroseconds = 4;  // of adding slices
constexpr double kBytesPerMicrosecond = 3e6;

// What a product in so many slices takes: whole waves of tiles, and a pass that adds the slices.
double microseconds_in(const GroupedGemmArgs& a, int64_t slices) {
  const int64_t tiles = a.E * ceil_div(a.N, kSuperTile) * ceil_div(a.K, kSuperTile);
  const int64_t waves = ceil_div(tiles * slices, kClusters);
  const int64_t steps = ceil_div(ceil_div(a.M / a.E, kStepTokens), slices);
  const double multiplying =
      static_cast<double>(waves * steps) * kStepMicroseconds * (is_fp8(a.element) ? 1 : 2);
  if (slices == 1) return multiplying;
  const double bytes = 8.0 * static_cast<double>(slices * a.E * a.N * a.K);
  return multiplying + kLaunchMicroseconds + bytes / kBytesPerMicrosecond;
}

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

int choose_slices(const GroupedGemmArgs& args) {
  if (args.kind != Gemm::GRAD_WEIGHT || args.E == 0) return 1;
  const int64_t part = args.E * args.N * args.K * int64_t{sizeof(float)};
  const int64_t most =
      std::min(args.M / args.E / kStepTokens, kMaxPartial / std::max(part, int64_t{1}));
  int64_t best = 1;
  for (int64_t slices = 2; slices <= std::min(most, kClusters); ++slices) {
    if (microseconds_in(args, slices) < microseconds_in(args, best)) best = slices;
  }
  return static_cast<int>(best);
}

LaunchStatus launch_grouped_gemm(const VariantChoice& choice, const GroupedGemmArgs& args) {
  if (choice.chosen == nullptr) return {cudaErrorNotSupported, "every kernel of the list refuses"};
  if (args.slices <= 1) return choice.chosen->launch(args);
  GroupedGemmArgs parts = args;
  parts.output = FloatType::F32;
  parts.out = args.partial;
  parts.out_pitch = args.K;
  parts.adds = false;
  const LaunchStatus multiplied = choice.chosen->launch(parts);
  if (!multiplied.ok()) return multiplied;
  return launch_sum_slices({.partial = args.partial,
                            .slices = args.slices,
                            .rows = args.E * args.N,
                            .cols = args.K,
                            .output = args.output,
                            .adds = args.adds,
                            .out = args.out,
                            .out_pitch = args.out_pitch,
                            .stream = args.stream});
}

}  // namespace moe8::cuda
