// SPDX-License-Identifier: BSD-3-Clause
#include "shard/partition.h"

#include <algorithm>
#include <numeric>

#include "kernels/adamw.h"

namespace moe8 {

int64_t rows_of_runs(int64_t row_elements) {
  return kNormChunk / std::gcd(kNormChunk, std::max<int64_t>(row_elements, 1));
}

std::vector<std::vector<RowRange>> partition(const std::vector<SharedTensor>& tensors,
                                             int64_t ranks) {
  double total = 0;  // exact: below 2^53
  for (const SharedTensor& x : tensors) {
    total += static_cast<double>(x.rows) * static_cast<double>(x.row_elements);
  }
  total = std::max(total, 1.0);
  std::vector<std::vector<RowRange>> shares(static_cast<size_t>(ranks),
                                            std::vector<RowRange>(tensors.size()));
  double begin = 0;  // of the tensor
  for (size_t t = 0; t < tensors.size(); ++t) {
    const SharedTensor& x = tensors[t];
    const int64_t step = x.whole ? x.rows : rows_of_runs(x.row_elements);
    const auto elements = static_cast<double>(x.row_elements);
    for (int64_t row = 0; row < x.rows; row += step) {
      const int64_t count = std::min(step, x.rows - row);
      const double middle =
          begin + (static_cast<double>(row) + static_cast<double>(count) / 2) * elements;
      const auto rank = static_cast<int64_t>(middle / total * static_cast<double>(ranks));
      RowRange& share = shares[static_cast<size_t>(std::min(rank, ranks - 1))][t];
      if (share.count == 0) share.first = row;
      share.count += count;
    }
    begin += static_cast<double>(x.rows) * elements;
  }
  return shares;
}

}  // namespace moe8
