// SPDX-License-Identifier: BSD-3-Clause
// Float8 quantizers on tensors: check, allocate, launch. The arithmetic is in src/cpu/float8.cpp,
// its definition in src/reference/float8.cpp.
#include "moe8/float8.h"

#include <algorithm>

#include "base/check.h"
#include "cpu/float8.h"
#include "device/allocate.h"
#include "device/implementation.h"
#include "device/parallel.h"
#include "kernels/float8_args.h"
#include "quantize/both_axes.h"
#include "quantize/check_input.h"
#include "quantize/composite.h"
#include "quantize/cuda_quantize.h"
#include "quantize/packing.h"

namespace moe8 {
namespace {

constexpr int64_t kTensorwiseChunk = 1 << 14;  // elements whose amax one work item finds

/// How x is cut into reduced sets, and the shape of its scales.
struct Reduction {
  AxisView view;
  std::vector<Float8Set> sets;
  std::vector<int64_t> scale_sizes;

  int64_t count() const { return static_cast<int64_t>(sets.size()); }
  /// Positions of the axis that belong to some set; those behind them belong to none.
  int64_t end() const { return sets.empty() ? 0 : sets.back().begin + sets.back().size; }
};

Reduction reduce_tensor(const at::Tensor& x) {
  Reduction r{{1, x.numel(), 1}, {}, {}};
  for (int64_t at = 0; at < x.numel(); at += kTensorwiseChunk) {
    r.sets.push_back({at, std::min(kTensorwiseChunk, x.numel() - at)});
  }
  return r;
}

Reduction reduce_axis(const at::Tensor& x, int64_t axis) {
  Reduction r{view_around(x.sizes(), axis), {{0, x.size(axis)}}, x.sizes().vec()};
  r.scale_sizes[axis] = 1;
  return r;
}

void check_groups(const char* op, const at::Tensor& x, int64_t axis, const at::Tensor& offs) {
  MOE8_CHECK(x.dim() == 2 && axis == 0, op, "offs",
             "expected groups along axis 0 of a 2-D tensor, axiswise(0), got ", describe(x),
             " along axis ", axis);
  check_offs(op, offs, -1, x.size(0), x.device());
}

Reduction reduce_groups(const char* op, const at::Tensor& x, int64_t axis, const at::Tensor& offs) {
  check_groups(op, x, axis, offs);
  const at::Tensor ends = offs.contiguous();
  Reduction r{view_around(x.sizes(), axis), {}, {ends.size(0), x.size(1)}};
  int64_t begin = 0;
  for (int64_t g = 0; g < ends.size(0); ++g) {
    const int64_t end = ends.const_data_ptr<int32_t>()[g];
    r.sets.push_back({begin, end - begin});
    begin = end;
  }
  return r;
}

Reduction reduction_of(const char* op, const at::Tensor& x, const Float8Granularity& granularity,
                       const std::optional<at::Tensor>& offs) {
  if (granularity.kind == ScalingGranularity::TENSORWISE) {
    MOE8_CHECK(!offs, op, "offs", "expected none with tensorwise scaling");
    return reduce_tensor(x);
  }
  const int64_t axis = check_axis(op, x, granularity.axis);
  return offs ? reduce_groups(op, x, axis, *offs) : reduce_axis(x, axis);
}

// The checks of reduction_of alone, for devices that cannot be asked for group sizes; the shape of
// the scales.
std::vector<int64_t> check_reduction(const char* op, const at::Tensor& x,
                                     const Float8Granularity& granularity,
                                     const std::optional<at::Tensor>& offs) {
  if (granularity.kind == ScalingGranularity::TENSORWISE) {
    MOE8_CHECK(!offs, op, "offs", "expected none with tensorwise scaling");
    return {};
  }
  const int64_t axis = check_axis(op, x, granularity.axis);
  if (!offs) return reduce_axis(x, axis).scale_sizes;
  check_groups(op, x, axis, *offs);
  return {offs->size(0), x.size(1)};
}

void check_scale_sizes(const char* op, const Float8Tensor& x, at::IntArrayRef expected) {
  MOE8_CHECK(x.scale.sizes() == expected, op, "x", "expected scale ", expected, " for data ",
             x.data.sizes(), ", got ", x.scale.sizes());
}

// One scale for each row of the last axis.
bool has_scale_per_row(const Float8Tensor& x) {
  if (x.granularity.kind != ScalingGranularity::AXISWISE || x.offs) return false;
  return x.scale.dim() == x.data.dim() && x.data.dim() > 0 &&
         check_axis("dequantize", x.data, x.granularity.axis) == x.data.dim() - 1;
}

void check_quantize(const char* op, const at::Tensor& x, ElemDtype elem) {
  check_dtype(op, "x", x);
  check_device_supported(op, "x", x);
  MOE8_CHECK(elem == ElemDtype::E4M3 || elem == ElemDtype::E5M2, op, "elem",
             "expected float8_e4m3fn or float8_e5m2, got ", to_string(elem));
}

Float8QuantizeArgs quantize_args(const at::Tensor& source, const Reduction& r, ElemDtype elem,
                                 bool pow2, const at::Tensor& scale) {
  return {.elem = elem,
          .round_scales_to_power_of_2 = pow2,
          .x = source.const_data_ptr(),
          .x_type = float_type(source.scalar_type()),
          .outer = r.view.outer,
          .length = r.view.length,
          .inner = r.view.inner,
          .sets = r.sets.data(),
          .set_count = r.count(),
          .scale = scale.mutable_data_ptr<float>(),
          .scale_is_given = false,
          .data = nullptr,
          .dequantized = nullptr,
          .dequantized_type = FloatType::BF16};
}

int64_t elements_per_item(const AxisView& view, int64_t sets) {
  const int64_t columns = std::min(view.inner, Float8QuantizeArgs::kColumns);
  return columns * view.length / std::max<int64_t>(1, sets);
}

// The one scale of a tensor: its chunks' amax in parallel, then the largest.
float tensorwise_scale(const Float8QuantizeArgs& a) {
  std::vector<uint32_t> amax(a.set_count, 0);
  parallel_items(a.set_count, kTensorwiseChunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      amax[i] = cpu::float8_amax(a.x, a.x_type, a.sets[i].begin, a.sets[i].size);
    }
  });
  const uint32_t largest = amax.empty() ? 0 : *std::max_element(amax.begin(), amax.end());
  return cpu::float8_scale_of(largest, a.elem, a.round_scales_to_power_of_2);
}

void launch(Float8QuantizeArgs args, const Float8Granularity& granularity) {
  std::vector<float> repeated;  // a tensor's one scale, for each of its chunks
  if (granularity.kind == ScalingGranularity::TENSORWISE) {
    *args.scale = tensorwise_scale(args);
    repeated.assign(args.set_count, *args.scale);
    args.scale = repeated.data();
    args.scale_is_given = true;
  }
  parallel_items(args.work_items(),
                 elements_per_item({args.outer, args.length, args.inner}, args.set_count),
                 [&](int64_t begin, int64_t end) { cpu::quantize_float8(args, begin, end); });
}

}  // namespace

Float8Tensor quantize_float8(const at::Tensor& x_given, Float8Granularity granularity,
                             ElemDtype elem, bool round_scales_to_power_of_2,
                             const std::optional<at::Tensor>& offs) {
  constexpr const char* kOp = "quantize_float8";
  const at::Tensor x = written_out(x_given);
  check_quantize(kOp, x, elem);
  const auto tensor_of = [&](const Float8Codes& made) -> Float8Tensor {
    return {.data = pack_codes(made.codes, elem),
            .scale = made.scale,
            .elem = elem,
            .granularity = granularity,
            .round_scales_to_power_of_2 = round_scales_to_power_of_2,
            .orig_dtype = x.scalar_type(),
            .offs = offs};
  };
  const Implementation by = implementation_of(x, offs);
  if (by != Implementation::CPU_KERNELS) {
    check_reduction(kOp, x, granularity, offs);
    const auto quantize =
        by == Implementation::CUDA_KERNELS ? cuda_quantize_float8 : composite_quantize_float8;
    return tensor_of(quantize(x, granularity, elem, round_scales_to_power_of_2, offs));
  }
  const Reduction reduction = reduction_of(kOp, x, granularity, offs);
  const at::Tensor source = contiguous_values(x);
  const at::Tensor codes = allocate_result(x.sizes(), at::kByte, x);
  const at::Tensor scale = allocate_result(reduction.scale_sizes, at::kFloat, x);
  Float8QuantizeArgs args =
      quantize_args(source, reduction, elem, round_scales_to_power_of_2, scale);
  args.data = codes.mutable_data_ptr<uint8_t>();
  launch(args, granularity);
  if (offs) zero_rows_from(codes, reduction.end());
  return tensor_of({codes, scale});
}

at::Tensor fake_quantize_float8(const at::Tensor& x_given, Float8Granularity granularity,
                                ElemDtype elem, bool round_scales_to_power_of_2,
                                const std::optional<at::Tensor>& offs,
                                std::optional<at::ScalarType> dtype) {
  constexpr const char* kOp = "fake_quantize_float8";
  const at::Tensor x = written_out(x_given);
  check_quantize(kOp, x, elem);
  check_out_dtype(kOp, "dtype", dtype.value_or(x.scalar_type()));
  if (implementation_of(x, offs) != Implementation::CPU_KERNELS) {
    return dequantize(quantize_float8(x, granularity, elem, round_scales_to_power_of_2, offs),
                      dtype);
  }
  const Reduction reduction = reduction_of(kOp, x, granularity, offs);
  const at::Tensor source = contiguous_values(x);
  const at::Tensor out = allocate_result(x.sizes(), dtype.value_or(x.scalar_type()), x);
  const at::Tensor scale = allocate_result(reduction.scale_sizes, at::kFloat, x);
  Float8QuantizeArgs args =
      quantize_args(source, reduction, elem, round_scales_to_power_of_2, scale);
  args.dequantized = out.mutable_data_ptr();
  args.dequantized_type = float_type(out.scalar_type());
  launch(args, granularity);
  if (offs) zero_rows_from(out, reduction.end());
  return out;
}

BothAxes fake_quantize_float8_both(const at::Tensor& x, ElemDtype elem,
                                   bool round_scales_to_power_of_2,
                                   const std::optional<at::Tensor>& offs, at::ScalarType dtype) {
  const auto along = [&](int64_t axis, const std::optional<at::Tensor>& groups) {
    return fake_quantize_float8(x, Float8Granularity::axiswise(axis), elem,
                                round_scales_to_power_of_2, groups, dtype);
  };
  return {along(-1, std::nullopt), along(-2, offs)};
}

at::Tensor dequantize(const Float8Tensor& x, std::optional<at::ScalarType> dtype) {
  constexpr const char* kOp = "dequantize";
  MOE8_CHECK(x.data.defined() && x.data.element_size() == 1 && x.scale.defined() &&
                 x.scale.scalar_type() == at::kFloat && x.scale.device() == x.data.device(),
             kOp, "x", "expected one-byte data and float32 scale on one device, got ",
             describe(x.data), " and ", describe(x.scale));
  check_holds_its_values(kOp, "x", x.data);
  check_holds_its_values(kOp, "x", x.scale);
  check_out_dtype(kOp, "dtype", dtype.value_or(x.orig_dtype));
  check_device_supported(kOp, "x", x.data);
  const Implementation by = implementation_of(x.data, x.offs);
  if (by != Implementation::CPU_KERNELS) {
    check_scale_sizes(kOp, x, check_reduction(kOp, x.data, x.granularity, x.offs));
    const at::Tensor codes = unpack_codes(x.data, x.elem, x.data.sizes());
    const at::ScalarType out_dtype = dtype.value_or(x.orig_dtype);
    if (by == Implementation::CUDA_KERNELS && has_scale_per_row(x)) {
      return cuda_dequantize_rows(codes, x.scale, x.elem, out_dtype);
    }
    return composite_dequantize_float8(x, codes, out_dtype);
  }
  const Reduction reduction = reduction_of(kOp, x.data, x.granularity, x.offs);
  check_scale_sizes(kOp, x, reduction.scale_sizes);
  const at::Tensor codes = unpack_codes(x.data, x.elem, x.data.sizes());
  const at::Tensor scale = x.scale.contiguous();
  const std::vector<float> repeated(
      x.granularity.kind == ScalingGranularity::TENSORWISE ? reduction.sets.size() : 0,
      x.granularity.kind == ScalingGranularity::TENSORWISE ? *scale.const_data_ptr<float>() : 0.0f);
  const at::Tensor out = allocate_result(x.data.sizes(), dtype.value_or(x.orig_dtype), codes);
  const Float8DequantizeArgs args{
      .elem = x.elem,
      .data = codes.const_data_ptr<uint8_t>(),
      .scale = repeated.empty() ? scale.const_data_ptr<float>() : repeated.data(),
      .outer = reduction.view.outer,
      .length = reduction.view.length,
      .inner = reduction.view.inner,
      .sets = reduction.sets.data(),
      .set_count = reduction.count(),
      .out = out.mutable_data_ptr(),
      .out_type = float_type(out.scalar_type())};
  parallel_items(args.work_items(), elements_per_item(reduction.view, args.set_count),
                 [&](int64_t begin, int64_t end) { cpu::dequantize_float8(args, begin, end); });
  if (x.offs) zero_rows_from(out, reduction.end());
  return out;
}

}  // namespace moe8
