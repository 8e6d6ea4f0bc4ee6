// SPDX-License-Identifier: BSD-3-Clause
#include "gemm/block_scaled_gemm.h"

#include <ATen/ops/_scaled_grouped_mm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "base/plain_text.h"
#include "device/cuda_device.h"
#include "formats/integers.h"
#include "gemm/trial.h"
#include "moe8/blocked_scales.h"
#include "moe8/mx.h"

namespace moe8 {
namespace {

constexpr int64_t kPadding = 128;  // rows of a tile of scales; 32 would do for the codes
constexpr int64_t kAlignment = 16;
constexpr int64_t kMaxGroups = 1023;

at::Tensor offs_of(const GemmProblem& p) {
  if (p.groups.offs()) return *p.groups.offs();
  return at::full({1}, p.left.size(0), at::TensorOptions().dtype(at::kInt).device(p.left.device()));
}

PaddedTokens padded_tokens(const GemmProblem& p) {
  const int64_t tokens = p.left.size(0);
  const int64_t most = tokens + p.groups.count() * (kPadding - 1);
  return pad_tokens(offs_of(p), tokens, kPadding, round_up(most, kPadding));
}

struct Codes {
  at::Tensor data;   // float8_e4m3fn
  at::Tensor scale;  // float8_e8m0fnu
};

// The values are multiples of a power of two with the bits of e4m3, in blocks of 32: RCEIL finds a
// scale that is not larger than theirs and saturates nothing, so each has a code.
Codes codes_of(const at::Tensor& values, int64_t axis) {
  MXTensor mx = quantize_mx(values, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, axis);
  return {std::move(mx.data), std::move(mx.scale)};
}

at::Tensor e8m0(const at::Tensor& bytes) {
  return bytes.view(at::kFloat8_e8m0fnu);
}

// A row-major operand [rows, C] whose rows are tokens.
Codes token_rows(const at::Tensor& values) {
  Codes codes = codes_of(values, 1);
  codes.scale = to_blocked(codes.scale).view({values.size(0), -1});
  return codes;
}

// Weights, quantized along the contracted axis, as [E, columns, C].
Codes weights(const at::Tensor& values, int64_t axis) {
  Codes codes = codes_of(values, axis);
  if (axis == 1) {
    codes.data = codes.data.view(at::kByte).transpose(1, 2).contiguous().view(at::kFloat8_e4m3fn);
    codes.scale = codes.scale.view(at::kByte).transpose(1, 2).contiguous();
  }
  codes.scale = e8m0(to_blocked_3d(codes.scale.view(at::kByte)));
  return codes;
}

// [columns, P], blocks of 32 tokens.
Codes token_columns(const at::Tensor& values, const at::Tensor& ends) {
  Codes codes = codes_of(values, 0);
  codes.data = codes.data.view(at::kByte).t().contiguous().view(at::kFloat8_e4m3fn);
  const at::Tensor scale = codes.scale.view(at::kByte).t().contiguous();
  const at::Tensor block_ends = ends.div(kMxBlock, "floor").to(at::kInt);
  codes.scale = e8m0(to_blocked_k_groups(scale, block_ends).blocked);
  return codes;
}

at::Tensor call_torch(const BlockScaledCall& call) {
  return at::_scaled_grouped_mm(call.a, call.b, call.scale_a, call.scale_b, call.tokens.ends,
                                std::nullopt, std::nullopt, at::kBFloat16);
}

std::optional<std::string> device_refusal(const at::Device& device) {
  if (!is_blackwell(device)) {
    return concat("it needs compute capability 10, ", device, " has ", describe_capability(device));
  }
  constexpr MxFormat kFormat{ElemDtype::E4M3, ScaleCalculationMode::RCEIL};
  return trial_refusal({.function = "at::_scaled_grouped_mm",
                        .multiply = &block_scaled_gemm,
                        .gemms = {Gemm::OUT, Gemm::GRAD_INPUT, Gemm::GRAD_WEIGHT},
                        .formats = {kFormat, kFormat},
                        .in_groups = true,
                        .sums_in_float32 = false},
                       device);
}

bool is_e4m3(const OperandFormat& format) {
  const auto* mx = std::get_if<MxFormat>(&format);
  return mx && mx->elem == ElemDtype::E4M3;
}

}  // namespace

BlockScaledCall block_scaled_call(const GemmProblem& p) {
  BlockScaledCall call;
  call.tokens = padded_tokens(p);
  const at::Tensor left =
      to_padded(p.left.form(p.left_key(Encoding::BF16), p.groups).data, call.tokens);
  const FormKey right_key = p.right_key(Encoding::BF16);
  const at::Tensor right = p.right.form(right_key, p.groups).data;
  if (p.gemm == Gemm::GRAD_WEIGHT) {
    Codes a = token_columns(left, call.tokens.ends);
    Codes b = token_columns(to_padded(right, call.tokens), call.tokens.ends);
    call.a = a.data;
    call.scale_a = a.scale;
    call.b = b.data.t();
    call.scale_b = b.scale;
    return call;
  }
  Codes a = token_rows(left);
  Codes b = weights(right, right_key.axis);
  call.a = a.data;
  call.scale_a = a.scale;
  call.b = b.data.transpose(1, 2);
  call.scale_b = b.scale;
  return call;
}

at::Tensor block_scaled_result(const GemmProblem& p, const BlockScaledCall& call,
                               const at::Tensor& padded) {
  if (p.gemm != Gemm::GRAD_WEIGHT) return from_padded(padded, call.tokens);
  const at::Tensor zero = at::zeros({}, padded.options());
  const at::Tensor& ends = call.tokens.ends;
  const at::Tensor starts =
      at::cat({at::zeros({1}, ends.options()), ends.slice(0, 0, ends.numel() - 1)});
  return at::where(ends.gt(starts).view({-1, 1, 1}), padded, zero);
}

std::optional<std::string> block_scaled_refusal(const GemmProblem& p) {
  const at::Device& device = p.left.device();
  if (!device.is_cuda()) return concat("operands are on ", device);
  if (!is_e4m3(p.formats.left) || !is_e4m3(p.formats.right)) {
    return "an operand is not MX with float8_e4m3fn";
  }
  if (p.kernel_preference == KernelPreference::EMULATED) return "emulation was asked for";
  if (p.out_dtype != at::kBFloat16) return "at::_scaled_grouped_mm gives bf16 only";
  const bool over_tokens = p.gemm == Gemm::GRAD_WEIGHT;
  const int64_t N = over_tokens ? p.left.size(1) : p.right.size(1);
  const int64_t K = over_tokens ? p.right.size(1) : p.right.size(2);
  const int64_t contracted = p.gemm == Gemm::OUT ? K : p.gemm == Gemm::GRAD_INPUT ? N : kMxBlock;
  if (p.left.size(0) == 0 || N == 0 || K == 0) return "an operand is empty";
  if (contracted % kMxBlock != 0) return "the contracted size is not divisible by 32";
  if (N % kAlignment != 0 || K % kAlignment != 0) return "a size is not divisible by 16";
  if (p.groups.count() < 1 || p.groups.count() > kMaxGroups) {
    return concat("the groups are not between 1 and ", kMaxGroups);
  }
  return device_refusal(device);
}

at::Tensor block_scaled_gemm(const GemmProblem& p) {
  const BlockScaledCall call = block_scaled_call(p);
  return block_scaled_result(p, call, call_torch(call));
}

}  // namespace moe8
