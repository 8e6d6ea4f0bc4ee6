// SPDX-License-Identifier: BSD-3-Clause
// Which rows are whose: each once, in order, cut where sums of squares may be cut, and fair.
#include "shard/partition.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/adamw.h"

namespace moe8 {
namespace {

constexpr int64_t kExpert = int64_t{1024} * 2048;  // elements of one

// As of a model: an embedding, norms, matrices, stacks of experts, odd sizes, nothing.
const std::vector<SharedTensor> kTensors{
    {256, 2048}, {2048, 1},    {2048, 2048}, {16, kExpert}, {16, kExpert},
    {100, 1000}, {4097, 2048}, {1, 1},       {0, 8},        {2048, 2048, true}};

TEST(Partition, GivesEveryRowToOneRankInOrder) {
  for (const int64_t ranks : {1, 2, 3, 4, 8, 64, 1000}) {
    const auto shares = partition(kTensors, ranks);
    ASSERT_EQ(static_cast<int64_t>(shares.size()), ranks);
    for (size_t t = 0; t < kTensors.size(); ++t) {
      int64_t next = 0;
      for (const auto& share : shares) {
        if (share[t].count == 0) continue;
        EXPECT_EQ(share[t].first, next);
        next += share[t].count;
      }
      EXPECT_EQ(next, kTensors[t].rows) << "tensor " << t << ", " << ranks << " ranks";
    }
  }
}

TEST(Partition, CutsOnlyBetweenRunsOfSquares) {
  for (const auto& share : partition(kTensors, 7)) {
    for (size_t t = 0; t < kTensors.size(); ++t) {
      if (share[t].count == 0) continue;
      EXPECT_EQ(share[t].first * kTensors[t].row_elements % kNormChunk, 0) << t;
      EXPECT_TRUE(!kTensors[t].whole || share[t].count == kTensors[t].rows);
    }
  }
  EXPECT_EQ(rows_of_runs(2048), 16);
  EXPECT_EQ(rows_of_runs(kNormChunk * 3), 1);
  EXPECT_EQ(rows_of_runs(1000), 4096) << "a matrix of fewer rows is not cut";
}

TEST(Partition, IsFair) {
  int64_t total = 0, least = INT64_MAX, most = 0;
  for (const auto& share : partition(kTensors, 4)) {
    int64_t elements = 0;
    for (size_t t = 0; t < kTensors.size(); ++t) {
      elements += share[t].count * kTensors[t].row_elements;
    }
    least = std::min(least, elements);
    most = std::max(most, elements);
    total += elements;
  }
  // A rank's ends fall into an expert (2 Mi elements) or the matrix that stays whole (4 Mi).
  EXPECT_LT(most - least, 6 << 20) << "of " << total;
}

}  // namespace
}  // namespace moe8
