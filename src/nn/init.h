// SPDX-License-Identifier: BSD-3-Clause
// What the layers share: their parameters before they have weights, and random initial weights that
// depend on the seed alone, not on threads, device or dtype.
#pragma once

#include <c10/core/ScalarType.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "moe8/parallel.h"

namespace moe8 {

constexpr double kInputStd = 0.02;  // of projections that read the residual stream

/// While it lives, modules that this thread makes have parameters of `dtype` with memory that nobody
/// has written: their init_weights() follows, or weights from elsewhere. Otherwise they begin in
/// float32, as those of LibTorch do. For a large model a first write costs more than the weights: the
/// system gives memory page by page.
class RoomForWeights {
 public:
  explicit RoomForWeights(at::ScalarType dtype);
  ~RoomForWeights();
  RoomForWeights(const RoomForWeights&) = delete;
  RoomForWeights& operator=(const RoomForWeights&) = delete;

 private:
  std::optional<at::ScalarType> before_;
};

/// For a parameter: float32 filled with `value`, or what RoomForWeights says.
at::Tensor new_parameter(at::IntArrayRef sizes, double value);

torch::nn::Linear linear_without_bias(int64_t in, int64_t out);

torch::nn::Linear linear_with_bias(int64_t in, int64_t out);

torch::nn::Embedding embedding(int64_t count, int64_t dim);

/// Of those that have one.
void zero_biases_(std::initializer_list<torch::nn::Linear*> linears);

/// While it lives, models that this thread makes get no random weights: others are copied into them
/// at once. What the parameters hold until then is not known.
class WithoutInit {
 public:
  WithoutInit();
  ~WithoutInit();
  WithoutInit(const WithoutInit&) = delete;
  WithoutInit& operator=(const WithoutInit&) = delete;
};

/// Fills `parameter` from a normal distribution with mean 0, cut off at 3 std. Takes one number from
/// `generator`; with it, every element follows from its position alone (Philox), so that all
/// threads of the CPU share the work. Made in float32, then rounded.
/// @param first  `parameter` holds the elements from here on of one that is filled as a whole
void trunc_normal_(at::Tensor& parameter, at::Generator& generator, double std, int64_t first = 0);

/// The same of a matrix of which each rank of a group holds an equal part of the rows, or columns.
void trunc_normal_rows_(at::Tensor& parameter, at::Generator& generator, double std,
                        const Group& group);
void trunc_normal_columns_(at::Tensor& parameter, at::Generator& generator, double std,
                           const Group& group);

/// As trunc_normal_ without the cut.
void normal_(at::Tensor& parameter, at::Generator& generator, double std);

}  // namespace moe8
