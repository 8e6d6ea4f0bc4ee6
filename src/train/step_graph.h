// SPDX-License-Identifier: BSD-3-Clause
// Forward and backward of a step as a CUDA graph: the host launches thousands of kernels once, and
// from then on one.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/StreamGuard.h>

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "device/cuda_graph.h"
#include "train/config/run_config.h"
#include "train/text_data.h"

namespace moe8 {

/// Work that leaves gradients, repeated by a graph as the same kernels in the same order: the same
/// bits. The graph holds the memory of a step for as long as it lives.
class StepGraph {
 public:
  /// Computes a step's loss, a scalar on the device, and leaves gradients in `holders`.
  using Work = std::function<at::Tensor(const std::vector<Batch>&)>;

  /// @param holders  the tensors whose grad() the work sets: undefined before each call
  explicit StepGraph(std::vector<at::Tensor> holders) : holders_(std::move(holders)) {}

  /// The work on these batches, of the same shapes in every call. The first call captures: the work
  /// must have run before, on the same stream, which is not the default one.
  at::Tensor run(const std::vector<Batch>& batches, const Work& work);

 private:
  void capture(const std::vector<Batch>& batches, const Work& work);

  std::vector<at::Tensor> holders_;
  std::vector<Batch> inputs_;      // what the graph reads
  std::vector<at::Tensor> grads_;  // of the holders, what it writes
  at::Tensor loss_;
  std::unique_ptr<CudaGraph> graph_;
};

/// Steps of this process that run before a graph is captured: they initialise what is made once, and
/// the first is followed by a look at which products ran in low precision.
inline constexpr int64_t kStepsBeforeGraph = 3;

/// What `mode` comes to. AUTO: where moe8's kernels compute (LibTorch's compositions ask the host)
/// and the memory of a step, which the graph keeps beside that of other steps, leaves half of the
/// GPU free. On a CPU never; the trainer refuses ON there.
/// @param step_bytes  what a step takes beyond what lies between steps
bool wants_graph(CudaGraphs mode, const c10::Device& device, int64_t step_bytes);

/// While it lives, work on a GPU goes to one stream that is not the default one, the same for all
/// runs of the process: a graph cannot be captured on the default stream.
class TrainingStream {
 public:
  explicit TrainingStream(const c10::Device& device);

 private:
  std::optional<c10::StreamGuard> guard_;
};

}  // namespace moe8
