// SPDX-License-Identifier: BSD-3-Clause
// Reading and writing safetensors files: a JSON header with names, dtypes and shapes, then raw
// bytes.
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
  std::string dtype;  // "BF16", "F32", "U8", "F8_E4M3", ... as in the file
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // byte range in the data section
  uint64_t end = 0;
};

/// A safetensors file opened for reading. The header is checked completely before anything else:
/// sizes, dtypes, overlaps, gaps, overflow and duplicate names; data is mapped and copied on
/// demand.
class SafetensorsReader {
 public:
  /// @throws c10::Error naming the file and what is wrong with it.
  explicit SafetensorsReader(const std::string& path);
  ~SafetensorsReader();
  SafetensorsReader(SafetensorsReader&&) noexcept;

  const std::vector<SafetensorsEntry>& entries() const;  // in the order of their bytes
  const std::map<std::string, std::string>& metadata() const;
  bool contains(std::string_view name) const;
  /// A copy on the CPU. @throws c10::Error when there is no such tensor (the nearest names listed).
  at::Tensor tensor(std::string_view name) const;

 private:
  struct File;
  std::unique_ptr<File> file_;
};

/// Reads every tensor of a file.
std::map<std::string, at::Tensor> load_safetensors(const std::string& path);

/// Writes tensors (any device and strides; bf16, f16, f32, f64, bool, u8, signed ints, f8 types).
/// The file appears under its name only when it is complete (temporary name, fsync, rename).
/// @throws c10::Error on an unsupported dtype, a duplicate name, or a failure to write; an existing
///         file is then untouched.
void save_safetensors(const std::string& path,
                      const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace moe8
