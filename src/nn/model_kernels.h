// SPDX-License-Identifier: BSD-3-Clause
// The kernels of src/cuda/nn/ on tensors, below autograd. What they compute is said there; in a
// build without CUDA none is ever called. Arguments are checked by the callers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <initializer_list>

#include "moe8/model_ops.h"

namespace moe8 {

/// True where the kernels take tensors of this device and dtype. Undefined tensors do not count.
bool model_kernels_take(std::initializer_list<at::Tensor> tensors);

/// @param q, k  [B, S, H, D]; k may be undefined
RotatedHeads cuda_rotary(const at::Tensor& q, const at::Tensor& k, const at::Tensor& freqs,
                         RotaryPairs pairs, bool inverse);

struct NormResults {
  at::Tensor sum;  // undefined without y
  at::Tensor normed;
  at::Tensor rstd;  // float32 [rows]
};
NormResults cuda_rms_norm(const at::Tensor& x, const at::Tensor& y, const at::Tensor& weight,
                          double eps);
struct NormGradients {
  at::Tensor x, weight;
};
/// @param grad_sum  undefined: there is none
NormGradients cuda_rms_norm_backward(const at::Tensor& h, const at::Tensor& weight,
                                     const at::Tensor& rstd, const at::Tensor& grad,
                                     const at::Tensor& grad_sum);

at::Tensor cuda_gate(const at::Tensor& gate, const at::Tensor& up);
struct GateGradients {
  at::Tensor gate, up;
};
GateGradients cuda_gate_backward(const at::Tensor& gate, const at::Tensor& up,
                                 const at::Tensor& grad);

struct LossResults {
  at::Tensor loss, lse, divisor;  // float32: scalar, [N], scalar
};
/// @param logits   [N, V] contiguous
/// @param divisor  of the sum of the rows' losses; undefined: how many take part
LossResults cuda_cross_entropy(const at::Tensor& logits, const at::Tensor& targets,
                               int64_t ignore_index, const at::Tensor& divisor);
/// @param grad  where the gradient goes; may be `logits`
void cuda_cross_entropy_backward(const at::Tensor& logits, const at::Tensor& targets,
                                 int64_t ignore_index, const LossResults& forward,
                                 const at::Tensor& grad_loss, const at::Tensor& grad);

}  // namespace moe8
