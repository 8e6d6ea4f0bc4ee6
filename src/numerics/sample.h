// SPDX-License-Identifier: BSD-3-Clause
// What of a product is looked at: parts of its operands and of its result, taken on its device and
// brought to the host together, so that a GPU is not waited for. What follows from them: measure.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "gemm/low_precision_gemm.h"
#include "numerics/sample_memory.h"
#include "numerics/take.h"

namespace moe8 {

/// How much is looked at; see NumericsOptions.
struct Sampling {
  int64_t values;
  int64_t results;
  int64_t experts;
  double phase;  // 0 <= phase < 1: shifts evenly spaced samples
};

/// Slices of an operand, whole along the contracted axis, so that they are quantized as it is.
struct OperandSample {
  at::Tensor x;
  int64_t axis = 0;                // contracted
  std::optional<at::Tensor> offs;  // of groups along axis 0; on the CPU
  at::Tensor magnitudes;           // the largest of each part of the whole operand, NaN beyond it
};

/// Some elements of a result, group by group, and what they follow from.
struct ResultSample {
  at::Tensor got{};             // OUT, GRAD_INPUT: [sum of rows, C]; GRAD_WEIGHT: [G, B, C]
  at::Tensor left{}, right{};   // OUT, GRAD_INPUT: [sum of rows, K], [G, C, K] or [G, K, C]
  std::vector<int64_t> rows{};  // of each of the G groups in `left` and `got`
  at::Tensor expected{};  // GRAD_WEIGHT: float64 [G, parts, B, C], to be summed over the parts
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
  /// Forgets the operands that it knows, and the memory of samples that it took.
  void release();

 private:
  /// By what is read of which memory; that may be gone, and others there.
  struct Known {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    std::vector<int64_t> sizes, strides;
    at::ScalarType dtype;
    uint32_t version;
    at::Tensor magnitudes;
  };
  struct Product;

  at::Tensor allot_part(Product& p, const at::Tensor& from, std::vector<Picks> axes);
  at::Tensor magnitudes_of(const at::Tensor& x);
  OperandSample take_rows(Product& p, const at::Tensor& operand);
  OperandSample take_weight(Product& p);
  ResultSample take_rows_of_groups(Product& p, const at::Tensor& result);
  ResultSample take_blocks_of_groups(Product& p, const at::Tensor& result);

  const Sampling sampling_;
  SampleMemory memory_;
  std::mutex mutex_;                              // guards the following
  std::unordered_map<const void*, Known> known_;  // by address: the last one there
};

}  // namespace moe8
