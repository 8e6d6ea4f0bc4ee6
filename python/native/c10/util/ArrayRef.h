// SPDX-License-Identifier: BSD-3-Clause
// Stands in for LibTorch's header where moe8 is built without LibTorch: sizes as messages print.
#pragma once

#include <cstdint>
#include <ostream>
#include <vector>

namespace c10 {

class IntArrayRef {
 public:
  explicit IntArrayRef(const std::vector<int64_t>& values) : values_(values) {}

  friend std::ostream& operator<<(std::ostream& out, const IntArrayRef& sizes) {
    out << '[';
    for (size_t i = 0; i < sizes.values_.size(); ++i) {
      out << (i == 0 ? "" : ", ") << sizes.values_[i];
    }
    return out << ']';
  }

 private:
  const std::vector<int64_t>& values_;
};

}  // namespace c10
