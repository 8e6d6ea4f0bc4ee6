// SPDX-License-Identifier: BSD-3-Clause
// Whether a matrix product has a converted weight and an exact meaning in low precision; if so, the
// product. Every hook of src/convert/hooks/products.cpp asks here.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace moe8::hooks {

/// matmul(left, right) in low precision when one of the two is a converted weight. Nothing when
/// LibTorch is to compute it: because no converted weight is in it, because LibTorch would refuse
/// it, or because it has no meaning in low precision, which is noted (src/weights/usage.h).
///
/// The weight is usually the right operand; on the left it is computed as
/// matmul(right^T, left^T)^T. A weight's formats are those of its config also where the config is a
/// grouped one and the weight one expert's slice (a group of its own), or where the config is a
/// linear one and several weights were stacked.
///
/// @param op         as users call it, for notes
/// @param out_dtype  not set: that of the operands
std::optional<at::Tensor> try_matmul(const char* op, const at::Tensor& left,
                                     const at::Tensor& right,
                                     std::optional<at::ScalarType> out_dtype = {});

/// linear(x, weight, bias) when the weight is a converted one.
std::optional<at::Tensor> try_linear(const at::Tensor& x, const at::Tensor& weight,
                                     const std::optional<at::Tensor>& bias);

/// _grouped_mm.
std::optional<at::Tensor> try_grouped_mm(const at::Tensor& left, const at::Tensor& right,
                                         const std::optional<at::Tensor>& offs,
                                         const std::optional<at::Tensor>& bias,
                                         std::optional<at::ScalarType> out_dtype);

/// Notes that `op` has no low precision when `operand` is a converted weight, or was made of some.
void note_without_meaning(const char* op, const char* why, const at::Tensor& operand);

}  // namespace moe8::hooks
