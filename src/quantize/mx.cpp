// SPDX-License-Identifier: BSD-3-Clause
// MX quantizers on tensors: check, allocate, launch. The arithmetic is in src/cpu/mx.cpp, its
// definition in src/reference/mx.cpp.
#include "moe8/mx.h"

#include "base/check.h"
#include "cpu/mx.h"
#include "device/allocate.h"
#include "device/implementation.h"
#include "device/parallel.h"
#include "kernels/mx_args.h"
#include "quantize/both_axes.h"
#include "quantize/check_input.h"
#include "quantize/composite.h"
#include "quantize/cuda_quantize.h"
#include "quantize/packing.h"

namespace moe8 {
namespace {

void check_groups(const char* op, const at::Tensor& x, int64_t axis,
                  const std::optional<at::Tensor>& offs) {
  if (!offs) return;
  MOE8_CHECK(x.dim() == 2 && axis == 0, op, "offs",
             "expected groups along axis 0 of a 2-D tensor, got ", describe(x), " along axis ",
             axis);
  check_offs(op, *offs, -1, x.size(axis), x.device());
}

// The blocks of x along an axis and how many scale rows a tensor of them has. With offs that is an
// upper bound that depends on shapes alone, so that no device has to be asked for group sizes.
struct Blocking {
  std::vector<MxBlock> blocks;
  int64_t scale_rows;

  int64_t count() const { return static_cast<int64_t>(blocks.size()); }
  /// Positions of the axis that belong to some block; those behind them belong to none.
  int64_t end() const { return blocks.empty() ? 0 : blocks.back().begin + blocks.back().size; }
};

Blocking block_axis(const char* op, const at::Tensor& x, int64_t axis,
                    const std::optional<at::Tensor>& offs) {
  const int64_t length = x.size(axis);
  if (!offs) return {mx_blocks(length, nullptr, 0), (length + kMxBlock - 1) / kMxBlock};
  check_groups(op, x, axis, offs);
  const at::Tensor ends = offs->contiguous();
  const int64_t groups = ends.size(0);
  if (groups == 0) return {{}, length / kMxBlock};  // offs has no data: mx_blocks would see no offs
  return {mx_blocks(length, ends.const_data_ptr<int32_t>(), groups),
          (length + (kMxBlock - 1) * groups) / kMxBlock};
}

// Checks, then fills all but the outputs. `source` and `blocking` must outlive the arguments.
MxQuantizeArgs quantize_args(const at::Tensor& source, int64_t axis, const Blocking& blocking,
                             ElemDtype elem, ScaleCalculationMode mode) {
  const AxisView view = view_around(source.sizes(), axis);
  return {.elem = elem,
          .mode = mode,
          .x = source.const_data_ptr(),
          .x_type = float_type(source.scalar_type()),
          .outer = view.outer,
          .length = view.length,
          .inner = view.inner,
          .blocks = blocking.blocks.data(),
          .block_count = blocking.count(),
          .scale_rows = blocking.scale_rows,
          .data = nullptr,
          .scale = nullptr,
          .dequantized = nullptr,
          .dequantized_type = FloatType::BF16};
}

void launch(const MxQuantizeArgs& args) {
  parallel_items(args.work_items(), args.inner * kMxBlock,
                 [&](int64_t begin, int64_t end) { cpu::quantize_mx(args, begin, end); });
}

std::vector<int64_t> scale_sizes(const at::Tensor& x, int64_t axis, int64_t scale_rows) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes[axis] = scale_rows;
  return sizes;
}

// From codes one a byte and scale bytes.
MXTensor mx_tensor(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scale,
                   ElemDtype elem, int64_t axis, const std::optional<at::Tensor>& offs) {
  return {.data = pack_codes(codes, elem),
          .scale = scale.view(at::kFloat8_e8m0fnu),
          .elem = elem,
          .axis = axis,
          .orig_dtype = x.scalar_type(),
          .shape = x.sizes().vec(),
          .offs = offs};
}

}  // namespace

MXTensor quantize_mx(const at::Tensor& x_given, ElemDtype elem, ScaleCalculationMode mode,
                     int64_t axis, const std::optional<at::Tensor>& offs) {
  constexpr const char* kOp = "quantize_mx";
  const at::Tensor x = written_out(x_given);
  check_dtype(kOp, "x", x);
  check_device_supported(kOp, "x", x);
  axis = check_axis(kOp, x, axis);
  const Implementation by = implementation_of(x, offs);
  if (by != Implementation::CPU_KERNELS) {
    check_groups(kOp, x, axis, offs);
    const MxCodes made = by == Implementation::CUDA_KERNELS
                             ? cuda_quantize_mx(x, elem, mode, axis, offs)
                             : composite_quantize_mx(x, elem, mode, axis, offs);
    return mx_tensor(x, made.codes, made.scale, elem, axis, offs);
  }
  const Blocking blocking = block_axis(kOp, x, axis, offs);
  const at::Tensor source = contiguous_values(x);

  const at::Tensor codes = allocate_result(x.sizes(), at::kByte, x);
  const at::Tensor scale = allocate_result(scale_sizes(x, axis, blocking.scale_rows), at::kByte, x);
  MxQuantizeArgs args = quantize_args(source, axis, blocking, elem, mode);
  args.data = codes.mutable_data_ptr<uint8_t>();
  args.scale = scale.mutable_data_ptr<uint8_t>();
  launch(args);
  if (offs) {
    zero_rows_from(codes, blocking.end());
    zero_rows_from(scale, blocking.count());
  }
  return mx_tensor(x, codes, scale, elem, axis, offs);
}

at::Tensor fake_quantize_mx(const at::Tensor& x_given, ElemDtype elem, ScaleCalculationMode mode,
                            int64_t axis, const std::optional<at::Tensor>& offs,
                            std::optional<at::ScalarType> dtype) {
  constexpr const char* kOp = "fake_quantize_mx";
  const at::Tensor x = written_out(x_given);
  check_dtype(kOp, "x", x);
  check_out_dtype(kOp, "dtype", dtype.value_or(x.scalar_type()));
  check_device_supported(kOp, "x", x);
  axis = check_axis(kOp, x, axis);
  const Implementation by = implementation_of(x, offs);
  if (by == Implementation::CUDA_KERNELS) {
    check_groups(kOp, x, axis, offs);
    return cuda_fake_quantize_mx(x, elem, mode, axis, offs, dtype.value_or(x.scalar_type()));
  }
  if (by == Implementation::OPERATIONS) {
    return dequantize(quantize_mx(x, elem, mode, axis, offs), dtype);
  }
  const Blocking blocking = block_axis(kOp, x, axis, offs);
  const at::Tensor source = contiguous_values(x);

  const at::Tensor out = allocate_result(x.sizes(), dtype.value_or(x.scalar_type()), x);
  MxQuantizeArgs args = quantize_args(source, axis, blocking, elem, mode);
  args.dequantized = out.mutable_data_ptr();
  args.dequantized_type = float_type(out.scalar_type());
  launch(args);
  if (offs) zero_rows_from(out, blocking.end());
  return out;
}

BothAxes fake_quantize_mx_both(const at::Tensor& x_given, ElemDtype elem, ScaleCalculationMode mode,
                               const std::optional<at::Tensor>& offs, at::ScalarType dtype) {
  constexpr const char* kOp = "fake_quantize_mx_both";
  const at::Tensor x = written_out(x_given);
  check_dtype(kOp, "x", x);
  check_out_dtype(kOp, "dtype", dtype);
  check_device_supported(kOp, "x", x);
  const int64_t axis = check_axis(kOp, x, -2);
  if (implementation_of(x, offs) != Implementation::CPU_KERNELS) {
    return {fake_quantize_mx(x, elem, mode, -1, std::nullopt, dtype),
            fake_quantize_mx(x, elem, mode, axis, offs, dtype)};
  }
  const Blocking blocking = block_axis(kOp, x, axis, offs);
  const at::Tensor source = contiguous_values(x);
  const BothAxes out{allocate_result(x.sizes(), dtype, x), allocate_result(x.sizes(), dtype, x)};
  MxQuantizeBothArgs args{quantize_args(source, axis, blocking, elem, mode),
                          out.last.mutable_data_ptr()};
  args.columns.dequantized = out.before_last.mutable_data_ptr();
  args.columns.dequantized_type = float_type(dtype);
  parallel_items(args.work_items(), args.columns.inner * kMxBlock,
                 [&](int64_t begin, int64_t end) { cpu::quantize_mx_both(args, begin, end); });
  if (offs && blocking.end() < x.size(0)) {
    const auto rest = [&](const at::Tensor& t) { return t.slice(0, blocking.end()); };
    rest(out.last).copy_(fake_quantize_mx(rest(source), elem, mode, -1, std::nullopt, dtype));
    rest(out.before_last).zero_();
  }
  return out;
}

at::Tensor dequantize(const MXTensor& x, std::optional<at::ScalarType> dtype) {
  constexpr const char* kOp = "dequantize";
  check_mx_tensor(kOp, "x", x);
  check_out_dtype(kOp, "dtype", dtype.value_or(x.orig_dtype));
  check_device_supported(kOp, "x", x.data);
  const at::Tensor codes = unpack_codes(x.data, x.elem, x.shape);
  const Implementation by = implementation_of(x.data, x.offs);
  if (by != Implementation::CPU_KERNELS) {
    check_groups(kOp, codes, x.axis, x.offs);
    const bool is_byte = x.elem == ElemDtype::E4M3 || x.elem == ElemDtype::E5M2;
    if (by == Implementation::CUDA_KERNELS && is_byte && !x.offs &&
        check_axis(kOp, codes, x.axis) == codes.dim() - 1) {
      return cuda_dequantize_rows(codes, x.scale.contiguous().view(at::kByte), x.elem,
                                  dtype.value_or(x.orig_dtype));
    }
    return composite_dequantize_mx(x, codes, dtype.value_or(x.orig_dtype));
  }
  const Blocking blocking = block_axis(kOp, codes, x.axis, x.offs);
  const at::Tensor scale = x.scale.contiguous().view(at::kByte);
  const at::Tensor out = allocate_result(x.shape, dtype.value_or(x.orig_dtype), codes);
  const AxisView view = view_around(x.shape, x.axis);
  const MxDequantizeArgs args{.elem = x.elem,
                              .data = codes.const_data_ptr<uint8_t>(),
                              .scale = scale.const_data_ptr<uint8_t>(),
                              .outer = view.outer,
                              .length = view.length,
                              .inner = view.inner,
                              .blocks = blocking.blocks.data(),
                              .block_count = blocking.count(),
                              .scale_rows = blocking.scale_rows,
                              .out = out.mutable_data_ptr(),
                              .out_type = float_type(out.scalar_type())};
  parallel_items(args.work_items(), args.inner * kMxBlock,
                 [&](int64_t begin, int64_t end) { cpu::dequantize_mx(args, begin, end); });
  if (x.offs) zero_rows_from(out, blocking.end());
  return out;
}

}  // namespace moe8
