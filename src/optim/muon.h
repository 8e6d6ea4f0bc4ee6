// SPDX-License-Identifier: BSD-3-Clause
// Muon over all of its parameters: an engine goes over their elements, LibTorch's products run once
// for all matrices of one shape.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/muon.h"

namespace moe8 {

class OptimEngine;

/// A tensor that Muon steps: a matrix or a stack of them. All are contiguous, on one device.
struct MuonItem {
  at::Tensor grad;
  at::Tensor weight;    // updated
  at::Tensor copy;      // bf16, receives the rounded weight; undefined: none
  at::Tensor momentum;  // updated
  double weight_decay;
};

/// What the learning rate of a weight is multiplied by: 0.2 sqrt(max(rows, columns)).
double muon_scale(const at::Tensor& weight);

/// Brings the singular values of every matrix of x (..., rows, columns) to between 0.7 and 1.2:
/// X / |X|, then five times X = a X + (b A + c A^2) X with A = X X^T, in bf16; the smaller side is
/// squared.
/// @return bf16, contiguous
at::Tensor orthogonalized(const at::Tensor& x);

/// The step of UpdateRule::MUON in moe8/optimizer.h, without a wait for the device. Takes room for
/// the directions of 2^27 elements at a time in bf16, or of the largest tensor, twice over.
/// @param norm  of all gradients; undefined: no clipping. Not finite: nothing changes
void muon_step(OptimEngine& engine, const MuonRule& rule, const std::vector<MuonItem>& items,
               const at::Tensor& norm);

}  // namespace moe8
