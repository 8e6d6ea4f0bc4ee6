// SPDX-License-Identifier: BSD-3-Clause
#include "gemm/scaled_mm.h"

#include <ATen/ops/_scaled_grouped_mm.h>
#include <ATen/ops/_scaled_mm.h>
#include <c10/util/accumulate.h>

#include "base/plain_text.h"
#include "device/cuda_device.h"
#include "gemm/trial.h"
#include "groups/padded_tokens.h"

namespace moe8 {
namespace {

constexpr int64_t kScaledMmAlignment = 16;  // of every size that the calls take
constexpr int64_t kScaledMmMaxGroups = 1024;

const Float8Format* float8(const OperandFormat& format) {
  return std::get_if<Float8Format>(&format);
}

bool is_e4m3_format(const OperandFormat& format) {
  return float8(format)->elem == ElemDtype::E4M3;
}

bool is_tensorwise(const OperandFormat& format) {
  return float8(format)->granularity == ScalingGranularity::TENSORWISE;
}

bool is_tensorwise(const GemmProblem& p) {
  return is_tensorwise(p.formats.left) && is_tensorwise(p.formats.right);
}

at::Tensor as_float8(const at::Tensor& codes, const OperandFormat& format) {
  return codes.view(is_e4m3_format(format) ? at::kFloat8_e4m3fn : at::kFloat8_e5m2);
}

// [rows, pitch] whether it is the only expert's weight or a matrix.
at::Tensor as_matrix(const at::Tensor& x) {
  return x.dim() == 3 ? x.squeeze(0) : x;
}

// Columns of the result.
int64_t columns_of(const GemmProblem& p) {
  if (p.gemm == Gemm::GRAD_WEIGHT) return p.right.size(1);
  return p.right.size(p.gemm == Gemm::OUT ? 1 : 2);
}

bool has_empty_operand(const GemmProblem& p) {
  const auto is_empty = [](const Operand& x) { return c10::multiply_integers(x.sizes()) == 0; };
  return is_empty(p.left) || is_empty(p.right);
}

// What both calls ask for.
std::optional<std::string> call_refusal(const GemmProblem& p) {
  if (!p.left.device().is_cuda()) return concat("operands are on ", p.left.device());
  if (!float8(p.formats.left) || !float8(p.formats.right)) return "an operand is not FP8";
  if (p.kernel_preference == KernelPreference::EMULATED) return "emulation was asked for";
  if (p.out_dtype != at::kBFloat16) return "it gives bf16 only";
  if (columns_of(p) % kScaledMmAlignment != 0) return "out has rows of a size not divisible by 16";
  if (has_empty_operand(p)) return "an operand is empty";
  return std::nullopt;
}

// Hopper's answers are known: tests/cuda/ops_test.cpp.
std::optional<std::string> device_refusal(const GemmProblem& p, Trial trial) {
  const at::Device& device = p.left.device();
  if (is_hopper(device)) return std::nullopt;
  trial.formats = p.formats;
  return trial_refusal(trial, device);
}

}  // namespace

// ---- one group --------------------------------------------------------------
std::optional<std::string> scaled_mm_refusal(const GemmProblem& p) {
  if (std::optional<std::string> refusal = call_refusal(p)) return refusal;
  if (p.groups.offs()) return "at::_scaled_mm has no groups";
  if (!is_e4m3_format(p.formats.left) && !is_e4m3_format(p.formats.right)) {
    return "at::_scaled_mm takes one float8_e5m2 operand, not two";
  }
  return device_refusal(p, {.function = "at::_scaled_mm",
                            .multiply = &scaled_mm_gemm,
                            .gemms = {Gemm::OUT, Gemm::GRAD_INPUT, Gemm::GRAD_WEIGHT},
                            .formats = {},
                            .in_groups = false,
                            .sums_in_float32 = !p.formats.use_fast_accum});
}

at::Tensor scaled_mm_gemm(const GemmProblem& p) {
  const Form left = p.left.form(p.left_key(Encoding::FLOAT8), p.groups);
  const Form right = p.right.form(p.right_key(Encoding::FLOAT8), p.groups);
  const at::Tensor a = as_float8(as_matrix(left.data), p.formats.left);
  const at::Tensor b = as_float8(as_matrix(right.data), p.formats.right).t();
  at::Tensor scale_a = left.decode_scale.reshape({-1, 1});
  at::Tensor scale_b = right.decode_scale.reshape({1, -1});
  if (is_tensorwise(p)) {
    scale_a = scale_a.narrow(0, 0, 1).reshape({});
    scale_b = scale_b.narrow(1, 0, 1).reshape({});
  }
  const at::Tensor out = at::_scaled_mm(a, b, scale_a, scale_b, std::nullopt, std::nullopt,
                                        p.out_dtype, p.formats.use_fast_accum);
  return p.gemm == Gemm::GRAD_WEIGHT ? out.unsqueeze(0) : out;
}

// ---- groups -----------------------------------------------------------------
std::optional<std::string> scaled_grouped_mm_refusal(const GemmProblem& p) {
  if (std::optional<std::string> refusal = call_refusal(p)) return refusal;
  if (!p.groups.offs()) return "there are no groups";
  if (p.gemm == Gemm::GRAD_WEIGHT) return "at::_scaled_grouped_mm takes no expert without tokens";
  if (!is_e4m3_format(p.formats.left) || !is_e4m3_format(p.formats.right)) {
    return "at::_scaled_grouped_mm takes float8_e4m3fn only";
  }
  if (p.groups.count() > kScaledMmMaxGroups) {
    return concat("more than ", kScaledMmMaxGroups, " groups");
  }
  const at::Device& device = p.left.device();
  if (!is_hopper(device) && !is_blackwell(device)) {
    return concat("it needs compute capability 9.0 or 10.x, ", device, " has ",
                  describe_capability(device));
  }
  return device_refusal(p, {.function = "at::_scaled_grouped_mm",
                            .multiply = &scaled_grouped_mm_gemm,
                            .gemms = {Gemm::OUT, Gemm::GRAD_INPUT},
                            .formats = {},
                            .in_groups = true,
                            .sums_in_float32 = false});
}

at::Tensor scaled_grouped_mm_gemm(const GemmProblem& p) {
  const Form left = p.left.form(p.left_key(Encoding::FLOAT8), p.groups);
  const Form right = p.right.form(p.right_key(Encoding::FLOAT8), p.groups);
  const at::Tensor a = as_float8(left.data, p.formats.left);
  const at::Tensor b = as_float8(right.data, p.formats.right).transpose(1, 2);
  const at::Tensor ends = clamped_ends(*p.groups.offs(), p.left.size(0)).to(at::kInt);
  const at::Tensor out =
      at::_scaled_grouped_mm(a, b, left.decode_scale, right.decode_scale, ends, std::nullopt,
                             std::nullopt, p.out_dtype, p.formats.use_fast_accum);
  const at::Tensor in_no_group = group_of_rows(ends, p.left.size(0)).eq(ends.numel());
  return out.masked_fill(in_no_group.unsqueeze(1), 0);
}

}  // namespace moe8
