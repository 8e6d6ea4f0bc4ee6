// SPDX-License-Identifier: BSD-3-Clause
#include "gemm/block_scaled_gemm.h"

#include <ATen/ops/_scaled_grouped_mm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <map>
#include <mutex>

#include "device/cuda_device.h"
#include "moe8/blocked_scales.h"
#include "moe8/mx.h"

namespace moe8 {
namespace {

constexpr int64_t kPadding = 128;  // rows of a tile of scales; 32 would do for the codes
constexpr int64_t kAlignment = 16;
constexpr int64_t kMostGroups = 1023;

int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

at::Tensor offs_of(const GemmProblem& p) {
  if (p.groups.offs()) return *p.groups.offs();
  return at::full({1}, p.left.size(0), at::TensorOptions().dtype(at::kInt).device(p.left.device()));
}

// [P, columns]: the rows of the tokens, zeros between them.
at::Tensor padded_rows(const at::Tensor& x, const PaddedTokens& tokens) {
  return at::where(tokens.is_token.unsqueeze(1), x.index_select(0, tokens.source),
                   at::zeros({}, x.options()));
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

// ---- probe ------------------------------------------------------------------
// Small integers: codes whatever their scale, and exact in bf16.
at::Tensor small_integers(at::IntArrayRef sizes, const at::Device& device) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  return at::arange(count, options).mul(7).remainder(5).sub(2).to(at::kBFloat16).view(sizes);
}

// In high precision: of the rows of a group, as A and as dO, and its weight.
at::Tensor expected_product(Gemm gemm, const at::Tensor& group, const at::Tensor& w) {
  switch (gemm) {
    case Gemm::OUT:
      return group.matmul(w.t());
    case Gemm::GRAD_INPUT:
      return group.matmul(w);
    case Gemm::GRAD_WEIGHT:
      break;
  }
  return group.t().matmul(group);
}

// Two ragged groups. Nothing when the three products are right.
std::optional<std::string> probe(const at::Device& device) {
  constexpr int64_t kSize = 128;
  constexpr MxFormat kFormat{ElemDtype::E4M3, ScaleCalculationMode::RCEIL};
  const at::Tensor offs = at::cat({at::full({1}, 40, at::TensorOptions(device).dtype(at::kInt)),
                                   at::full({1}, 200, at::TensorOptions(device).dtype(at::kInt))});
  const at::Tensor rows = small_integers({200, kSize}, device);
  const at::Tensor weight = small_integers({2, kSize, kSize}, device);
  for (const Gemm gemm : {Gemm::OUT, Gemm::GRAD_INPUT, Gemm::GRAD_WEIGHT}) {
    const GemmProblem problem{.gemm = gemm,
                              .left = rows,
                              .right = gemm == Gemm::GRAD_WEIGHT ? rows : weight,
                              .groups = offs,
                              .formats = {kFormat, kFormat},
                              .out_dtype = at::kBFloat16};
    const at::Tensor got = block_scaled_gemm(problem);
    for (int64_t e = 0; e < 2; ++e) {
      const int64_t first = e * 40, last = e == 0 ? 40 : 200;
      const at::Tensor expected = expected_product(gemm, rows.slice(0, first, last).to(at::kFloat),
                                                   weight[e].to(at::kFloat));
      const at::Tensor mine = gemm == Gemm::GRAD_WEIGHT ? got[e] : got.slice(0, first, last);
      if (!at::equal(expected.to(at::kBFloat16), mine)) {
        return c10::str("at::_scaled_grouped_mm was tried on ", device, " and gave a wrong ",
                        to_string(gemm));
      }
    }
  }
  return std::nullopt;
}

std::optional<std::string> device_refusal(const at::Device& device) {
  constexpr int kBlackwell = 10;
  const int capability = compute_capability(device);
  if (capability / 10 != kBlackwell) {
    return c10::str("it needs compute capability 10, ", device, " has ", capability / 10, ".",
                    capability % 10);
  }
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, std::optional<std::string>> answers;
  const std::lock_guard lock(mutex);
  if (const auto known = answers.find(device.index()); known != answers.end()) return known->second;
  if (current_stream(device).capture != 0) {
    return c10::str(device,
                    " was not tried yet, which a graph capture does not allow: run one "
                    "product before it");
  }
  std::optional<std::string> answer;
  try {
    answer = probe(device);
  } catch (const std::exception& error) {
    answer = c10::str("at::_scaled_grouped_mm was tried on ", device,
                      " and failed: ", std::string(error.what()).substr(0, 300));
  }
  return answers[device.index()] = answer;
}

bool is_e4m3(const OperandFormat& format) {
  const auto* mx = std::get_if<MxFormat>(&format);
  return mx && mx->elem == ElemDtype::E4M3;
}

}  // namespace

PaddedTokens pad_tokens(const at::Tensor& offs, int64_t tokens) {
  const int64_t groups = offs.numel();
  const auto options = at::TensorOptions().dtype(at::kLong).device(offs.device());
  const at::Tensor ends = offs.to(at::kLong);
  const at::Tensor begins = at::cat({at::zeros({1}, options), ends.slice(0, 0, groups - 1)});
  const at::Tensor sizes = ends.sub(begins);
  const at::Tensor padded_sizes = sizes.add(kPadding - 1).div(kPadding, "floor").mul(kPadding);
  const at::Tensor padded_ends = padded_sizes.cumsum(0);
  const at::Tensor padded_starts = padded_ends.sub(padded_sizes);

  const auto group_of = [&](const at::Tensor& all_ends, const at::Tensor& rows) {
    return at::searchsorted(all_ends, rows, /*out_int32=*/false, /*right=*/true);
  };
  PaddedTokens result;
  result.ends = padded_ends.to(at::kInt);

  const at::Tensor padded =
      at::arange(round_up(tokens + groups * (kPadding - 1), kPadding), options);
  at::Tensor group = group_of(padded_ends, padded);
  at::Tensor inside = group.clamp_max(groups - 1);
  const at::Tensor in_group = padded.sub(padded_starts.index_select(0, inside));
  result.is_token = group.lt(groups).logical_and(in_group.lt(sizes.index_select(0, inside)));
  result.source = begins.index_select(0, inside).add(in_group).mul(result.is_token);

  const at::Tensor rows = at::arange(tokens, options);
  group = group_of(ends, rows);
  inside = group.clamp_max(groups - 1);
  result.has_group = group.lt(groups);
  result.position = rows.sub(begins.index_select(0, inside))
                        .add(padded_starts.index_select(0, inside))
                        .mul(result.has_group);
  return result;
}

BlockScaledCall block_scaled_call(const GemmProblem& p) {
  BlockScaledCall call;
  call.tokens = pad_tokens(offs_of(p), p.left.size(0));
  const at::Tensor left =
      padded_rows(p.left.form(p.left_key(Encoding::BF16), p.groups).data, call.tokens);
  const FormKey right_key = p.right_key(Encoding::BF16);
  const at::Tensor right = p.right.form(right_key, p.groups).data;
  if (p.gemm == Gemm::GRAD_WEIGHT) {
    Codes a = token_columns(left, call.tokens.ends);
    Codes b = token_columns(padded_rows(right, call.tokens), call.tokens.ends);
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
  const at::Tensor zero = at::zeros({}, padded.options());
  if (p.gemm != Gemm::GRAD_WEIGHT) {
    return at::where(call.tokens.has_group.unsqueeze(1),
                     padded.index_select(0, call.tokens.position), zero);
  }
  const at::Tensor& ends = call.tokens.ends;
  const at::Tensor starts =
      at::cat({at::zeros({1}, ends.options()), ends.slice(0, 0, ends.numel() - 1)});
  return at::where(ends.gt(starts).view({-1, 1, 1}), padded, zero);
}

std::optional<std::string> block_scaled_refusal(const GemmProblem& p) {
  const at::Device& device = p.left.device();
  if (!device.is_cuda()) return c10::str("operands are on ", device);
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
  if (p.groups.count() < 1 || p.groups.count() > kMostGroups) {
    return c10::str("the groups are not between 1 and ", kMostGroups);
  }
  return device_refusal(device);
}

at::Tensor block_scaled_gemm(const GemmProblem& p) {
  const BlockScaledCall call = block_scaled_call(p);
  return block_scaled_result(p, call, call_torch(call));
}

}  // namespace moe8
