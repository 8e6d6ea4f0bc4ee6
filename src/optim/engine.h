// SPDX-License-Identifier: BSD-3-Clause
// Who computes an optimizer's passes on a device. Which one: make_optim_engine.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/adamw.h"
#include "optim/muon.h"

namespace moe8 {

/// A tensor that AdamW steps. All are contiguous, on one device.
struct AdamWItem {
  size_t index;  // of its clock; decides the random bits as well
  at::Tensor grad;
  at::Tensor weight;
  at::Tensor copy;  // bf16, receives the rounded weight; undefined: none
  at::Tensor first, second;
  double weight_decay;
};

class OptimEngine {
 public:
  virtual ~OptimEngine() = default;

  /// The norm of all: a float32 scalar.
  virtual at::Tensor norm(const std::vector<at::Tensor>& grads) { return norm_of(squares(grads)); }
  /// Its two halves, for gradients that several processes share out: the sums of squares of
  /// runs of kNormChunk elements, float32, gradient by gradient; then the norm of such sums.
  virtual at::Tensor squares(const std::vector<at::Tensor>& grads) = 0;
  virtual at::Tensor norm_of(const at::Tensor& squares) = 0;
  /// out[i] = a[i] + b[i] in float32; out[i] may be a[i].
  virtual void add(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b,
                   const std::vector<at::Tensor>& out) = 0;
  virtual void set_learning_rate(double learning_rate) = 0;
  /// @param norm  of clip_gradients(); undefined: no clipping
  virtual void adamw(const AdamWRule& rule, const std::vector<AdamWItem>& items,
                     const at::Tensor& norm) = 0;
  /// directions[i] (bf16, contiguous, the shape of items[i].weight) = clip g + momentum u, with
  /// u = momentum u + clip g kept in items[i].momentum. Where the norm is not finite no momentum
  /// changes, and directions are numbers. @param norm  as of adamw()
  virtual void muon_directions(const MuonRule& rule, const std::vector<MuonItem>& items,
                               const std::vector<at::Tensor>& directions,
                               const at::Tensor& norm) = 0;
  /// weight = (1 - lr weight_decay) weight - lr 0.2 sqrt(max(rows, columns)) directions[i].
  virtual void muon_weights(const std::vector<MuonItem>& items,
                            const std::vector<at::Tensor>& directions, const at::Tensor& norm) = 0;
  /// Of every parameter. Waits for the device.
  virtual std::vector<AdamWClock> clocks() const = 0;
  virtual void set_clocks(const std::vector<AdamWClock>& clocks) = 0;
};

std::unique_ptr<OptimEngine> make_optim_engine(const c10::Device& device, size_t parameters);

std::unique_ptr<OptimEngine> make_cpu_optim_engine(size_t parameters);
std::unique_ptr<OptimEngine> make_composite_optim_engine(size_t parameters);
/// In a build without CUDA never called.
std::unique_ptr<OptimEngine> make_cuda_optim_engine(const c10::Device& device, size_t parameters);

}  // namespace moe8
