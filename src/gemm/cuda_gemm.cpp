// SPDX-License-Identifier: BSD-3-Clause
#include "gemm/cuda_gemm.h"

#include <ATen/ops/constant_pad_nd.h>

#include "base/log.h"
#include "base/plain_text.h"
#include "cuda/gemm/grouped_gemm.h"
#include "device/cuda_device.h"
#include "device/cuda_launch.h"
#include "device/implementation.h"
#include "groups/cuda_groups.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

constexpr int64_t kMaxSize = INT32_MAX;

// M tokens, N out-features, K in-features, E groups, whichever product it is.
struct Sizes {
  int64_t M, N, K, E;
};

Sizes sizes_of(const GemmProblem& p) {
  switch (p.gemm) {
    case Gemm::OUT:
    case Gemm::GRAD_INPUT:
      return {p.left.size(0), p.right.size(1), p.right.size(2), p.right.size(0)};
    case Gemm::GRAD_WEIGHT:
      break;
  }
  return {p.left.size(0), p.left.size(1), p.right.size(1), p.groups.count()};
}

std::vector<int64_t> out_sizes(const GemmProblem& p, const Sizes& s) {
  switch (p.gemm) {
    case Gemm::OUT:
      return {s.M, s.N};
    case Gemm::GRAD_INPUT:
      return {s.M, s.K};
    case Gemm::GRAD_WEIGHT:
      break;
  }
  return {s.E, s.N, s.K};
}

// What both families of kernels ask for.
std::optional<std::string> hopper_refusal(const GemmProblem& p) {
  if (!p.left.device().is_cuda()) return concat("operands are on ", p.left.device());
  const Sizes s = sizes_of(p);
  if (std::optional<std::string> refusal = kernels_refusal(p.left.device(), s.E)) return refusal;
  if (!is_hopper(p.left.device())) {
    return concat("it needs compute capability 9.0, ", p.left.device(), " has ",
                  describe_capability(p.left.device()));
  }
  if (std::max({s.M, s.N, s.K}) > kMaxSize) return "a size does not fit 32 bits";
  return std::nullopt;
}

const Float8Format* float8(const OperandFormat& format) {
  return std::get_if<Float8Format>(&format);
}

cuda::GroupedGemmArgs args_of(const GemmProblem& p, const Sizes& s, const at::Tensor& out,
                              const DeviceGroups& groups, cudaStream_t stream) {
  cuda::GroupedGemmArgs args{};
  args.kind = p.gemm;
  args.output = float_type(p.out_dtype);
  args.M = s.M;
  args.N = s.N;
  args.K = s.K;
  args.E = s.E;
  args.offs = groups.offs.const_data_ptr<int32_t>();
  args.out = out.mutable_data_ptr();
  args.out_pitch = out.size(-1);
  args.stream = stream;
  return args;
}

// Which kernel of the second list runs, and what those before it said.
std::string describe(const cuda::VariantChoice& choice) {
  std::string text = concat("     -> ", choice.chosen ? choice.chosen->name : "none",
                            choice.chosen ? concat(" (", choice.chosen->suits, ")") : "");
  const auto variants = cuda::grouped_gemm_variants();
  for (size_t i = 0; i < variants.size(); ++i) {
    if (!choice.said[i]) continue;
    text += concat("\n     not ", variants[i].name, ": ", choice.said[i]);
  }
  return text;
}

void launch(const char* op, cuda::GroupedGemmArgs args, const at::Device& device) {
  const cuda::VariantChoice choice = cuda::choose_grouped_gemm(args);
  at::Tensor partial;
  args.slices = cuda::choose_slices(args);
  if (args.slices > 1) {
    partial = empty_on(device, {args.slices, args.E, args.N, args.K}, at::kFloat);
    args.partial = partial.mutable_data_ptr<float>();
  }
  if (logs_dispatch()) log_dispatch(concat(op, "\n", describe(choice)));
  check_launch(op, cuda::launch_grouped_gemm(choice, args));
}

// Whether nothing has to be launched for the operands, and nothing just launched writes them.
bool operands_are_ready(const GemmProblem& p, Encoding encoding) {
  return p.follows_unrelated && p.left.has(p.left_key(encoding)) &&
         p.right.has(p.right_key(encoding));
}

at::Tensor empty_out(const GemmProblem& p, const Sizes& s) {
  return empty_on(p.left.device(), out_sizes(p, s), p.out_dtype);
}

// Elements from one row to the next, of a contiguous tensor or some columns of a wider matrix.
int64_t row_pitch(const at::Tensor& values) {
  return values.is_contiguous() ? values.size(-1) : values.stride(-2);
}

// Rows of whole 16 bytes, as the kernels read them; the columns added are zeros.
at::Tensor with_aligned_pitch(const at::Tensor& values) {
  constexpr int64_t kElements = 16 / 2;
  const int64_t rest = values.size(-1) % kElements;
  const bool is_aligned = reinterpret_cast<uintptr_t>(values.const_data_ptr()) % 16 == 0 &&
                          row_pitch(values) % kElements == 0;
  if (rest != 0) return at::constant_pad_nd(values, {0, kElements - rest});
  return is_aligned ? values : values.clone(at::MemoryFormat::Contiguous);
}

}  // namespace

// ---- FP8 codes, our kernels -------------------------------------------------
std::optional<std::string> cuda_fp8_refusal(const GemmProblem& p) {
  if (std::optional<std::string> refusal = hopper_refusal(p)) return refusal;
  if (!float8(p.formats.left) || !float8(p.formats.right)) {
    return "an operand is not FP8 with float32 scales";
  }
  if (float8(p.formats.right)->elem != ElemDtype::E4M3) {
    return "the right operand is not float8_e4m3fn";
  }
  return std::nullopt;
}

namespace {

void multiply_fp8(const GemmProblem& p, const Sizes& s, const at::Tensor& out, bool adds) {
  const Launch on(p.left.device());
  const bool is_ready = operands_are_ready(p, Encoding::FLOAT8);
  const Form left = p.left.form(p.left_key(Encoding::FLOAT8), p.groups);
  const Form right = p.right.form(p.right_key(Encoding::FLOAT8), p.groups);
  const DeviceGroups& groups = p.groups.on_device(s.M, p.left.device());
  cuda::GroupedGemmArgs args = args_of(p, s, out, groups, on.stream);
  args.adds = adds;
  args.operands_are_ready = is_ready;
  args.element = float8(p.formats.left)->elem == ElemDtype::E5M2 ? cuda::GemmElement::E5M2_E4M3
                                                                 : cuda::GemmElement::E4M3;
  args.use_fast_accum = p.formats.use_fast_accum;
  args.left = left.data.const_data_ptr();
  args.left_pitch = left.data.size(-1);
  args.right = right.data.const_data_ptr();
  args.right_pitch = right.data.size(-1);
  args.row_scale = left.decode_scale.const_data_ptr<float>();
  args.col_scale = right.decode_scale.const_data_ptr<float>();
  if (p.gemm == Gemm::GRAD_WEIGHT) {
    args.padded_starts = groups.metadata.padded_starts;
    args.padded_tokens = groups.metadata.padded_rows();
  }
  launch("cuda_fp8", args, p.left.device());
}

}  // namespace

at::Tensor cuda_fp8_gemm(const GemmProblem& p) {
  const Sizes s = sizes_of(p);
  at::Tensor out = empty_out(p, s);
  multiply_fp8(p, s, out, /*adds=*/false);
  return out;
}

void cuda_fp8_add(const GemmProblem& p, const at::Tensor& sum) {
  multiply_fp8(p, sizes_of(p), sum, /*adds=*/true);
}

// ---- values in bf16 ---------------------------------------------------------
std::optional<std::string> cuda_bf16_refusal(const GemmProblem& p) {
  if (std::optional<std::string> refusal = hopper_refusal(p)) return refusal;
  if (!values_fit_bf16(p.formats.left, p.left.scalar_type())) {
    return "the left operand needs float32";
  }
  if (!values_fit_bf16(p.formats.right, p.right.scalar_type())) {
    return "the right operand needs float32";
  }
  return std::nullopt;
}

namespace {

void multiply_bf16(const GemmProblem& p, const Sizes& s, const at::Tensor& out, bool adds) {
  const Launch on(p.left.device());
  const bool is_ready = operands_are_ready(p, Encoding::BF16);
  const at::Tensor left_values = p.left.form(p.left_key(Encoding::BF16), p.groups).data;
  const at::Tensor right_values = p.right.form(p.right_key(Encoding::BF16), p.groups).data;
  const at::Tensor left = with_aligned_pitch(left_values);
  const at::Tensor right = with_aligned_pitch(right_values);
  cuda::GroupedGemmArgs args =
      args_of(p, s, out, p.groups.on_device(s.M, p.left.device()), on.stream);
  args.adds = adds;
  args.element = cuda::GemmElement::BF16;
  args.operands_are_ready = is_ready && left.is_same(left_values) && right.is_same(right_values);
  args.left = left.const_data_ptr();
  args.left_pitch = row_pitch(left);
  args.right = right.const_data_ptr();
  args.right_pitch = right.size(-1);
  launch("cuda_bf16", args, p.left.device());
}

}  // namespace

at::Tensor cuda_bf16_gemm(const GemmProblem& p) {
  const Sizes s = sizes_of(p);
  at::Tensor out = empty_out(p, s);
  multiply_bf16(p, s, out, /*adds=*/false);
  return out;
}

void cuda_bf16_add(const GemmProblem& p, const at::Tensor& sum) {
  multiply_bf16(p, sizes_of(p), sum, /*adds=*/true);
}

}  // namespace moe8
