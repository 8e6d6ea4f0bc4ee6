// SPDX-License-Identifier: BSD-3-Clause
// What a quantizer makes, before it is dressed as an MXTensor or a Float8Tensor.
#pragma once

#include <ATen/core/Tensor.h>

namespace moe8 {

struct MxCodes {
  at::Tensor codes;  // uint8, shape of x, one code a byte
  at::Tensor scale;  // uint8, shape as MXTensor::scale
};

struct Float8Codes {
  at::Tensor codes;  // uint8, shape of x, contiguous
  at::Tensor scale;  // float32, shape as Float8Tensor::scale
};

}  // namespace moe8
