// SPDX-License-Identifier: BSD-3-Clause
#include "gemm/torch_gemm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <cstdlib>
#include <string_view>

#include "base/check.h"
#include "cpu/isa.h"
#include "device/cuda_device.h"

namespace moe8 {
namespace {

// Calls f(group, begin, size) for each group; size may be 0.
template <typename F>
void for_each_group(const std::optional<at::Tensor>& offs, int64_t rows, F f) {
  if (!offs) return f(0, 0, rows);
  const at::Tensor ends = offs->cpu().contiguous();
  int64_t begin = 0;
  for (int64_t g = 0; g < ends.size(0); ++g) {
    const int64_t end = ends.const_data_ptr<int32_t>()[g];
    f(g, begin, end - begin);
    begin = end;
  }
}

int64_t rows_in_groups(const GemmProblem& p) {
  const std::optional<at::Tensor>& offs = p.groups.offs();
  if (!offs) return p.left.size(0);
  return offs->numel() == 0 ? 0 : offs->select(0, -1).item<int32_t>();
}

// A (M, K) times B (E, K, N) by group: every row of `out` that belongs to a group.
at::Tensor multiply_rows(const GemmProblem& p, const at::Tensor& a, const at::Tensor& b) {
  const int64_t rows = rows_in_groups(p);
  at::Tensor out = at::empty({a.size(0), b.size(2)}, a.options());
  out.narrow(0, rows, a.size(0) - rows).zero_();
  for_each_group(p.groups.offs(), a.size(0), [&](int64_t g, int64_t begin, int64_t size) {
    if (size == 0) return;
    at::Tensor rows_out = out.narrow(0, begin, size);
    at::mm_out(rows_out, a.narrow(0, begin, size), b.select(0, g));
  });
  return out;
}

// left (M, N)^T times right (M, K) within each group: (E, N, K).
at::Tensor multiply_groups(const GemmProblem& p, const at::Tensor& left, const at::Tensor& right) {
  const at::Tensor out = at::empty({p.groups.count(), left.size(1), right.size(1)}, left.options());
  for_each_group(p.groups.offs(), left.size(0), [&](int64_t g, int64_t begin, int64_t size) {
    at::Tensor group_out = out.select(0, g);
    if (size == 0) {
      group_out.zero_();
      return;
    }
    at::mm_out(group_out, left.narrow(0, begin, size).t(), right.narrow(0, begin, size));
  });
  return out;
}

at::Tensor gemm_in(const GemmProblem& p, Encoding encoding) {
  const at::Tensor left = p.left.form(p.left_key(encoding), p.groups).data;
  const at::Tensor right = p.right.form(p.right_key(encoding), p.groups).data;
  at::Tensor out;
  switch (p.gemm) {
    case Gemm::OUT:
      out = multiply_rows(p, left, right.transpose(1, 2));
      break;
    case Gemm::GRAD_INPUT:
      out = multiply_rows(p, left, right);
      break;
    case Gemm::GRAD_WEIGHT:
      out = multiply_groups(p, left, right);
      break;
  }
  return out.to(p.out_dtype);
}

std::optional<std::string> not_on_cpu(const GemmProblem& p) {
  if (!p.left.device().is_cpu()) return c10::str("operands are on ", p.left.device());
  return std::nullopt;
}

}  // namespace

bool cpu_prefers_bf16() {
  static const bool prefers = [] {
    const char* wanted = std::getenv("MOE8_CPU_GEMM");
    if (wanted && std::string_view(wanted) == "bf16") return true;
    if (wanted && std::string_view(wanted) == "float32") return false;
    return cpu::has_bf16_products();
  }();
  return prefers;
}

std::optional<std::string> torch_bf16_refusal(const GemmProblem& p) {
  if (std::optional<std::string> refusal = not_on_cpu(p)) return refusal;
  if (p.out_dtype != at::kBFloat16) return "a bf16 product would round a float32 result to bf16";
  if (!values_fit_bf16(p.formats.left, p.left.scalar_type()))
    return "the left operand needs float32";
  if (!values_fit_bf16(p.formats.right, p.right.scalar_type()))
    return "the right operand needs float32";
  if (!cpu_prefers_bf16()) return "float32 products are faster on this CPU (no avx512_bf16)";
  return std::nullopt;
}

at::Tensor torch_bf16_gemm(const GemmProblem& p) {
  return gemm_in(p, Encoding::BF16);
}

std::optional<std::string> torch_float32_refusal(const GemmProblem& p) {
  const at::Device device = p.left.device();
  if (!device.is_cpu() && !device.is_cuda()) return c10::str("operands are on ", device);
  if (device.is_cuda() && p.groups.offs() && current_stream(device).capture != 0) {
    return "it reads offs on the host, which a CUDA graph cannot capture";
  }
  return std::nullopt;
}

at::Tensor torch_float32_gemm(const GemmProblem& p) {
  return gemm_in(p, Encoding::FLOAT32);
}

}  // namespace moe8
