// SPDX-License-Identifier: BSD-3-Clause
// The grouped matrix products of sm_90a: arguments, the list of kernels, launch. No Torch.
// Checking tensors and choosing formats is the business of src/gemm/; quantizing, of
// src/cuda/quantize/.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

namespace moe8::cuda {

/// Letters: M tokens in E groups, N out-features, K in-features. W is (E, N, K).
enum class GroupedGemmKind { kOut, kGradInput, kGradWeight };
/// What the operands hold; of kE5M2E4M3 left is E5M2 (gradients with tensorwise scales), right
/// E4M3.
enum class GemmElement { kE4M3, kE5M2E4M3, kBFloat16 };
constexpr bool is_fp8(GemmElement element) {
  return element != GemmElement::kBFloat16;
}
enum class GemmOutput { kBFloat16, kFloat32 };

/// What the transposed copies of kGradWeight pad each group to: the contraction of one stage.
inline constexpr int kGroupPadding = 128;

/// One grouped product of codes with power-of-two or any float32 scales:
///
///   kOut         out[m, n]    = rs[m] cs[e, n] * sum_k left[m, k] right[e, n, k]        (M, N)
///   kGradInput   out[m, k]    = rs[m] cs[e, k] * sum_n left[m, n] right[e, k, n]        (M, K)
///   kGradWeight  out[e, n, k] = rs[e, n] cs[e, k] * sum_m left[n, t(m)] right[k, t(m)]  (E, N, K)
///
/// Group e holds the tokens [offs[e-1], offs[e]) of any number, 0 included; t(m) = padded_starts[e]
/// + m - offs[e-1]. Rows at or past offs[E-1], and the weights of empty groups, are written as 0.
/// offs and padded_starts are read on the device only, clamped to [0, M].
///
/// FP8: all operands have the contraction contiguous, as written above. In kGradWeight both are
/// transposed copies with group e at the columns padded_starts[e], followed by zeros up to a
/// multiple of kGroupPadding columns. kBFloat16: no scales, and the operands are taken as they lie
/// in training: kGradInput reads right as W (E, N, K), kGradWeight reads left as dO (M, N) and
/// right as A (M, K) without padding.
///
/// Pitches count elements from one row (of the layouts above) to the next; experts of `right`
/// follow without a gap. Operand pitches are multiples of 16 bytes and the operands 16-byte
/// aligned; out has any pitch, and is faster with a multiple of 16 bytes.
struct GroupedGemmArgs {
  GroupedGemmKind kind;
  GemmElement element;
  GemmOutput output;
  int64_t M, N, K, E;

  const void* left;
  int64_t left_pitch;
  const void* right;
  int64_t right_pitch;

  const int32_t* offs;                     // [E] end rows, non-decreasing, at most M; on the device
  const int32_t* padded_starts = nullptr;  // [E] kGradWeight of FP8: first column of each group
  int64_t padded_tokens = 0;               // kGradWeight of FP8: columns of the transposed copies

  /// FP8 kOut and kGradInput may accumulate in the tensor cores throughout, with about 13 bits.
  /// Without it: float32 sums of 128 products each, of E5M2 256. kGradWeight: always 256.
  bool use_fast_accum = true;

  /// The kernel just before in the stream writes nothing that is read here, as where two products
  /// of one backward follow each other: this one then multiplies while that one ends.
  bool operands_are_ready = false;

  const float* row_scale = nullptr;  // FP8: [M], kGradWeight: [E, N]; multipliers
  const float* col_scale = nullptr;  // FP8: [E, N] or [E, K]; multipliers

  void* out;
  int64_t out_pitch;  // elements
  cudaStream_t stream = nullptr;
};

/// What a launch says: success, or the step that failed and the CUDA error behind it.
struct LaunchStatus {
  cudaError_t error = cudaSuccess;
  const char* failed = nullptr;  // nullptr: launched
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

/// The variant for these arguments; nullptr when every one refuses.
const GroupedGemmVariant* choose_grouped_gemm(const GroupedGemmArgs& args);

/// Chooses and launches on args.stream. Never synchronises, never reads device memory on the host,
/// may be captured in a graph. Deterministic: repeated calls give the same bits.
LaunchStatus launch_grouped_gemm(const GroupedGemmArgs& args);

}  // namespace moe8::cuda
