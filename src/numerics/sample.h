// SPDX-License-Identifier: BSD-3-Clause
// What of a product is looked at: parts of its operands and of its result, taken on its device and
// brought to the host together, so that a GPU is not waited for. What follows from them: measure.h.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gemm/low_precision_gemm.h"

namespace moe8 {

/// How much is looked at; see NumericsOptions.
struct Sampling {
  int64_t values;
  int64_t results;
  int64_t experts;
  double phase;  // 0 <= phase < 1: shifts evenly spaced samples
};

/// A group of rows of which a part is looked at.
struct SampledGroup {
  int64_t index;
  int64_t begin;  // rows
  int64_t size;
};

/// Slices of an operand, whole along the contracted axis, so that they are quantized as it is.
struct OperandSample {
  at::Tensor x;
  int64_t axis = 0;                // contracted
  std::optional<at::Tensor> offs;  // of groups along axis 0; on the CPU
  at::Tensor range[2];             // least and largest value of the whole operand
};

/// Some elements of a result, group by group, and what they follow from.
struct ResultSample {
  at::Tensor got{};             // OUT, GRAD_INPUT: [sum of rows, C]; GRAD_WEIGHT: [G, B, C]
  at::Tensor left{}, right{};   // OUT, GRAD_INPUT: [sum of rows, K], [G, C, K] or [G, K, C]
  std::vector<int64_t> rows{};  // of each of the G groups in `left` and `got`
  at::Tensor expected{};        // GRAD_WEIGHT: float64 [G, B, C]
};

struct ProductSample {
  Gemm gemm{};
  GemmFormats formats{};
  std::vector<int64_t> tokens{};  // rows of each group; empty when offs are not set
  bool is_empty = true;           // there was nothing to look at: all below is undefined
  OperandSample left{}, right{};
  ResultSample result{};

  /// Those that are defined and on a device.
  std::vector<at::Tensor*> tensors();
};

/// Takes samples. Keeps what products share while it lives, operands among it. Safe for several
/// threads.
class Sampler {
 public:
  explicit Sampler(Sampling sampling) : sampling_(sampling) {}

  /// Waits for the device once per set of offs. The samples stay on the device.
  /// @param problem  with operands that have their source.
  /// @param result   what the kernel left.
  ProductSample take(const GemmProblem& problem, const at::Tensor& result);
  /// Forgets the operands that it knows.
  void release();

 private:
  struct Known {
    at::Tensor operand;  // keeps its memory from being used again
    uint32_t version;
    at::Tensor least, most;
  };

  at::Tensor index(const std::vector<int64_t>& indices, const at::Device& device);
  at::Tensor take_along(const at::Tensor& x, int64_t axis, const std::vector<int64_t>& indices);
  void measure_range(const at::Tensor& x, OperandSample& sample);
  OperandSample take_rows(Gemm gemm, const at::Tensor& operand, int64_t rows,
                          const std::optional<at::Tensor>& offs);
  OperandSample take_weight(Gemm gemm, const at::Tensor& weight);
  struct Product;
  ResultSample take_rows_of_groups(const Product& p, const at::Tensor& result);
  ResultSample take_blocks_of_groups(Product p, const at::Tensor& result);

  const Sampling sampling_;
  std::mutex mutex_;  // guards the following
  std::map<std::pair<std::string, std::vector<int64_t>>, at::Tensor> indices_;  // by device
  std::vector<Known> known_;                                                    // the last ones
};

/// The way of samples to the host.
class HostCopy {
 public:
  /// Launches the copies; the tensors are then those on the host, to be read after wait().
  explicit HostCopy(const std::vector<at::Tensor*>& tensors);
  void wait() const;

 private:
  std::vector<at::Tensor> pinned_;
  std::vector<c10::Event> ready_;
};

/// `count` indices below `size`, evenly spaced; all of them when there are no more.
std::vector<int64_t> spaced(int64_t size, int64_t count, double phase);

}  // namespace moe8
