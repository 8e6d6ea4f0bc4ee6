// SPDX-License-Identifier: BSD-3-Clause
#include "quantize/composite.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/div.h>
#include <ATen/ops/full.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <bit>
#include <tuple>

#include "formats/elem.h"
#include "formats/float8_scale.h"
#include "groups/padded_tokens.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

constexpr int kInf = 0x7F800000;  // bits of float32 numbers
constexpr int kNaN = 0x7FC00000;
constexpr int kMagnitude = 0x7FFFFFFF;
constexpr int kMantissa = 0x7FFFFF;

int bits_of(float x) {
  return std::bit_cast<int>(x);
}
at::Tensor bits_of(const at::Tensor& x) {
  return x.view(at::kInt);
}
at::Tensor number(const at::Tensor& bits) {
  return bits.view(at::kFloat);
}

at::Tensor in_float32(const at::Tensor& x) {
  return x.detach().to(at::kFloat).contiguous();
}

at::Tensor magnitude_bits(const at::Tensor& x) {
  return bits_of(x).bitwise_and(kMagnitude);
}

// ---- elements ---------------------------------------------------------------
// encode() of formats/elem.h: uint8 codes of float32 numbers.
at::Tensor encode_numbers(const at::Tensor& x, ElemDtype elem) {
  const ElemLayout f = layout_of(elem);
  const int drop = 23 - f.mantissa_bits;  // mantissa bits that do not fit
  const at::Tensor magnitude = magnitude_bits(x);
  const at::Tensor clamped = magnitude.clamp_max(bits_of(f.max));

  const at::Tensor odd = clamped.bitwise_right_shift(drop).bitwise_and_(1);
  const at::Tensor normal = odd.add_(clamped)
                                .add_((1 << (drop - 1)) - 1)
                                .bitwise_right_shift_(drop)
                                .sub_((127 - f.bias) << f.mantissa_bits);
  const float adder = exp2_exact(f.min_exponent() - f.mantissa_bits + 23);
  const at::Tensor subnormal = bits_of(number(clamped).add(adder)).sub_(bits_of(adder));
  const at::Tensor sign = bits_of(x).bitwise_right_shift(32 - f.bits());
  const at::Tensor code =
      at::where(clamped.lt(bits_of(exp2_exact(f.min_exponent()))), subnormal, normal)
          .bitwise_or_(sign.bitwise_and(1 << (f.bits() - 1)));
  return code.masked_fill_(magnitude.gt(kInf), f.nan_cast).to(at::kByte);
}

// decode() of formats/elem.h: float32 numbers of uint8 codes.
at::Tensor decode_codes(const at::Tensor& codes, ElemDtype elem) {
  const ElemLayout f = layout_of(elem);
  const int sign = 1 << (f.bits() - 1);
  const at::Tensor code = codes.to(at::kInt);
  const at::Tensor magnitude = code.bitwise_and(sign - 1);
  const at::Tensor normal =
      magnitude.bitwise_left_shift(23 - f.mantissa_bits).add_((127 - f.bias) << 23);
  const at::Tensor subnormal =
      magnitude.to(at::kFloat).mul_(exp2_exact(f.min_exponent() - f.mantissa_bits));
  at::Tensor bits = at::where(magnitude.lt(1 << f.mantissa_bits), bits_of(subnormal), normal);
  if (elem == ElemDtype::E5M2) {
    bits = bits.masked_fill_(magnitude.eq(0x7C), kInf).masked_fill_(magnitude.gt(0x7C), kNaN);
  } else if (elem == ElemDtype::E4M3) {
    bits = bits.masked_fill_(magnitude.eq(f.nan_cast), kNaN);
  }
  const at::Tensor sign_bits = code.bitwise_and(sign).bitwise_left_shift_(32 - f.bits());
  return number(bits.bitwise_or_(sign_bits));
}

// ---- MX scales --------------------------------------------------------------
// mx_scale() of formats/e8m0.h: int32 scale bytes of the bits of the blocks' largest magnitudes.
at::Tensor mx_scales(const at::Tensor& amax, ElemDtype elem, ScaleCalculationMode mode) {
  const ElemLayout f = layout_of(elem);
  at::Tensor bits = amax.clamp_max(kInf);  // NaN counts as Inf: both give 255
  if (mode == ScaleCalculationMode::EVEN) bits = bits.add_(1 << (22 - f.mantissa_bits));
  at::Tensor scale;
  if (mode == ScaleCalculationMode::RCEIL) {
    const at::Tensor d = bits_of(number(bits).mul(1.0f / f.max));
    const at::Tensor exponent = d.bitwise_right_shift(23);
    const at::Tensor threshold = exponent.eq(0).to(at::kInt).mul_(0x400000);
    scale = exponent.add(d.bitwise_and(kMantissa).gt(threshold));
  } else {
    scale = bits.bitwise_right_shift(23);
    if (mode == ScaleCalculationMode::CEIL) scale.add_(bits.bitwise_and(kMantissa).ne(0));
    scale = scale.sub_(f.max_exponent).clamp_min_(0);
  }
  return scale.masked_fill_(bits.ge(kInf), 255);
}

// 2^(s - 127) of int32 scale bytes; NaN for 255.
at::Tensor scale_values(const at::Tensor& s) {
  const at::Tensor bits = s.bitwise_left_shift(23);  // the exponent field is right for 1 to 254
  return number(bits.masked_fill_(s.eq(0), 0x00400000).masked_fill_(s.eq(255), kNaN));
}

// 2^(127 - s), what the source is multiplied by.
at::Tensor scale_inverses(const at::Tensor& s) {
  return scale_values(s.neg().add_(254).masked_fill_(s.eq(255), 255));
}

// ---- MX blocks --------------------------------------------------------------
// x [outer, length, inner] in blocks along the middle: [outer, blocks, 32, inner], filled with
// zeros.
at::Tensor blocks_of(const at::Tensor& x, const AxisView& view) {
  const int64_t blocks = (view.length + kMxBlock - 1) / kMxBlock;
  const at::Tensor filled = at::constant_pad_nd(x.view({view.outer, view.length, view.inner}),
                                                {0, 0, 0, blocks * kMxBlock - view.length});
  return filled.view({view.outer, blocks, kMxBlock, view.inner});
}

// Codes [outer, blocks, 32, inner] and scales [outer, blocks, inner].
MxCodes quantize_blocks(const at::Tensor& blocks, ElemDtype elem, ScaleCalculationMode mode) {
  const at::Tensor scale = mx_scales(magnitude_bits(blocks).amax(2), elem, mode);
  const at::Tensor codes = encode_numbers(blocks.mul(scale_inverses(scale).unsqueeze(2)), elem);
  return {codes, scale.to(at::kByte)};
}

// Blocks start afresh in each group of rows.
PaddedTokens tokens_in_blocks(const at::Tensor& offs, int64_t rows) {
  return pad_tokens(offs, rows, kMxBlock, padded_row_bound(rows, offs.numel(), kMxBlock));
}

MxCodes quantize_groups(const at::Tensor& x, ElemDtype elem, ScaleCalculationMode mode,
                        const at::Tensor& offs) {
  const int64_t rows = x.size(0), columns = x.size(1);
  if (offs.numel() == 0) {
    const auto bytes = x.options().dtype(at::kByte);
    return {at::zeros(x.sizes(), bytes), at::zeros({rows / kMxBlock, columns}, bytes)};
  }
  const PaddedTokens tokens = tokens_in_blocks(offs, rows);
  const at::Tensor padded = to_padded(in_float32(x), tokens);
  const int64_t blocks = padded.size(0) / kMxBlock;
  const MxCodes made = quantize_blocks(padded.view({1, blocks, kMxBlock, columns}), elem, mode);
  return {from_padded(made.codes.view(padded.sizes()), tokens), made.scale.squeeze(0)};
}

// ---- Float8 scales ----------------------------------------------------------
// float8_scale() of formats/float8_scale.h, from the bits of largest magnitudes.
at::Tensor float8_scales(const at::Tensor& amax, ElemDtype elem, bool pow2) {
  const at::Tensor floored = number(amax).to(at::kDouble).clamp_min_(kFloat8AmaxFloor);
  const at::Tensor largest = at::full({}, layout_of(elem).max, floored.options());
  const at::Tensor bits = bits_of(at::div(largest, floored).to(at::kFloat));
  if (pow2) bits.bitwise_and_(kInf);
  return number(bits.masked_fill_(amax.gt(kInf), kNaN));
}

// [E, C] the largest bits in each group and column of bits [M, C]; 0 where there are none.
at::Tensor group_maxima(const at::Tensor& bits, const at::Tensor& offs) {
  const int64_t groups = offs.numel(), rows = bits.size(0), columns = bits.size(1);
  const int64_t blocks = padded_row_bound(rows, groups, kMxBlock) / kMxBlock;
  if (groups == 0 || rows == 0) return at::zeros({groups, columns}, bits.options());
  const PaddedTokens tokens = tokens_in_blocks(offs, rows);
  const at::Tensor of_blocks = to_padded(bits, tokens).view({blocks, kMxBlock, columns}).amax(1);
  // The number of its group above a block's bits: so the largest so far is of the group at hand.
  const at::Tensor block_ends = tokens.ends.div(kMxBlock, "floor").to(at::kInt);
  const at::Tensor group = group_of_rows(block_ends, blocks).bitwise_left_shift(32).unsqueeze(1);
  const at::Tensor so_far = std::get<0>(of_blocks.to(at::kLong).bitwise_or_(group).cummax(0));
  const at::Tensor last = block_ends.sub(1).clamp_min_(0);
  const at::Tensor is_empty = block_ends.eq(at::constant_pad_nd(block_ends, {1, -1})).unsqueeze(1);
  return so_far.index_select(0, last).to(at::kInt).masked_fill_(is_empty, 0);
}

// One row of `values` [E, C] for each of `rows` rows; zeros in rows of no group.
at::Tensor for_each_row(const at::Tensor& values, const at::Tensor& offs, int64_t rows) {
  return at::constant_pad_nd(values, {0, 0, 0, 1}).index_select(0, group_of_rows(offs, rows));
}

// 0 in the rows of no group, whatever they hold.
at::Tensor zero_tail(const at::Tensor& values, const at::Tensor& offs) {
  const at::Tensor in_no_group = group_of_rows(offs, values.size(0)).eq(offs.numel());
  return values.masked_fill(in_no_group.unsqueeze(1), 0);
}

// The largest bits of each set that shares a scale, and 1 along the axis that is reduced.
at::Tensor set_maxima(const at::Tensor& bits, const Float8Granularity& granularity) {
  if (granularity.kind == ScalingGranularity::TENSORWISE) {
    return bits.numel() == 0 ? at::zeros({}, bits.options()) : bits.amax();
  }
  const int64_t axis = check_axis("quantize_float8", bits, granularity.axis);
  if (bits.size(axis) > 0) return bits.amax(axis, /*keepdim=*/true);
  std::vector<int64_t> sizes = bits.sizes().vec();
  sizes[axis] = 1;
  return at::zeros(sizes, bits.options());
}

}  // namespace

MxCodes composite_quantize_mx(const at::Tensor& x, ElemDtype elem, ScaleCalculationMode mode,
                              int64_t axis, const std::optional<at::Tensor>& offs) {
  if (offs) return quantize_groups(x, elem, mode, *offs);
  const AxisView view = view_around(x.sizes(), axis);
  const MxCodes made = quantize_blocks(blocks_of(in_float32(x), view), elem, mode);
  const at::Tensor codes = made.codes.view({view.outer, made.scale.size(1) * kMxBlock, view.inner})
                               .narrow(1, 0, view.length)
                               .contiguous();
  std::vector<int64_t> scale_sizes = x.sizes().vec();
  scale_sizes[axis] = made.scale.size(1);
  return {codes.view(x.sizes()), made.scale.view(scale_sizes)};
}

Float8Codes composite_quantize_float8(const at::Tensor& x, const Float8Granularity& granularity,
                                      ElemDtype elem, bool round_scales_to_power_of_2,
                                      const std::optional<at::Tensor>& offs) {
  const at::Tensor source = in_float32(x);
  const at::Tensor magnitudes = magnitude_bits(source);
  const at::Tensor amax =
      offs ? group_maxima(magnitudes, *offs) : set_maxima(magnitudes, granularity);
  const at::Tensor scale = float8_scales(amax, elem, round_scales_to_power_of_2);
  if (!offs) return {encode_numbers(source.mul(scale), elem), scale};
  const at::Tensor each = for_each_row(scale, *offs, x.size(0));
  return {zero_tail(encode_numbers(source.mul(each), elem), *offs), scale};
}

at::Tensor composite_dequantize_mx(const MXTensor& x, const at::Tensor& codes,
                                   at::ScalarType dtype) {
  const at::Tensor scales = scale_values(x.scale.contiguous().view(at::kByte).to(at::kInt));
  const at::Tensor numbers = decode_codes(codes, x.elem);
  const int64_t length = codes.size(x.axis);
  if (x.offs) {
    if (x.offs->numel() == 0 || x.scale.size(0) == 0)
      return at::zeros(codes.sizes(), codes.options().dtype(dtype));
    const at::Tensor block = tokens_in_blocks(*x.offs, length).position.div(kMxBlock, "floor");
    return zero_tail(numbers.mul(scales.index_select(0, block)), *x.offs).to(dtype);
  }
  const at::Tensor each = scales.repeat_interleave(kMxBlock, x.axis).narrow(x.axis, 0, length);
  return numbers.mul(each).to(dtype);
}

at::Tensor composite_dequantize_float8(const Float8Tensor& x, const at::Tensor& codes,
                                       at::ScalarType dtype) {
  const at::Tensor inverse = x.scale.reciprocal();
  const at::Tensor numbers = decode_codes(codes, x.elem);
  if (!x.offs) return numbers.mul(inverse).to(dtype);
  const at::Tensor each = for_each_row(inverse, *x.offs, codes.size(0));
  return zero_tail(numbers.mul(each), *x.offs).to(dtype);
}

}  // namespace moe8
