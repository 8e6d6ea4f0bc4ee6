// SPDX-License-Identifier: BSD-3-Clause
// What ranks read of a step: together, in order, what one process reads.
#include "train/batch_share.h"

#include <ATen/ops/cat.h>

#include <string>
#include <vector>

#include "testing/compare.h"
#include "testing/folder.h"
#include "train/tiny_run.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::same_bits;

constexpr int64_t kSeqLen = 8;
constexpr uint64_t kSeed = 5;

// The tokens and targets of a step as all ranks together read them, in the order of sums.
std::vector<at::Tensor> step(const TextData& data, int64_t batch_size, int64_t accumulation,
                             int64_t ranks, int64_t first_index) {
  std::vector<at::Tensor> tokens, targets;
  const int64_t rounds = BatchShare(batch_size, accumulation, ranks).rounds();
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const BatchShare share(batch_size, accumulation, ranks, rank);
      const MicroBatch piece = share.at(first_index, round);
      const Batch batch = data.train_batch(kSeed, piece.index, batch_size, kSeqLen, piece.rows);
      EXPECT_EQ(batch.tokens.size(0), share.rows());
      tokens.push_back(batch.tokens);
      targets.push_back(batch.targets);
    }
  }
  return {at::cat(tokens), at::cat(targets)};
}

class BatchShareTest : public ::testing::Test {
 protected:
  testing::TemporaryFolder folder_;
  TextData data_{{folder_.write("text", testing::tiny_text())}};
};

TEST_F(BatchShareTest, AllRanksTogetherReadWhatOneProcessReads) {
  for (const int64_t accumulation : {1, 2, 4, 8}) {
    for (const int64_t ranks : {2, 4}) {
      for (const int64_t first_index : {0, 24}) {  // the second as after a resume
        const auto one = step(data_, 4, accumulation, 1, first_index);
        const auto several = step(data_, 4, accumulation, ranks, first_index);
        EXPECT_TRUE(same_bits(one[0], several[0])) << accumulation << " batches, " << ranks;
        EXPECT_TRUE(same_bits(one[1], several[1])) << accumulation << " batches, " << ranks;
      }
    }
  }
}

TEST_F(BatchShareTest, ARunThatIsResumedOnAnotherNumberOfRanksGoesOnInOrder) {
  // Two steps on 4 ranks, one on 1, one on 2, against four of one process.
  const int64_t batches = 4;
  std::vector<at::Tensor> mixed, one;
  int64_t next = 0;
  for (const int64_t ranks : {4, 4, 1, 2}) {
    mixed.push_back(step(data_, 2, batches, ranks, next)[0]);
    one.push_back(step(data_, 2, batches, 1, next)[0]);
    next += batches;
  }
  EXPECT_TRUE(same_bits(at::cat(mixed), at::cat(one)));
}

TEST_F(BatchShareTest, DealsWholeBatchesWhereThereAreEnough) {
  const BatchShare share(16, 8, 4, 3);
  EXPECT_EQ(share.rounds(), 2);
  EXPECT_EQ(share.pieces(), 8);
  EXPECT_TRUE(share.whole_batches());
  EXPECT_EQ(share.at(80, 1), (MicroBatch{87, {0, 16}}));

  const BatchShare parts(16, 2, 8, 5);
  EXPECT_EQ(parts.rounds(), 1);
  EXPECT_EQ(parts.pieces(), 8);
  EXPECT_FALSE(parts.whole_batches());
  EXPECT_EQ(parts.at(80, 0), (MicroBatch{81, {4, 4}}));
}

TEST_F(BatchShareTest, RefusesARemainder) {
  EXPECT_THAT(error_of([] { BatchShare(16, 1, 3); }),
              HasSubstr("[train] training.batch_size: expected 1 x 16 sequences a step "
                        "(accumulation x batch_size) that 3 data-parallel ranks can share, got a "
                        "remainder. 2 or 4 ranks can; or change one of the two."));
  EXPECT_THAT(error_of([] { BatchShare(16, 6, 4); }), HasSubstr("3 or 6 ranks can"));
  EXPECT_THAT(error_of([] { BatchShare(1, 2, 4); }), HasSubstr(" 2 ranks can"));
}

TEST_F(BatchShareTest, RowsOutsideTheBatchAreRefused) {
  EXPECT_THAT(error_of([&] {
                data_.train_batch(kSeed, 0, 4, kSeqLen, {3, 2});
              }),
              HasSubstr("[text_data] rows: expected some of 4, got 2 from 3 on"));
}

}  // namespace
}  // namespace moe8
