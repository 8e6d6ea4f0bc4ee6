// SPDX-License-Identifier: BSD-3-Clause
// What a plan knows of converted weights: their configs, dtypes, and what their products keep.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <unordered_map>

#include "moe8/quantize_model.h"
#include "train/config/run_config.h"

namespace moe8 {

/// Bytes of an element.
namespace bytes_of {
inline constexpr double kFloat = 4, kBf16 = 2, kLong = 8, kInt = 4;
}  // namespace bytes_of
inline double itemsize(at::ScalarType dtype) {
  return double(c10::elementSize(dtype));
}

/// What quantize_ would do to the model of `config`, without making it.
/// @throws c10::Error as quantize_.
ConversionReport plan_conversion(const RunConfig& config);

/// The dtype that a model with these weights computes with.
at::ScalarType dtype_of(Weights weights);

/// What the products of one converted weight keep, in bytes of an element; 0: the source itself.
struct KeptForms {
  double of_weight = 0;   // along its in-features and along its out-features
  double of_forward = 0;  // along its in-features alone
  double of_input = 0;    // for the gradient of the weight, instead of the input
};

/// The configs of the converted weights, and the dtypes that follow.
class PlannedConversion {
 public:
  PlannedConversion(const ConversionReport& report, const TrainingConfig& training);

  at::ScalarType dtype() const { return dtype_; }  // of the model
  double itemsize() const { return moe8::itemsize(dtype_); }
  bool is_on_gpu() const { return on_gpu_; }
  const Config* config(const std::string& fqn) const;
  /// Of the result of the product with this weight.
  at::ScalarType out_dtype(const std::string& fqn) const;
  /// w2 of the routed experts reads what w1 and w3 made.
  at::ScalarType input_dtype(const std::string& fqn) const;
  KeptForms forms(const std::string& fqn) const;
  bool have_one_config(const std::string& weight, const std::string& other) const;
  /// Whether this is a weight of experts whose layer is one function (src/experts/fused.cpp).
  bool is_of_fused_experts(const std::string& fqn) const;

 private:
  at::ScalarType dtype_;
  bool on_gpu_;
  std::unordered_map<std::string, Config> configs_;
};

}  // namespace moe8
