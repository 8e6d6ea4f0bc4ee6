// SPDX-License-Identifier: BSD-3-Clause
// Arguments of CUDA quantizers, filled in from tensors: for the public quantizers and for the forms
// of operands. Only for files built with CUDA.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/experts/transpose_codes.h"
#include "cuda/quantize/float8.h"
#include "cuda/quantize/mx.h"
#include "quantize/check_input.h"

namespace moe8 {

/// Arguments of a launch of FP8 kernels without its outputs.
/// @param x  contiguous, taken as [groups.rows, columns]
template <class Args>
Args float8_args(const at::Tensor& x, int64_t columns, const cuda::RowGroups& groups,
                 ElemDtype elem, bool round_scales_to_power_of_2) {
  Args args{};
  static_cast<cuda::Float8Source&>(args) = {
      x.const_data_ptr(),        float_type(x.scalar_type()), columns, groups, elem,
      round_scales_to_power_of_2};
  return args;
}

/// The same of the MX kernel.
inline cuda::MxArgs mx_args(const at::Tensor& x, int64_t columns, const cuda::RowGroups& groups,
                            ElemDtype elem, ScaleCalculationMode mode) {
  cuda::MxArgs args{};
  args.x = x.const_data_ptr();
  args.x_type = float_type(x.scalar_type());
  args.columns = columns;
  args.groups = groups;
  args.elem = elem;
  args.mode = mode;
  return args;
}

/// Starts to make codes along columns of codes along rows.
/// @param codes, inverse_scale  uint8 and float32, in the layout of TransposeCodesArgs
inline cuda::LaunchStatus transpose_codes(const cuda::RowCodes& in, const uint32_t* column_amax,
                                          const at::Tensor& codes, const at::Tensor& inverse_scale,
                                          cudaStream_t stream) {
  return cuda::launch_transpose_codes({.in = in,
                                       .column_amax = column_amax,
                                       .codes = codes.mutable_data_ptr<uint8_t>(),
                                       .inverse_scale = inverse_scale.mutable_data_ptr<float>()},
                                      stream);
}

/// The bits of largest magnitudes, kept as int32 on LibTorch's side.
inline uint32_t* amax_bits(const at::Tensor& amax) {
  return reinterpret_cast<uint32_t*>(amax.mutable_data_ptr<int32_t>());
}

}  // namespace moe8
