// SPDX-License-Identifier: BSD-3-Clause
// Matrices of a published model's files as codes and scales, in both directions.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "models/hf_files.h"
#include "models/hf_weights.h"
#include "moe8/pretrained.h"

namespace moe8 {

/// "[pretrained] FOLDER: tensor "NAME": expected ..., got BF16 [2, 3]."
[[noreturn]] void wrong_tensor(const HfFiles& files, const std::string& name,
                               const std::string& expected);

// ---- reading ------------------------------------------------------------------
/// A tensor as it is, or an FP8 matrix times its scales, rounded to bf16: "NAME_scale_inv" per block of
/// 128 x 128, "NAME_scale" per row or, as bytes of E8M0, per 32 elements of a row. Read by runs of rows,
/// from several threads if you like.
class PlainRows {
 public:
  /// @param files  lives as long
  /// @throws c10::Error unless sizes and dtypes fit
  PlainRows(const HfFiles& files, const std::string& name, const std::vector<int64_t>& shape);

  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t row_bytes() const;  // in the file, without scales
  /// A run of rows, in the files' dtype or bf16.
  at::Tensor rows(int64_t first, int64_t count) const;
  /// The same into `out`, rounded to its dtype; what it holds already goes there straight from the file.
  void read(int64_t first, const at::Tensor& out) const;

 private:
  const HfFiles& files_;
  std::string name_;
  std::vector<int64_t> shape_;
  at::ScalarType type_;                         // of the bytes
  at::Tensor scales_;                           // undefined: they are no codes
  int64_t scale_rows_ = 1, scale_columns_ = 1;  // for which a scale is
};

/// Stacked matrices as (E, out, in), whether they lie as (E, in, out) or as MXFP4 blocks of rows. Read
/// expert by expert, from several threads if you like.
class StackedRows {
 public:
  /// @param files  lives as long
  /// @throws c10::Error unless sizes and dtypes fit
  StackedRows(const HfFiles& files, const std::string& name, int64_t experts, int64_t out,
              int64_t in);
  at::Tensor of(int64_t expert) const;

 private:
  at::Tensor part_of(const char* part, int64_t expert) const;

  const HfFiles& files_;
  std::string name_;
  std::optional<PlainRows> plain_;  // none: MXFP4
};

/// The name under which files hold a tensor: its own, or that of its MXFP4 blocks.
std::string held_name(const HfFiles& files, const std::string& name);

/// Scales of a tensor that is there.
bool is_quantized_part(const std::string& name, const HfFiles& files);

// ---- writing ------------------------------------------------------------------
/// Whether a tensor of the files is one that `weights` quantizes: matrices of attention, of feed-forward
/// and of the experts.
bool is_quantized(const HfTensor& tensor, ExportedWeights weights);

/// Bytes that it takes in the files, scales included.
uint64_t bytes_of(const HfTensor& tensor, ExportedWeights weights, at::ScalarType dtype);

/// The matrix under its name, and its scales. In fp8_rowwise these are powers of two in the matrix' dtype.
std::vector<std::pair<std::string, at::Tensor>> quantized(const std::string& name,
                                                          const at::Tensor& matrix,
                                                          ExportedWeights weights);

/// @throws c10::Error where the files' layout or sizes have no place for such codes.
void check_can_quantize(const std::vector<HfTensor>& tensors, ExportedWeights weights);

}  // namespace moe8
