// SPDX-License-Identifier: BSD-3-Clause
#include "quantize/packing.h"

#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_left_shift.h>
#include <ATen/ops/bitwise_or.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/stack.h>

namespace moe8 {
namespace {

at::ScalarType storage_dtype(ElemDtype elem) {
  switch (elem) {
    case ElemDtype::E4M3:
      return at::kFloat8_e4m3fn;
    case ElemDtype::E5M2:
      return at::kFloat8_e5m2;
    case ElemDtype::E2M1:
      return at::kFloat4_e2m1fn_x2;
    case ElemDtype::E2M3:
    case ElemDtype::E3M2:
      break;
  }
  return at::kByte;  // LibTorch has no dtype for six bits
}

}  // namespace

at::Tensor pack_codes(const at::Tensor& codes, ElemDtype elem) {
  if (elem != ElemDtype::E2M1) return codes.view(storage_dtype(elem));
  const at::Tensor even = codes.size(-1) % 2 == 0 ? codes : at::constant_pad_nd(codes, {0, 1});
  const at::Tensor low = even.slice(-1, 0, std::nullopt, 2);
  const at::Tensor high = even.slice(-1, 1, std::nullopt, 2);
  return at::bitwise_or(low, at::bitwise_left_shift(high, 4)).view(storage_dtype(elem));
}

at::Tensor unpack_codes(const at::Tensor& data, ElemDtype elem, at::IntArrayRef sizes) {
  const at::Tensor bytes = data.contiguous().view(at::kByte);
  if (elem != ElemDtype::E2M1) return bytes;
  const at::Tensor low = at::bitwise_and(bytes, 0x0F);
  const at::Tensor high = at::bitwise_right_shift(bytes, 4);
  return at::stack({low, high}, -1).flatten(-2).slice(-1, 0, sizes.back()).contiguous();
}

}  // namespace moe8
