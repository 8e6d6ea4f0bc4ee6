// SPDX-License-Identifier: BSD-3-Clause
#include "gemm/torch_gemm.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <functional>
#include <variant>

#include "base/check.h"
#include "base/plain_text.h"
#include "cpu/isa.h"
#include "device/allocate.h"
#include "device/cuda_device.h"

namespace moe8 {
namespace {

// Calls f(group, begin, size) for each group; size may be 0.
template <typename F>
void for_each_group(const GemmProblem& p, F f) {
  int64_t group = 0, begin = 0;
  for (const int64_t end : p.groups.ends_on_host(p.left.size(0))) {
    f(group++, begin, end - begin);
    begin = end;
  }
}

int64_t rows_in_groups(const GemmProblem& p) {
  const std::vector<int64_t>& ends = p.groups.ends_on_host(p.left.size(0));
  return ends.empty() ? 0 : ends.back();
}

// The dtype of a product that has not been rounded yet: LibTorch's on a CPU. On a GPU bf16 operands
// too give float32: towards bf16 cuBLAS may add parts of a sum that it has rounded.
at::ScalarType product_dtype(const at::Tensor& operand) {
  return operand.is_cuda() ? at::kFloat : operand.scalar_type();
}

// out = a b, out of product_dtype(a).
void multiply(at::Tensor out, const at::Tensor& a, const at::Tensor& b) {
  const at::NoTF32Guard float32_stays_float32;
  if (out.scalar_type() == a.scalar_type()) {
    at::mm_out(out, a, b);
  } else {
    at::mm_out(out, a, b, out.scalar_type());
  }
}

// The matrix of a group.
using MatrixOf = std::function<at::Tensor(int64_t group)>;

// A (M, K) times B (E, K, N) by group; zero in rows of no group.
at::Tensor multiply_rows(const GemmProblem& p, const at::Tensor& a, int64_t columns,
                         const MatrixOf& b) {
  const int64_t rows = rows_in_groups(p);
  at::Tensor out = at::empty({a.size(0), columns}, a.options().dtype(product_dtype(a)));
  out.narrow(0, rows, a.size(0) - rows).zero_();
  for_each_group(p, [&](int64_t g, int64_t begin, int64_t size) {
    if (size > 0) multiply(out.narrow(0, begin, size), a.narrow(0, begin, size), b(g));
  });
  return out;
}

// Few rows cost less than a copy of the weights in another dtype, of which experts without rows need
// none: each matrix is then converted just before its product, into memory that the caches hold.
bool converts_matrix_by_matrix(const GemmProblem& p, const FormKey& key) {
  constexpr int64_t kFewRows = 32;  // an expert
  return std::holds_alternative<HighPrecision>(key.format) && p.right.device().is_cpu() &&
         p.right.has_source() && !p.right.has(key) && p.left.size(0) <= kFewRows * p.groups.count();
}

// W [E, N, K] of the problem.
MatrixOf matrices_of_right(const GemmProblem& p, Encoding encoding) {
  const FormKey key = p.right_key(encoding);
  if (!converts_matrix_by_matrix(p, key)) {
    const at::Tensor all = p.right.form(key, p.groups).data;
    return [all](int64_t g) { return all.select(0, g); };
  }
  return [&p, encoding](int64_t g) {
    const at::Tensor source = p.right.source_matrix(g).detach();
    return allocate_result(source.sizes(), dtype_of(encoding), source).copy_(source);
  };
}

// left (M, N)^T times right (M, K) within each group: (E, N, K).
at::Tensor multiply_groups(const GemmProblem& p, const at::Tensor& left, const at::Tensor& right) {
  const at::Tensor out = at::empty({p.groups.count(), left.size(1), right.size(1)},
                                   left.options().dtype(product_dtype(left)));
  for_each_group(p, [&](int64_t g, int64_t begin, int64_t size) {
    if (size == 0) {
      out.select(0, g).zero_();
    } else {
      multiply(out.select(0, g), left.narrow(0, begin, size).t(), right.narrow(0, begin, size));
    }
  });
  return out;
}

at::Tensor gemm_in(const GemmProblem& p, Encoding encoding) {
  const at::Tensor left = p.left.form(p.left_key(encoding), p.groups).data;
  at::Tensor out;
  switch (p.gemm) {
    case Gemm::OUT: {
      const MatrixOf right = matrices_of_right(p, encoding);
      out = multiply_rows(p, left, p.right.size(1), [&](int64_t g) { return right(g).t(); });
      break;
    }
    case Gemm::GRAD_INPUT:
      out = multiply_rows(p, left, p.right.size(2), matrices_of_right(p, encoding));
      break;
    case Gemm::GRAD_WEIGHT:
      out = multiply_groups(p, left, p.right.form(p.right_key(encoding), p.groups).data);
      break;
  }
  return out.to(p.out_dtype);
}

// What both kernels ask for.
std::optional<std::string> device_refusal(const GemmProblem& p) {
  const at::Device& device = p.left.device();
  if (!device.is_cpu() && !device.is_cuda()) return concat("operands are on ", device);
  if (device.is_cuda() && p.groups.offs() && current_stream(device).capture != 0) {
    return "it reads offs on the host, which a CUDA graph cannot capture";
  }
  return std::nullopt;
}

// Of values that are bf16 numbers.
std::optional<std::string> speed_refusal(const GemmProblem& p) {
  const at::Device& device = p.left.device();
  if (device.is_cuda()) {
    constexpr int kAmpere = 80;
    if (compute_capability(device) >= kAmpere) return std::nullopt;
    return concat("no bf16 tensor cores: ", device, " has compute capability ",
                  describe_capability(device));
  }
  if (p.out_dtype != at::kBFloat16) return "a bf16 product would round a float32 result to bf16";
  if (!cpu_prefers_bf16()) return "float32 products are faster on this CPU (no avx512_bf16)";
  return std::nullopt;
}

}  // namespace

bool cpu_prefers_bf16() {
  return cpu::prefers_bf16_products();
}

std::optional<std::string> torch_bf16_refusal(const GemmProblem& p) {
  if (std::optional<std::string> refusal = device_refusal(p)) return refusal;
  if (!values_fit_bf16(p.formats.left, p.left.scalar_type()))
    return "the left operand needs float32";
  if (!values_fit_bf16(p.formats.right, p.right.scalar_type()))
    return "the right operand needs float32";
  return speed_refusal(p);
}

at::Tensor torch_bf16_gemm(const GemmProblem& p) {
  return gemm_in(p, Encoding::BF16);
}

std::optional<std::string> torch_float32_refusal(const GemmProblem& p) {
  return device_refusal(p);
}

at::Tensor torch_float32_gemm(const GemmProblem& p) {
  return gemm_in(p, Encoding::FLOAT32);
}

}  // namespace moe8
