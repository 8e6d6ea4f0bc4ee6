// SPDX-License-Identifier: BSD-3-Clause
// One input of several products, as of queries, keys and values: quantized once for all of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "operand/operand.h"

namespace moe8 {

/// While it lives, products of linear layers on this thread whose input is x share the forms that
/// are made of it, and what they save of it for backward is one tensor. Their results are the same
/// bits as without. The innermost one counts.
class SharedInput {
 public:
  /// @param x  must not be written to while this lives
  explicit SharedInput(at::Tensor x);
  ~SharedInput();
  SharedInput(const SharedInput&) = delete;
  SharedInput& operator=(const SharedInput&) = delete;

 private:
  friend std::shared_ptr<FormStore> input_forms(const at::Tensor& A);

  bool is_of(const at::Tensor& A) const;

  at::Tensor x_;
  std::shared_ptr<FormStore> forms_;
  SharedInput* outer_;
};

/// Where the forms of a product's input A [M, K] belong: with those of the SharedInput that A is,
/// as it is or as rows of a matrix, else in a store of its own.
std::shared_ptr<FormStore> input_forms(const at::Tensor& A);

}  // namespace moe8
