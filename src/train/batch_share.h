// SPDX-License-Identifier: BSD-3-Clause
// Which sequences of a step a rank computes: the batch and its order do not depend on their number.
#pragma once

#include <cstdint>

#include "train/text_data.h"

namespace moe8 {

/// Rows of a batch, read by one forward and backward.
struct MicroBatch {
  int64_t index = 0;  // of TextData::train_batch
  Rows rows{};

  bool operator==(const MicroBatch&) const = default;
};

/// A step reads `accumulation` batches of `batch_size` sequences. They are cut into pieces, whole
/// batches, or parts of them where there are more ranks than batches; round i of rank r computes
/// piece i ranks + r. In this order, round by round and in a round rank by rank, the pieces of all
/// ranks are the step's sequences, each once, whatever the number of ranks. A rank is here one that
/// has data of its own: those of a tensor group read the same sequences, and each has the loss of an
/// equal part of their positions.
class BatchShare {
 public:
  /// @throws c10::Error that names the nearest numbers of ranks that would do, unless the batches
  /// can be dealt out evenly: ranks divides accumulation, or is a multiple of it that divides
  /// accumulation * batch_size.
  /// @param tensor  ranks of a tensor group
  BatchShare(int64_t batch_size, int64_t accumulation, int64_t ranks = 1, int64_t rank = 0,
             int64_t tensor = 1);

  /// Forwards and backwards of a step on each rank.
  int64_t rounds() const { return pieces() / ranks_; }
  /// Of all ranks together.
  int64_t pieces() const { return accumulation_ * parts_; }
  /// Of which that of a step is the mean: a piece has one per rank of its tensor group.
  int64_t losses() const { return pieces() * tensor_; }
  /// Sequences of a piece.
  int64_t rows() const { return batch_size_ / parts_; }
  /// True where pieces are whole batches, so that a step adds up the same numbers on any number of
  /// ranks.
  bool whole_batches() const { return parts_ == 1; }

  /// @param first_index  of the step's first batch
  MicroBatch at(int64_t first_index, int64_t round) const;

 private:
  int64_t batch_size_, accumulation_, ranks_, rank_, tensor_;
  int64_t parts_ = 1;  // of a batch
};

}  // namespace moe8
