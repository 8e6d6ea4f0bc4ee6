// SPDX-License-Identifier: BSD-3-Clause
#include "quantize/composite.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "formats/elem.h"

namespace moe8 {
namespace {

// float32 [256]: what each byte stands for.
template <typename Decode>
at::Tensor table(const at::Device& device, Decode decode_byte) {
  const at::Tensor values = at::empty({256}, at::kFloat);
  float* value = values.mutable_data_ptr<float>();
  for (uint32_t byte = 0; byte < 256; ++byte) value[byte] = decode_byte(byte);
  return values.to(device, /*non_blocking=*/true);
}

at::Tensor look_up(const at::Tensor& values, const at::Tensor& bytes) {
  return values.index_select(0, bytes.flatten().to(at::kInt)).view(bytes.sizes());
}

at::Tensor code_values(const at::Tensor& codes, ElemDtype elem) {
  const uint32_t mask = (1u << (elem == ElemDtype::E2M1   ? 4
                                : elem == ElemDtype::E2M3 ? 6
                                : elem == ElemDtype::E3M2 ? 6
                                                          : 8)) -
                        1;
  return look_up(table(codes.device(), [&](uint32_t byte) { return decode(byte & mask, elem); }),
                 codes);
}

at::Tensor scale_values(const at::Tensor& scale) {
  const auto value = [](uint32_t byte) {
    return byte == 255 ? std::numeric_limits<float>::quiet_NaN()
                       : std::ldexp(1.0f, static_cast<int>(byte) - 127);
  };
  return look_up(table(scale.device(), value), scale.contiguous().view(at::kByte));
}

// First rows of the groups: [E + 1], with the end of the last.
at::Tensor begins_of(const at::Tensor& offs) {
  return at::constant_pad_nd(offs.to(at::kLong), {1, 0});
}

// The scale row of every row of x, blocks starting afresh in each group. Rows past the last group
// get any.
at::Tensor block_of_rows(const at::Tensor& offs, int64_t rows) {
  const at::Tensor begins = begins_of(offs);
  const at::Tensor sizes = begins.slice(0, 1) - begins.slice(0, 0, -1);
  const at::Tensor blocks =
      at::constant_pad_nd((sizes + (kMxBlock - 1)).floor_divide(kMxBlock).cumsum(0), {1, 0});
  const at::Tensor group = group_of_rows(offs, rows);
  const at::Tensor row = at::arange(rows, offs.options().dtype(at::kLong));
  const at::Tensor in_group = row - begins.index_select(0, group);
  return blocks.index_select(0, group) + in_group.floor_divide(kMxBlock);
}

// 0 for rows past the last group, whatever their codes and scales.
at::Tensor zero_tail(const at::Tensor& values, const at::Tensor& offs) {
  const at::Tensor in_no_group = group_of_rows(offs, values.size(0)).eq(offs.numel());
  return values.masked_fill(in_no_group.unsqueeze(1), 0);
}

}  // namespace

at::Tensor group_of_rows(const at::Tensor& offs, int64_t rows) {
  const at::Tensor row = at::arange(rows, offs.options());
  return at::searchsorted(offs.contiguous(), row, /*out_int32=*/false, /*right=*/true);
}

at::Tensor composite_dequantize_mx(const MXTensor& x, const at::Tensor& codes,
                                   at::ScalarType dtype) {
  const at::Tensor scales = scale_values(x.scale);
  const int64_t length = codes.size(x.axis);
  if (x.offs) {
    if (x.scale.size(0) == 0) return at::zeros(codes.sizes(), codes.options().dtype(dtype));
    const at::Tensor row = block_of_rows(*x.offs, length).clamp_max(x.scale.size(0) - 1);
    const at::Tensor values = code_values(codes, x.elem) * scales.index_select(0, row);
    return zero_tail(values, *x.offs).to(dtype);
  }
  const at::Tensor each = scales.repeat_interleave(kMxBlock, x.axis).narrow(x.axis, 0, length);
  return (code_values(codes, x.elem) * each).to(dtype);
}

at::Tensor composite_dequantize_float8(const Float8Tensor& x, const at::Tensor& codes,
                                       at::ScalarType dtype) {
  const at::Tensor inverse = x.scale.reciprocal();
  if (!x.offs) return (code_values(codes, x.elem) * inverse).to(dtype);
  // One more group, for the rows of none.
  const at::Tensor by_group = at::constant_pad_nd(inverse, {0, 0, 0, 1});
  const at::Tensor each = by_group.index_select(0, group_of_rows(*x.offs, codes.size(0)));
  return zero_tail(code_values(codes, x.elem) * each, *x.offs).to(dtype);
}

}  // namespace moe8
