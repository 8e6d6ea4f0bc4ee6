// SPDX-License-Identifier: BSD-3-Clause
// An operand of a GEMM: a tensor, and the low-precision forms of it that kernels read. Forms are
// made when first asked for, those that share a pass over the tensor together, and are kept as long
// as the operand is.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "groups/token_groups.h"
#include "operand/operand_format.h"

namespace moe8 {

/// How a kernel reads an operand: as the values that its codes stand for, or as FP8 codes.
enum class Encoding { BF16, FLOAT32, FLOAT8 };
/// The dtype of a form's data.
at::ScalarType dtype_of(Encoding encoding);

/// Which form: quantized along the contracted `axis`. Along axis 0 of a matrix the contraction is
/// over the tokens of each group.
struct FormKey {
  OperandFormat format;
  int64_t axis;
  Encoding encoding;
  /// Of a weight's codes along axis 1: they may be made from those along axis 2, of the same format.
  bool from_row_codes = false;
  bool operator==(const FormKey&) const = default;
};

struct Form {
  FormKey key;
  at::Tensor data;  // BF16, FLOAT32: contiguous, shape of the source. FLOAT8: see cuda_forms.h
  at::Tensor decode_scale;  // FLOAT8 only: multiplies codes, and so products of them
};

/// Forms of one tensor. Several operands may share a store when they stand for the same tensor with
/// the same content. Safe for several threads.
class FormStore;

class Operand {
 public:
  /// Of any dense tensor: values that are not in its memory (zero tensors, negative views) are
  /// written out.
  Operand(const at::Tensor& source);  // NOLINT(google-explicit-constructor)
  Operand(const at::Tensor& source, std::shared_ptr<FormStore> store);
  /// Weights [E, N_i, K] of one dtype and device as one [E, sum of N_i, K], in this order. Kernels
  /// of moe8 that quantize read them where they lie; LibTorch's operations, a copy.
  static Operand joined(at::TensorList parts, std::shared_ptr<FormStore> store);

  /// One that will exist later: to choose a kernel for it, not to compute with.
  static Operand future(at::IntArrayRef sizes, at::ScalarType dtype, const at::Device& device);
  /// A tensor of which only a form was kept.
  static Operand kept(at::IntArrayRef sizes, at::ScalarType dtype, Form form);

  at::IntArrayRef sizes() const { return sizes_; }
  int64_t size(int64_t dim) const { return sizes_[dim]; }
  at::ScalarType scalar_type() const { return dtype_; }
  const at::Device& device() const { return device_; }
  bool has_source() const { return !parts_.empty(); }
  /// In high precision; of joined weights a new copy. @throws when it was not kept.
  at::Tensor source() const;
  /// Matrix e of a weight, as source().select(0, e) has it; of joined weights a copy of this one alone.
  at::Tensor source_matrix(int64_t e) const;

  /// Says that form(key) will be called too, so that it can be made in the pass of another.
  void expect(const FormKey& key) const;
  /// Whether the form is there, or is the source itself, so that form() makes nothing.
  bool has(const FormKey& key) const;
  /// The form, made now unless it is there. `groups` matters to forms along axis 0 of a matrix, and
  /// must be the same in every call.
  Form form(const FormKey& key, const TokenGroups& groups) const;
  /// A form that somebody else made: form() returns it from now on.
  void add(Form form) const;
  /// The same, made by `make` when it is first asked for.
  void add_later(const FormKey& key, std::function<Form()> make) const;
  /// Forgets a form that nobody will ask for again, so that its memory is free for others.
  void drop(const FormKey& key) const;
  /// Columns begin, ..., begin + size - 1 of a matrix as an operand of their own, for products that
  /// contract rows: its form(key), along axis 0, is a view of this one's, which is made now.
  Operand columns(int64_t begin, int64_t size, const FormKey& key, const TokenGroups& groups) const;

 private:
  Operand(at::IntArrayRef sizes, at::ScalarType dtype, const at::Device& device);

  std::vector<at::Tensor> parts_;  // several: joined weights; none: the source was not kept
  std::vector<int64_t> sizes_;
  at::ScalarType dtype_;
  at::Device device_;
  std::shared_ptr<FormStore> store_;
};

std::shared_ptr<FormStore> make_form_store();
/// Bytes of the forms in a store.
int64_t form_bytes(FormStore& store);

/// "bfloat16 [4, 8] on cpu", for messages.
std::string describe(const Operand& x);

/// True when the form is the source itself, so that nothing is made.
bool is_source(const FormKey& key, const at::Tensor& source);
/// The parts of a joined weight side by side, a copy; a single part itself.
at::Tensor join(at::TensorList parts);

/// The values that the low-precision operand stands for (quantized and dequantized), along the
/// contracted `axis`, in `dtype`; groups of rows as in quantize_mx. Contiguous.
at::Tensor operand_values(const at::Tensor& x, const OperandFormat& format, int64_t axis,
                          const std::optional<at::Tensor>& offs, at::ScalarType dtype);

}  // namespace moe8
