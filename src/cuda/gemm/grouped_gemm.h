// SPDX-License-Identifier: BSD-3-Clause
// The grouped matrix products of sm_90a: arguments, the list of kernels, launch. No Torch.
// Checking tensors and choosing formats is the business of src/gemm/; quantizing, of
// src/cuda/quantize/.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <span>

#include "cuda/launch_status.h"
#include "formats/float_type.h"
#include "kernels/gemm.h"

namespace moe8::cuda {

/// What the operands hold; of E5M2_E4M3 left is E5M2 (gradients with tensorwise scales), right
/// E4M3.
enum class GemmElement { E4M3, E5M2_E4M3, BF16 };
constexpr bool is_fp8(GemmElement element) {
  return element != GemmElement::BF16;
}

/// What the transposed copies of GRAD_WEIGHT pad each group to: the contraction of one stage.
inline constexpr int kGroupPadding = 128;

/// One grouped product of codes with power-of-two or any float32 scales. Letters: M tokens in E
/// groups, N out-features, K in-features; W is (E, N, K).
///
///   OUT          out[m, n]    = rs[m] cs[e, n] * sum_k left[m, k] right[e, n, k]        (M, N)
///   GRAD_INPUT   out[m, k]    = rs[m] cs[e, k] * sum_n left[m, n] right[e, k, n]        (M, K)
///   GRAD_WEIGHT  out[e, n, k] = rs[e, n] cs[e, k] * sum_m left[n, t(m)] right[k, t(m)]  (E, N, K)
///
/// Group e holds the tokens [offs[e-1], offs[e]) of any number, 0 included; t(m) = padded_starts[e]
/// + m - offs[e-1]. Rows at or past offs[E-1], and the weights of empty groups, are written as 0.
/// offs and padded_starts are read on the device only, clamped to [0, M].
///
/// FP8: all operands have the contraction contiguous, as written above. In GRAD_WEIGHT both are
/// transposed copies with group e at the columns padded_starts[e], followed by zeros up to a
/// multiple of kGroupPadding columns. BF16: no scales, and the operands are taken as they lie
/// in training: GRAD_INPUT reads right as W (E, N, K), GRAD_WEIGHT reads left as dO (M, N) and
/// right as A (M, K) without padding.
///
/// Pitches count elements from one row (of the layouts above) to the next; experts of `right`
/// follow without a gap. Operand pitches are multiples of 16 bytes and the operands 16-byte
/// aligned; out has any pitch, and is faster with a multiple of 16 bytes.
struct GroupedGemmArgs {
  Gemm kind;
  GemmElement element;
  FloatType output;
  int64_t M, N, K, E;

  const void* left;
  int64_t left_pitch;
  const void* right;
  int64_t right_pitch;

  const int32_t* offs;                     // [E] end rows, non-decreasing, at most M; on the device
  const int32_t* padded_starts = nullptr;  // [E] GRAD_WEIGHT of FP8: first column of each group
  int64_t padded_tokens = 0;               // GRAD_WEIGHT of FP8: columns of the transposed copies

  /// FP8 OUT and GRAD_INPUT may accumulate in the tensor cores throughout, with about 13 bits.
  /// Without it: float32 sums of 128 products each, of E5M2 256. GRAD_WEIGHT: always 256.
  bool use_fast_accum = true;

  /// The kernel just before in the stream writes nothing that is read here, as where two products
  /// of one backward follow each other: this one then multiplies while that one ends.
  bool operands_are_ready = false;

  /// GRAD_WEIGHT: how many slices of a group's contraction are computed apart, for products with
  /// too few tiles to occupy the GPU. Their float32 sums are added in the slices' order.
  int slices = 1;
  float* partial = nullptr;  // [slices, E, N, K], where there are several

  /// GRAD_WEIGHT in float32: out = out + product, which is rounded to float32 before. Numbers below
  /// 2^-126 may become 0.
  bool adds = false;

  const float* row_scale = nullptr;  // FP8: [M], GRAD_WEIGHT: [E, N]; multipliers
  const float* col_scale = nullptr;  // FP8: [E, N] or [E, K]; multipliers

  void* out;
  int64_t out_pitch;  // elements
  cudaStream_t stream = nullptr;
};

/// One kernel of the list.
struct GroupedGemmVariant {
  const char* name;
  const char* suits;  // what it is for
  /// nullptr when the kernel computes these arguments, else why not.
  const char* (*refuses)(const GroupedGemmArgs&);
  /// nullptr when it is expected to be the fastest so far in the list, else why not.
  const char* (*declines)(const GroupedGemmArgs&);
  LaunchStatus (*launch)(const GroupedGemmArgs&);
};

/// In order of preference. The first that neither refuses nor declines is taken, else the first
/// that does not refuse.
std::span<const GroupedGemmVariant> grouped_gemm_variants();

inline constexpr int kGroupedGemmVariants = 8;

/// The variant for some arguments, and for a log what each of the list said.
struct VariantChoice {
  const GroupedGemmVariant* chosen = nullptr;  // nullptr: every one refuses
  /// Why it was passed over; nullptr for the chosen one and those after it.
  std::array<const char*, kGroupedGemmVariants> said{};
};
VariantChoice choose_grouped_gemm(const GroupedGemmArgs& args);

/// How many slices a product of these sizes should have. Other numbers than 1 are other sums in
/// float32, so the answer depends on nothing else, as not on the GPU.
int choose_slices(const GroupedGemmArgs& args);

/// Launches the chosen variant on args.stream, and what adds its slices. Never synchronises, never reads device memory on the
/// host, may be captured in a graph. Deterministic: repeated calls give the same bits.
LaunchStatus launch_grouped_gemm(const VariantChoice& choice, const GroupedGemmArgs& args);

}  // namespace moe8::cuda
