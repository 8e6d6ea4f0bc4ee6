// SPDX-License-Identifier: BSD-3-Clause
// Muon on one matrix or a stack of them, by LibTorch's products.
#pragma once

#include <ATen/core/Tensor.h>

namespace moe8 {

/// Brings the singular values of every matrix of x (..., rows, columns) to between 0.7 and 1.2:
/// X / |X|, then five times X = a X + (b A + c A^2) X with A = X X^T, in bf16.
/// @return float32
at::Tensor orthogonalized(const at::Tensor& x);

struct MuonItem {
  at::Tensor grad;
  at::Tensor weight;    // updated
  at::Tensor copy;      // bf16, receives the rounded weight; undefined: none
  at::Tensor momentum;  // updated
  double weight_decay;
};

/// The step of UpdateRule::MUON in moe8/optimizer.h, without a wait for the device.
/// @param learning_rate  a scalar
/// @param norm           of all gradients; undefined: no clipping. Not finite: nothing changes
void muon_step(const MuonItem& item, double momentum, double max_norm,
               const at::Tensor& learning_rate, const at::Tensor& norm);

}  // namespace moe8
