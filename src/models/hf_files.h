// SPDX-License-Identifier: BSD-3-Clause
// The safetensors files of a folder of a published model: one, or those of its index.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "moe8/safetensors.h"

namespace moe8 {

class HfFiles {
 public:
  /// Reads headers alone. @throws c10::Error naming the file that is missing, no safetensors file, or
  /// holds a tensor which another holds as well.
  explicit HfFiles(const std::string& folder);

  const std::string& folder() const { return folder_; }
  /// Paths, in the order of their names.
  const std::vector<std::string>& paths() const { return paths_; }
  bool contains(std::string_view name) const { return places_.contains(name); }
  std::vector<std::string> names() const;
  /// Of a tensor that is there.
  const SafetensorsEntry& entry(std::string_view name) const;
  at::Tensor tensor(std::string_view name) const;
  /// As SafetensorsReader::read_rows().
  void read_rows(std::string_view name, int64_t first_row, const at::Tensor& out) const;

 private:
  struct Place {
    size_t file;
    size_t entry;
  };

  std::string folder_;
  std::vector<std::string> paths_;
  std::vector<SafetensorsReader> files_;
  std::map<std::string, Place, std::less<>> places_;
};

}  // namespace moe8
