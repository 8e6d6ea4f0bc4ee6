// SPDX-License-Identifier: BSD-3-Clause
// Sequences of operations on one matrix, each compared with the reference: quantizing and back,
// grouped and linear products with their gradients, changes of layout and values between them.
// Input: the sequence, its formats, shapes and seeds.
#include <torch/torch.h>

#include "autograd/training_formats.h"
#include "fuzz/refusal.h"
#include "gemm/low_precision_gemm.h"
#include "kernels/mx_args.h"
#include "moe8/float8.h"
#include "moe8/grouped_mm.h"
#include "moe8/linear.h"
#include "moe8/mx.h"
#include "quantize/check_input.h"
#include "quantize/packing.h"
#include "reference/float8.h"
#include "reference/mx.h"
#include "testing/compare.h"
#include "testing/fill.h"
#include "testing/problem.h"

namespace moe8 {
namespace {

using fuzz::FuzzInput;
using fuzz::require;

constexpr ElemDtype kElems[] = {ElemDtype::E4M3, ElemDtype::E5M2, ElemDtype::E2M3, ElemDtype::E3M2,
                                ElemDtype::E2M1};
constexpr ScaleCalculationMode kModes[] = {ScaleCalculationMode::FLOOR, ScaleCalculationMode::RCEIL,
                                           ScaleCalculationMode::CEIL, ScaleCalculationMode::EVEN};
constexpr at::ScalarType kTypes[] = {at::kBFloat16, at::kFloat};
constexpr int64_t kMaxRows = 150;
constexpr int64_t kMaxColumns = 70;

void require_same(const at::Tensor& expected, const at::Tensor& got, const std::string& what) {
  const ::testing::AssertionResult same = testing::same_values(expected, got);
  require(bool(same), what + ": " + same.message());
}

// ---- drawing ----------------------------------------------------------------
at::Tensor draw_tensor(FuzzInput& input, const std::vector<int64_t>& shape, at::ScalarType dtype) {
  const auto seed = input.value<uint16_t>();
  switch (input.integer(0, 3)) {
    case 0:
      return testing::small_integers(shape, dtype, seed);
    case 1:
      return testing::wide_normal(shape, dtype, seed, static_cast<int>(input.integer(0, 12)));
    case 2:
      return testing::hard_values(shape, dtype, seed);
    default:
      return testing::hard_values(shape, dtype, seed, /*with_nonfinite=*/true);
  }
}

at::Tensor draw_offs(FuzzInput& input, int64_t groups, int64_t rows) {
  std::vector<int32_t> ends;
  int64_t end = 0;
  for (; groups > 0; --groups) {
    end = std::min(rows, end + input.integer(0, 80));
    ends.push_back(static_cast<int32_t>(end));
  }
  return at::tensor(ends, at::kInt);
}

CastConfig draw_cast(FuzzInput& input) {
  return {.scaling_type = input.integer(0, 3) == 0 ? ScalingType::DISABLED : ScalingType::DYNAMIC,
          .scaling_granularity =
              input.flag() ? ScalingGranularity::AXISWISE : ScalingGranularity::TENSORWISE,
          .target_dtype = input.flag() ? ElemDtype::E5M2 : ElemDtype::E4M3};
}

Config draw_grouped_config(FuzzInput& input) {
  if (input.flag()) return FP8GroupedMMConfig{.out_dtype = input.pick(kTypes)};
  return MXFP8GroupedMMConfig{.out_dtype = input.pick(kTypes),
                              .wgrad_with_hp = input.flag(),
                              .scale_calculation_mode = input.pick(kModes)};
}

Config draw_linear_config(FuzzInput& input) {
  if (input.flag()) {
    return MXLinearConfig{.elem_dtype = input.pick(kElems),
                          .elem_dtype_weight_override = input.pick(kElems),
                          .elem_dtype_grad_output_override = input.pick(kElems),
                          .scale_calculation_mode = input.pick(kModes)};
  }
  Float8LinearConfig config = Float8LinearConfig::from_recipe_name(
      input.pick(std::array{Float8LinearRecipeName::TENSORWISE, Float8LinearRecipeName::ROWWISE,
                            Float8LinearRecipeName::ROWWISE_WITH_GW_HP}));
  config.round_scales_to_power_of_2 = input.flag();
  if (input.flag()) config.cast_config_input = draw_cast(input);
  if (input.flag()) config.cast_config_weight = draw_cast(input);
  if (input.flag()) config.cast_config_grad_output = draw_cast(input);
  return config;
}

// ---- quantizers -------------------------------------------------------------
at::Tensor zeros_like_sizes(const at::Tensor& x, at::ScalarType dtype) {
  return at::zeros(x.sizes(), at::TensorOptions().dtype(dtype));
}

void check_mx(const at::Tensor& x, ElemDtype elem, ScaleCalculationMode mode, int64_t axis,
              const std::optional<at::Tensor>& offs, at::ScalarType out_dtype) {
  const at::Tensor source = x.contiguous();
  const AxisView view = view_around(source.sizes(), axis);
  std::vector<MxBlock> blocks;
  if (!offs) blocks = mx_blocks(view.length, nullptr, 0);
  if (offs && offs->numel() > 0) {
    blocks = mx_blocks(view.length, offs->const_data_ptr<int32_t>(), offs->numel());
  }
  const MXTensor got = quantize_mx(x, elem, mode, axis, offs);
  const at::Tensor codes = zeros_like_sizes(source, at::kByte);
  const at::Tensor scale = at::zeros(got.scale.sizes(), at::kByte);
  const at::Tensor values = zeros_like_sizes(source, out_dtype);
  const MxQuantizeArgs args{.elem = elem,
                            .mode = mode,
                            .x = source.const_data_ptr(),
                            .x_type = float_type(source.scalar_type()),
                            .outer = view.outer,
                            .length = view.length,
                            .inner = view.inner,
                            .blocks = blocks.data(),
                            .block_count = static_cast<int64_t>(blocks.size()),
                            .scale_rows = scale.size(axis),
                            .data = codes.mutable_data_ptr<uint8_t>(),
                            .scale = scale.mutable_data_ptr<uint8_t>(),
                            .dequantized = values.mutable_data_ptr(),
                            .dequantized_type = float_type(out_dtype)};
  reference::quantize_mx(args, 0, args.work_items());
  require_same(pack_codes(codes, elem).view(at::kByte), got.data.view(at::kByte), "mx codes");
  require_same(scale, got.scale.view(at::kByte), "mx scales");
  require_same(values, dequantize(got, out_dtype), "mx values of codes");
  require_same(values, fake_quantize_mx(x, elem, mode, axis, offs, out_dtype), "mx values");
}

void check_float8(const at::Tensor& x, Float8Granularity granularity, ElemDtype elem, bool pow2,
                  const std::optional<at::Tensor>& offs, at::ScalarType out_dtype) {
  const at::Tensor source = x.contiguous();
  const bool whole = granularity.kind == ScalingGranularity::TENSORWISE;
  const AxisView view =
      whole ? AxisView{1, source.numel(), 1} : view_around(source.sizes(), granularity.axis);
  std::vector<Float8Set> sets;
  if (offs) {
    int64_t begin = 0;
    for (int64_t g = 0; g < offs->numel(); ++g) {
      const int64_t end = (*offs)[g].item<int32_t>();
      sets.push_back({begin, end - begin});
      begin = end;
    }
  } else {
    sets.push_back({0, view.length});
  }
  const Float8Tensor got = quantize_float8(x, granularity, elem, pow2, offs);
  const at::Tensor codes = zeros_like_sizes(source, at::kByte);
  const at::Tensor scale = at::zeros(got.scale.sizes(), at::kFloat);
  const at::Tensor values = zeros_like_sizes(source, out_dtype);
  const Float8QuantizeArgs args{.elem = elem,
                                .round_scales_to_power_of_2 = pow2,
                                .x = source.const_data_ptr(),
                                .x_type = float_type(source.scalar_type()),
                                .outer = view.outer,
                                .length = view.length,
                                .inner = view.inner,
                                .sets = sets.data(),
                                .set_count = static_cast<int64_t>(sets.size()),
                                .scale = scale.mutable_data_ptr<float>(),
                                .scale_is_given = false,
                                .data = codes.mutable_data_ptr<uint8_t>(),
                                .dequantized = values.mutable_data_ptr(),
                                .dequantized_type = float_type(out_dtype)};
  reference::quantize_float8(args, 0, args.work_items());
  require_same(codes, got.data.view(at::kByte), "float8 codes");
  require_same(scale, got.scale, "float8 scales");
  require_same(values, dequantize(got, out_dtype), "float8 values of codes");
  require_same(values, fake_quantize_float8(x, granularity, elem, pow2, offs, out_dtype),
               "float8 values");
}

void quantize_step(FuzzInput& input, const at::Tensor& x) {
  const bool grouped = input.flag();
  const int64_t axis = grouped ? 0 : input.integer(0, 1);
  const std::optional<at::Tensor> offs =
      grouped ? std::optional(draw_offs(input, input.integer(0, 5), x.size(0))) : std::nullopt;
  const at::ScalarType out_dtype = input.pick(kTypes);
  if (input.flag()) {
    check_mx(x, input.pick(kElems), input.pick(kModes), axis, offs, out_dtype);
  } else {
    const bool whole = !grouped && input.flag();
    check_float8(x, whole ? Float8Granularity::tensorwise() : Float8Granularity::axiswise(axis),
                 input.flag() ? ElemDtype::E5M2 : ElemDtype::E4M3, input.flag(), offs, out_dtype);
  }
}

// ---- products ---------------------------------------------------------------
// How far a product may lie from the reference: one rounding to its dtype; float32 sums in any
// order of terms of these magnitudes; and bf16 hardware may take subnormal numbers for zero.
at::Tensor allowance(const GemmProblem& problem, const at::Tensor& expected) {
  const at::Tensor left = problem.left.source().abs();
  const at::Tensor right = problem.right.source().abs();
  GemmProblem of_magnitudes = problem;
  of_magnitudes.left = left;
  of_magnitudes.right = right;
  const double rounding = problem.out_dtype == at::kBFloat16 ? 0x1p-8 : 0x1p-23;
  const double terms = static_cast<double>(std::max(left.numel(), right.numel()));
  const auto largest = [](const at::Tensor& x) {
    return x.numel() == 0 ? 0.0 : x.max().item<double>();
  };
  return expected.abs() * rounding +
         testing::reference_gemm(of_magnitudes) * (terms + 2) * 0x1p-23 +
         terms * 0x1p-125 * (1 + largest(left) + largest(right));
}

void check_product(const GemmProblem& problem, const at::Tensor& got, const std::string& what) {
  require(got.scalar_type() == problem.out_dtype, what + " has its dtype");
  const at::Tensor expected = testing::reference_gemm(problem);
  require(got.sizes() == expected.sizes(), what + " has its shape");
  const at::Tensor allowed = allowance(problem, expected);
  // Where float32 may overflow on the way, or a NaN took part, any of Inf, NaN and numbers is
  // right.
  const at::Tensor comparable = allowed.isfinite().logical_and(allowed.lt(1e30));
  const at::Tensor close = (got.to(at::kDouble) - expected).abs().le(allowed);
  require(close.logical_or(comparable.logical_not()).all().item<bool>(),
          what + " is near the reference: " + problem.describe());
  require_same(got, low_precision_gemm(problem), what + " is the same twice");
}

struct Product {
  at::Tensor A, W, grad_out;  // (M, K), (E, N, K), (M, N)
  std::optional<at::Tensor> offs;
  Config config;
  at::ScalarType out_dtype;

  GemmProblem gemm(Gemm which) const {
    const TrainingFormats formats = training_formats(config);
    const bool out = which == Gemm::OUT;
    const bool weight = which == Gemm::GRAD_WEIGHT;
    return {.gemm = which,
            .left = out ? A : grad_out,
            .right = weight ? A : W,
            .groups = offs,
            .formats = out      ? formats.out
                       : weight ? formats.grad_weight
                                : formats.grad_input,
            .out_dtype = out      ? out_dtype
                         : weight ? W.scalar_type()
                                  : A.scalar_type()};
  }
};

// Runs forward and backward, compares the three products, returns out.
template <typename Forward>
at::Tensor check_three_products(const Product& p, const Forward& forward) {
  const at::Tensor A = p.A.detach().requires_grad_();
  const at::Tensor W = p.W.detach().requires_grad_();
  const at::Tensor out = forward(A, W);
  out.backward(p.grad_out);
  check_product(p.gemm(Gemm::OUT), out.detach(), "out");
  check_product(p.gemm(Gemm::GRAD_INPUT), A.grad(), "grad_A");
  check_product(p.gemm(Gemm::GRAD_WEIGHT), W.grad(), "grad_W");
  return out.detach();
}

at::Tensor grouped_step(FuzzInput& input, const at::Tensor& x) {
  const int64_t E = input.integer(1, 5);
  const int64_t N = input.integer(1, kMaxColumns);
  const Config config = draw_grouped_config(input);
  const at::ScalarType out_dtype = std::visit(
      [](const auto& c) -> at::ScalarType {
        if constexpr (requires { c.out_dtype; }) return c.out_dtype;
        return at::kBFloat16;
      },
      config);
  const Product p{.A = x,
                  .W = draw_tensor(input, {E, N, x.size(1)}, input.pick(kTypes)),
                  .grad_out = draw_tensor(input, {x.size(0), N}, out_dtype),
                  .offs = draw_offs(input, E, x.size(0)),
                  .config = config,
                  .out_dtype = out_dtype};
  return check_three_products(p, [&](const at::Tensor& A, const at::Tensor& W) {
    return quantize_then_scaled_grouped_mm(A, W.transpose(-2, -1), *p.offs, config);
  });
}

at::Tensor linear_step(FuzzInput& input, const at::Tensor& x) {
  const int64_t N = input.integer(1, kMaxColumns);
  const Config config = draw_linear_config(input);
  if (!fuzz::accepts([&] { validate(config); })) return x;
  const at::Tensor weight = draw_tensor(input, {N, x.size(1)}, input.pick(kTypes));
  const Product p{.A = x,
                  .W = weight.unsqueeze(0),
                  .grad_out = draw_tensor(input, {x.size(0), N}, x.scalar_type()),
                  .offs = std::nullopt,
                  .config = config,
                  .out_dtype = x.scalar_type()};
  return check_three_products(p, [&](const at::Tensor& A, const at::Tensor& W) {
    return quantize_then_linear(A, W[0], std::nullopt, config);
  });
}

// ---- what else happens to a matrix ------------------------------------------
at::Tensor reshape_step(FuzzInput& input, const at::Tensor& x) {
  switch (input.integer(0, 4)) {
    case 0:
      return x.size(0) <= kMaxColumns ? x.transpose(0, 1) : x;  // other strides
    case 1:
      return x.slice(0, input.integer(0, x.size(0)), std::nullopt, input.integer(1, 3));
    case 2:
      return x.size(1) > 1 ? x.slice(1, 1, std::nullopt, input.integer(1, 3)) : x;
    case 3:
      return x * std::exp2(static_cast<float>(input.integer(-130, 130)));
    default:
      return x.to(input.pick(kTypes));
  }
}

// ---- arguments that should be refused ---------------------------------------
at::Tensor draw_anything(FuzzInput& input) {
  constexpr at::ScalarType kAny[] = {at::kBFloat16, at::kFloat, at::kHalf, at::kInt,
                                     at::kLong,     at::kByte,  at::kBool};
  std::vector<int64_t> shape(input.integer(0, 3));
  for (int64_t& size : shape) size = input.integer(0, 40);
  if (input.integer(0, 9) == 0) return {};
  const bool meta = input.integer(0, 9) == 0;
  at::Tensor x = at::zeros(
      shape, at::TensorOptions().dtype(input.pick(kAny)).device(meta ? at::kMeta : at::kCPU));
  return x.dim() > 1 && input.flag() ? x.transpose(0, 1) : x;
}

at::Tensor draw_any_offs(FuzzInput& input) {
  if (input.integer(0, 4) == 0) return draw_anything(input);
  std::vector<int32_t> ends(input.integer(0, 5));
  for (int32_t& end : ends) {
    end = input.flag() ? input.value<int32_t>() : static_cast<int32_t>(input.integer(0, 40));
  }
  return at::tensor(ends, at::kInt);
}

void misuse_step(FuzzInput& input) {
  const at::Tensor x = draw_anything(input);
  const at::Tensor y = draw_anything(input);
  const at::Tensor offs = draw_any_offs(input);
  const std::optional<at::Tensor> groups = input.flag() ? std::optional(offs) : std::nullopt;
  const int64_t axis = input.integer(-5, 5);
  const Config config = input.flag() ? draw_grouped_config(input) : draw_linear_config(input);
  const auto half = static_cast<int64_t>(input.value<int32_t>());
  fuzz::accepts([&] { quantize_mx(x, input.pick(kElems), input.pick(kModes), axis, groups); });
  fuzz::accepts([&] {
    quantize_float8(x, Float8Granularity::axiswise(axis), input.pick(kElems), true, groups);
  });
  fuzz::accepts([&] { quantize_then_scaled_grouped_mm(x, y, offs, config); });
  fuzz::accepts([&] { quantize_then_linear(x, y, groups, config); });
  fuzz::accepts([&] {
    dequantize(MXTensor{.data = x,
                        .scale = y,
                        .elem = input.pick(kElems),
                        .axis = axis,
                        .shape = {input.integer(-2, 40), half},
                        .offs = groups});
  });
  fuzz::accepts([&] {
    dequantize(Float8Tensor{.data = x,
                            .scale = y,
                            .elem = input.pick(kElems),
                            .granularity = Float8Granularity::axiswise(axis),
                            .offs = groups});
  });
}

void run_sequence(FuzzInput& input) {
  at::Tensor x = draw_tensor(input, {input.integer(0, kMaxRows), input.integer(1, kMaxColumns)},
                             input.pick(kTypes));
  for (int64_t steps = input.integer(1, 5); steps > 0; --steps) {
    switch (input.integer(0, 4)) {
      case 0:
        quantize_step(input, x);
        break;
      case 1:
        x = grouped_step(input, x);
        break;
      case 2:
        x = linear_step(input, x);
        break;
      case 3:
        x = reshape_step(input, x);
        break;
      default:
        misuse_step(input);
    }
  }
}

}  // namespace
}  // namespace moe8

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const bool quiet = [] {
    at::set_num_threads(1);  // starting threads would take most of the time
    return true;
  }();
  static_cast<void>(quiet);
  moe8::fuzz::FuzzInput input(bytes, size);
  moe8::run_sequence(input);
  return 0;
}
