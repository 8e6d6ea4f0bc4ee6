// SPDX-License-Identifier: BSD-3-Clause
// General shapes on kernels for matrices: an axis in the middle makes each outer slice a group of
// rows. Where a kernel's layout differs from the public one (transposed or padded codes), the codes
// are copied; products do not come here, they take forms (cuda_forms.cpp).
#include "quantize/cuda_quantize.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>

#include "cuda/quantize/blocked_scales.h"
#include "cuda/quantize/decode_rows.h"
#include "device/cuda_launch.h"
#include "formats/integers.h"
#include "groups/cuda_groups.h"
#include "groups/padded_tokens.h"
#include "groups/token_groups.h"
#include "quantize/check_input.h"
#include "quantize/cuda_args.h"

namespace moe8 {
namespace {

// The rows of x around an axis, and which of them belong together.
struct Rows {
  AxisView view;
  std::shared_ptr<const DeviceGroups> jagged;  // null: one group for each outer slice
  cuda::RowGroups groups;

  // True when the axis is the columns of each row, so that neighbours of a row belong together.
  bool along_columns() const { return view.inner == 1 && !jagged; }
};

Rows rows_around(const at::Tensor& x, int64_t axis, const std::optional<at::Tensor>& offs) {
  Rows rows{view_around(x.sizes(), axis), nullptr, {}};
  if (offs) {
    rows.jagged = make_device_groups(offs, x.size(0), x.device());
    rows.groups = cuda::RowGroups::of(rows.jagged->metadata);
  } else if (rows.along_columns()) {
    rows.groups = cuda::RowGroups::equal(1, rows.view.outer);
  } else {
    rows.groups = cuda::RowGroups::equal(rows.view.outer, rows.view.length);
  }
  return rows;
}

// Everything but the outputs.
cuda::MxArgs args_of(const at::Tensor& source, const Rows& rows, ElemDtype elem,
                     ScaleCalculationMode mode) {
  const int64_t columns = rows.along_columns() ? rows.view.length : rows.view.inner;
  return mx_args(source, columns, rows.groups, elem, mode);
}

void launch_mx(const char* op, cuda::MxArgs& args, const Rows& rows, const cuda::MxOutputs& outputs,
               int64_t scale_rows) {
  if (args.columns == 0 || args.groups.rows == 0) return;
  if (rows.along_columns()) {
    args.row_blocks = outputs;
  } else {
    args.column_blocks = outputs;
    args.column_scale_rows = scale_rows;
  }
  check_launch(op, cuda::launch_mx(args, c10::cuda::getCurrentCUDAStream().stream()));
}

Float8Codes quantize_tensor(const at::Tensor& x, ElemDtype elem, bool pow2) {
  const Launch launch(x.device());
  const int64_t count = x.numel();
  const at::Tensor amax = empty_on(x, {1}, at::kInt);
  const at::Tensor padded = empty_on(x, {code_pitch(count)}, at::kByte);
  const at::Tensor scale = empty_on(x, {}, at::kFloat);
  const at::Tensor inverse = empty_on(x, {}, at::kFloat);
  check_launch("quantize_float8", cuda::launch_amax(x.const_data_ptr(), float_type(x.scalar_type()),
                                                    count, amax_bits(amax), launch.stream));
  auto args =
      float8_args<cuda::Float8TensorArgs>(x, count, cuda::RowGroups::equal(1, 1), elem, pow2);
  args.amax = amax_bits(amax);
  args.codes = padded.mutable_data_ptr<uint8_t>();
  args.pitch = padded.numel();
  args.scale = scale.mutable_data_ptr<float>();
  args.inverse_scale = inverse.mutable_data_ptr<float>();
  check_launch("quantize_float8", cuda::launch_float8_tensor(args, launch.stream));
  return {padded.narrow(0, 0, count).view(x.sizes()), scale};
}

struct RowCodes {
  at::Tensor codes;  // [rows, pitch]
  at::Tensor scale;  // [rows]
  at::Tensor column_amax;
};

RowCodes quantize_rows(const at::Tensor& x, const Rows& rows, int64_t columns, ElemDtype elem,
                       bool pow2, bool wants_columns) {
  const int64_t pitch = code_pitch(columns);
  RowCodes out{empty_on(x, {rows.groups.rows, pitch}, at::kByte),
               empty_on(x, {rows.groups.rows}, at::kFloat),
               empty_on(x, {wants_columns ? rows.groups.groups * columns : 0}, at::kInt)};
  const at::Tensor inverse = empty_on(x, {rows.groups.rows}, at::kFloat);
  auto args = float8_args<cuda::Float8RowsArgs>(x, columns, rows.groups, elem, pow2);
  args.codes = out.codes.mutable_data_ptr<uint8_t>();
  args.pitch = pitch;
  args.inverse_scale = inverse.mutable_data_ptr<float>();
  args.scale = out.scale.mutable_data_ptr<float>();
  if (wants_columns) {
    args.column_amax = amax_bits(out.column_amax);
  }
  check_launch("quantize_float8",
               cuda::launch_float8_rows(args, c10::cuda::getCurrentCUDAStream().stream()));
  return out;
}

// Codes of one scale per group and column: made transposed, and turned back.
Float8Codes quantize_columns(const at::Tensor& x, const Rows& rows, ElemDtype elem, bool pow2) {
  const int64_t columns = rows.view.inner;
  const cuda::RowGroups& groups = rows.groups;
  const RowCodes found = quantize_rows(x, rows, columns, elem, pow2, /*wants_columns=*/true);
  const int64_t width = groups.transposed_columns();
  const int64_t slices = groups.is_jagged() ? 1 : groups.groups;
  const at::Tensor transposed = empty_on(x, {slices, columns, width}, at::kByte);
  const at::Tensor scale = empty_on(x, {groups.groups, columns}, at::kFloat);
  const at::Tensor inverse = empty_on(x, {groups.groups, columns}, at::kFloat);
  auto args = float8_args<cuda::Float8TransposedArgs>(x, columns, groups, elem, pow2);
  args.amax = amax_bits(found.column_amax);
  args.codes = transposed.mutable_data_ptr<uint8_t>();
  args.inverse_scale = inverse.mutable_data_ptr<float>();
  args.scale = scale.mutable_data_ptr<float>();
  check_launch("quantize_float8",
               cuda::launch_float8_transposed(args, c10::cuda::getCurrentCUDAStream().stream()));
  if (!groups.is_jagged()) {
    return {transposed.narrow(2, 0, rows.view.length).transpose(1, 2).reshape(x.sizes()), scale};
  }
  // Where each row went: the padded start of its group, and on from there. A row of no group reads
  // any column, and becomes 0.
  const at::Tensor& offs = rows.jagged->offs;
  const at::Tensor group = group_of_rows(offs, x.size(0));
  const at::Tensor ends = offs.to(at::kLong);
  const at::Tensor begins = at::constant_pad_nd(ends, {1, 0});
  const at::Tensor sizes = ends - begins.slice(0, 0, -1);
  const int64_t padding = groups.padding;
  const at::Tensor starts = at::constant_pad_nd(
      (sizes + (padding - 1)).floor_divide(padding).mul(padding).cumsum(0), {1, 0});
  const at::Tensor row = at::arange(x.size(0), ends.options());
  const at::Tensor column = (starts.index_select(0, group) + row - begins.index_select(0, group))
                                .clamp_max(std::max<int64_t>(width - 1, 0));
  const at::Tensor codes = transposed[0].index_select(1, column).t().contiguous();
  return {codes.masked_fill(group.eq(offs.numel()).unsqueeze(1), 0), scale};
}

BlockedGroups blocked_groups(const at::Tensor& bytes, const at::Tensor& offs, bool of_rows) {
  const Launch launch(bytes.device());
  const int64_t groups = offs.numel();
  MOE8_CHECK(groups <= cuda::kMaxGroups, "to_blocked", "offs", "expected at most ",
             cuda::kMaxGroups, " groups on a GPU, got ", groups);
  const at::Tensor ends = offs.contiguous();
  const at::Tensor blocked =
      of_rows
          ? empty_on(bytes, {bytes.size(0) + 128 * groups, round_up(bytes.size(1), 4)}, at::kByte)
          : empty_on(bytes, {round_up(bytes.size(0), 128), bytes.size(1) + 4 * groups}, at::kByte);
  const at::Tensor start = empty_on(bytes, {groups + 1}, at::kLong);
  const cuda::BlockedGroupsArgs args{
      bytes.const_data_ptr<uint8_t>(),  bytes.size(0), bytes.size(1),
      ends.const_data_ptr<int32_t>(),   groups,        blocked.mutable_data_ptr<uint8_t>(),
      start.mutable_data_ptr<int64_t>()};
  check_launch("to_blocked", of_rows ? cuda::launch_blocked_scales_m_groups(args, launch.stream)
                                     : cuda::launch_blocked_scales_k_groups(args, launch.stream));
  return {blocked, start};
}

}  // namespace

MxCodes cuda_quantize_mx(const at::Tensor& x, ElemDtype elem, ScaleCalculationMode mode,
                         int64_t axis, const std::optional<at::Tensor>& offs) {
  const Launch launch(x.device());
  const at::Tensor source = contiguous_values(x);
  const Rows rows = rows_around(source, axis, offs);
  const int64_t length = rows.view.length;
  const int64_t scale_rows =
      offs ? (length + (kMxBlock - 1) * offs->numel()) / kMxBlock : ceil_div(length, kMxBlock);
  std::vector<int64_t> scale_sizes = x.sizes().vec();
  scale_sizes[axis] = scale_rows;
  const MxCodes out{empty_on(x, x.sizes(), at::kByte), empty_on(x, scale_sizes, at::kByte)};
  cuda::MxOutputs outputs;
  outputs.codes = out.codes.mutable_data_ptr<uint8_t>();
  outputs.scale = out.scale.mutable_data_ptr<uint8_t>();
  cuda::MxArgs args = args_of(source, rows, elem, mode);
  launch_mx("quantize_mx", args, rows, outputs,
            rows.jagged ? scale_rows : rows.view.outer * scale_rows);
  return out;
}

at::Tensor cuda_fake_quantize_mx(const at::Tensor& x, ElemDtype elem, ScaleCalculationMode mode,
                                 int64_t axis, const std::optional<at::Tensor>& offs,
                                 at::ScalarType dtype) {
  const Launch launch(x.device());
  const at::Tensor source = contiguous_values(x);
  const Rows rows = rows_around(source, axis, offs);
  const at::Tensor out = empty_on(x, x.sizes(), dtype);
  cuda::MxOutputs outputs;
  outputs.values = out.mutable_data_ptr();
  cuda::MxArgs args = args_of(source, rows, elem, mode);
  args.values_type = float_type(dtype);
  launch_mx("fake_quantize_mx", args, rows, outputs, 0);
  return out;
}

Float8Codes cuda_quantize_float8(const at::Tensor& x, const Float8Granularity& granularity,
                                 ElemDtype elem, bool round_scales_to_power_of_2,
                                 const std::optional<at::Tensor>& offs) {
  const bool pow2 = round_scales_to_power_of_2;
  const Launch launch(x.device());
  const at::Tensor source = contiguous_values(x);
  if (granularity.kind == ScalingGranularity::TENSORWISE) {
    return quantize_tensor(source, elem, pow2);
  }
  const int64_t axis = check_axis("quantize_float8", x, granularity.axis);
  const Rows rows = rows_around(source, axis, offs);
  if (rows.along_columns()) {
    const int64_t columns = rows.view.length;
    const RowCodes found = quantize_rows(source, rows, columns, elem, pow2, false);
    std::vector<int64_t> scale_sizes = x.sizes().vec();
    scale_sizes[axis] = 1;
    return {found.codes.narrow(1, 0, columns).contiguous().view(x.sizes()),
            found.scale.view(scale_sizes)};
  }
  Float8Codes out = quantize_columns(source, rows, elem, pow2);
  if (!offs) {
    std::vector<int64_t> scale_sizes = x.sizes().vec();
    scale_sizes[axis] = 1;
    out.scale = out.scale.view(scale_sizes);
  }
  return out;
}

at::Tensor cuda_dequantize_rows(const at::Tensor& codes, const at::Tensor& scale, ElemDtype elem,
                                at::ScalarType dtype) {
  const Launch launch(codes.device());
  const at::Tensor scales = scale.contiguous();
  const bool has_one = scales.scalar_type() == at::kFloat;
  const at::Tensor out = empty_on(codes, codes.sizes(), dtype);
  const int64_t columns = codes.size(-1);
  const cuda::DecodeRowsArgs args{
      .codes = codes.const_data_ptr<uint8_t>(),
      .scale = has_one ? scales.const_data_ptr<float>() : nullptr,
      .block_scale = has_one ? nullptr : static_cast<const uint8_t*>(scales.const_data_ptr()),
      .rows = columns > 0 ? codes.numel() / columns : 0,
      .columns = columns,
      .elem = elem,
      .out = out.mutable_data_ptr(),
      .out_type = float_type(dtype)};
  check_launch("dequantize", cuda::launch_decode_rows(args, launch.stream));
  return out;
}

BlockedGroups cuda_blocked_m_groups(const at::Tensor& bytes, const at::Tensor& offs) {
  return blocked_groups(bytes, offs, /*of_rows=*/true);
}

BlockedGroups cuda_blocked_k_groups(const at::Tensor& bytes, const at::Tensor& offs) {
  return blocked_groups(bytes, offs, /*of_rows=*/false);
}

}  // namespace moe8
