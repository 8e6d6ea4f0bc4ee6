// SPDX-License-Identifier: BSD-3-Clause
// Reading and writing safetensors files: a JSON header with names, dtypes and shapes, then bytes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moe8 {

/// One tensor as the header describes it.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;           // "BF16", "F32", "U8", "F8_E4M3", ... as in the file
  std::vector<int64_t> shape;  // in elements, for F4 too: twice LibTorch's last size
  uint64_t begin = 0;          // byte range in the data section
  uint64_t end = 0;
};

/// A safetensors file opened for reading. The header is checked completely before anything else:
/// sizes, dtypes, overlaps, gaps, overflow and duplicate names; data is read on demand, from
/// several threads if you like.
class SafetensorsReader {
 public:
  /// One file: for a model in several, pass the names that its index lists one after the other.
  /// @throws c10::Error naming the file and what is wrong with it; of a Git LFS pointer, a web
  /// page, an archive, an index or a folder it says that it is one, and what to pass instead.
  explicit SafetensorsReader(const std::string& path);
  ~SafetensorsReader();
  SafetensorsReader(SafetensorsReader&&) noexcept;
  SafetensorsReader& operator=(SafetensorsReader&&) noexcept;

  /// Every tensor, in the order of their bytes.
  const std::vector<SafetensorsEntry>& entries() const;
  /// The texts of "__metadata__"; empty when there are none.
  const std::map<std::string, std::string>& metadata() const;
  bool contains(std::string_view name) const;
  /// A contiguous copy on the CPU, bytes as in the file. @throws c10::Error when there is no such
  /// tensor (the nearest names listed), when LibTorch lacks its dtype (F6_E2M3, F6_E3M2) or a BOOL
  /// is neither 0 nor 1.
  at::Tensor tensor(std::string_view name) const;
  /// The same bytes straight into memory that is there: rows first_row, first_row + 1, ... of the
  /// tensor, as many as `out` has. `out` is contiguous on the CPU, in the dtype that tensor() gives,
  /// and has its shape but for the number of rows; to autograd it is written in place.
  /// @throws c10::Error as tensor(), and unless `out` is such a tensor.
  void read_rows(std::string_view name, int64_t first_row, const at::Tensor& out) const;

 private:
  struct File;
  std::unique_ptr<File> file_;
};

/// Reads every tensor of a file into memory. @throws c10::Error as SafetensorsReader.
std::map<std::string, at::Tensor> load_safetensors(const std::string& path);

/// Writes dense tensors of any device and strides: bf16, f16, f32, f64, c64, bool, signed and
/// unsigned integers, the f8 types and f4. The widest elements come first, otherwise in the order
/// given, so that every tensor is aligned; the same input always gives the same bytes. Views are
/// written out whole: sharing of storage is not kept. The bytes do not depend on the locale.
/// The file appears under its name only when it is complete (temporary name, fsync, rename). Where
/// the name is a symbolic link its target is replaced, and the link stays; a file that is replaced
/// leaves its permissions to the new one.
/// @throws c10::Error on an unsupported dtype, a duplicate name, text that is not UTF-8, or a
/// failure to write; an existing file is then untouched.
void save_safetensors(const std::string& path,
                      const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace moe8
