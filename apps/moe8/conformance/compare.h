// SPDX-License-Identifier: BSD-3-Clause
// How results are held against a case: bit for bit, or by signal-to-quantization-noise ratio.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace moe8 {

/// What came out of one case.
struct Outcome {
  bool passed = false;
  std::string measured;  // "0 of 3072 differ", or the message of an error
  std::string bar;       // "bit for bit"
};

/// Every element the same bits. One NaN equals any other: its sign and payload carry no meaning.
class ExactCheck {
 public:
  /// `expected` may be the bytes (uint8) of a one-byte dtype.
  /// @throws c10::Error when shapes or dtypes differ.
  void add(const std::string& name, const at::Tensor& result, at::Tensor expected);
  Outcome outcome() const;

 private:
  int64_t compared_ = 0;
  int64_t different_ = 0;
  std::string first_;  // where the first difference is
};

/// Every tensor within kSqnrBar of the expected one.
class AccuracyCheck {
 public:
  /// @throws c10::Error when shapes differ.
  void add(const std::string& name, const at::Tensor& got, const at::Tensor& expected);
  Outcome outcome() const;

 private:
  bool passed_ = true;
  std::string measured_;
};

inline constexpr double kSqnrBar = 40;  // dB; only summation order and output rounding may differ

/// 20 log10(|expected| / |expected - got|) in double; +inf when equal. NaN and Inf must stand in
/// the same places (then they count for nothing), else -inf.
double sqnr_db(const at::Tensor& got, const at::Tensor& expected);

}  // namespace moe8
