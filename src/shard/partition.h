// SPDX-License-Identifier: BSD-3-Clause
// Which rows of which tensor belong to whom: a function of sizes alone, the same on every rank.
#pragma once

#include <cstdint>
#include <vector>

namespace moe8 {

/// A tensor to be shared out, as rows of its first dimension. One dimension: a row is an element.
struct SharedTensor {
  int64_t rows = 1;
  int64_t row_elements = 1;
  bool whole = false;  // one rank takes all of it
};

/// Consecutive rows; none where count is 0.
struct RowRange {
  int64_t first = 0;
  int64_t count = 0;

  bool operator==(const RowRange&) const = default;
};

/// The fewest rows that are a whole number of the runs in which squares of gradients are summed
/// (kNormChunk elements): cut between them, the parts have the sums of the whole.
int64_t rows_of_runs(int64_t row_elements);

/// [rank][tensor]. The tensors lie one after the other; each rank takes about the same number of
/// elements, consecutive ones, cut at multiples of rows_of_runs(). Tensors of fewer rows, and those
/// that must stay whole, go to the rank that their middle falls to.
std::vector<std::vector<RowRange>> partition(const std::vector<SharedTensor>& tensors,
                                             int64_t ranks);

}  // namespace moe8
