// SPDX-License-Identifier: BSD-3-Clause
#include "kernels/mx_args.h"

#include <algorithm>

namespace moe8 {

std::vector<MxBlock> mx_blocks(int64_t length, const int32_t* group_ends, int64_t groups) {
  constexpr int64_t kBlock = 32;
  std::vector<MxBlock> blocks;
  const auto cut = [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kBlock)
      blocks.push_back({at, std::min(kBlock, end - at)});
  };
  if (group_ends == nullptr) {
    cut(0, length);
    return blocks;
  }
  int64_t begin = 0;
  for (int64_t g = 0; g < groups; ++g) {
    cut(begin, group_ends[g]);
    begin = group_ends[g];
  }
  return blocks;
}

}  // namespace moe8
