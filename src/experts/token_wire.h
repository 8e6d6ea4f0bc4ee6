// SPDX-License-Identifier: BSD-3-Clause
// Tokens as they travel: values, or codes with their scales.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <variant>

#include "moe8/config.h"
#include "operand/operand_format.h"

namespace moe8 {

/// A matrix by rows of bytes. Codes and scales of a row depend on that row alone.
struct EncodedRows {
  at::Tensor data;   // uint8 [rows, bytes]: codes, or the values
  at::Tensor scale;  // uint8 [rows, bytes of the scales]; undefined for values
};

/// What travels: the input of a product in forward, or the gradient of its output in backward.
enum class RowsOf { INPUT, GRAD_OUTPUT };

/// Which values rows of one width and dtype stand for on the other side, and in which bytes.
class RowCode {
 public:
  /// The values themselves.
  RowCode(int64_t columns, at::ScalarType dtype) : columns_(columns), dtype_(dtype) {}
  /// The codes that a product with this config makes along rows; refusal() must take it.
  RowCode(int64_t columns, at::ScalarType dtype, const Config& config, RowsOf which);

  /// Why rows of a product with this config cannot travel as codes; nothing when they can.
  static std::optional<std::string> refusal(const Config& config, RowsOf which);

  EncodedRows encode(const at::Tensor& x) const;
  at::Tensor decode(const EncodedRows& rows) const;
  int64_t scale_bytes() const;  // of a row; 0 for values
  bool is_values() const { return std::holds_alternative<HighPrecision>(format_); }
  const OperandFormat& format() const { return format_; }

 private:
  int64_t columns_;
  at::ScalarType dtype_;
  OperandFormat format_ = HighPrecision{};
};

/// Rows as they came.
struct TokenCodes {
  RowCode code;
  EncodedRows rows;

  at::Tensor values() const { return code.decode(rows); }
};

}  // namespace moe8
