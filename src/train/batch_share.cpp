// SPDX-License-Identifier: BSD-3-Clause
#include "train/batch_share.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/nearest.h"

namespace moe8 {
namespace {

bool can_deal(int64_t batch_size, int64_t accumulation, int64_t ranks) {
  if (accumulation % ranks == 0) return true;
  return ranks % accumulation == 0 && batch_size % (ranks / accumulation) == 0;
}

// The next smaller and the next larger number of ranks that would do.
std::string near(int64_t batch_size, int64_t accumulation, int64_t ranks) {
  std::vector<std::string> found;
  for (int64_t n = ranks - 1; n >= 1 && found.empty(); --n) {
    if (can_deal(batch_size, accumulation, n)) found.push_back(std::to_string(n));
  }
  constexpr int64_t kMost = 1 << 20;  // ranks that anybody has
  for (int64_t n = ranks + 1; n <= std::min(batch_size * accumulation, kMost); ++n) {
    if (!can_deal(batch_size, accumulation, n)) continue;
    found.push_back(std::to_string(n));
    break;
  }
  return join(found, " or ");
}

}  // namespace

BatchShare::BatchShare(int64_t batch_size, int64_t accumulation, int64_t ranks, int64_t rank,
                       int64_t tensor)
    : batch_size_(batch_size),
      accumulation_(accumulation),
      ranks_(ranks),
      rank_(rank),
      tensor_(tensor) {
  MOE8_CHECK(can_deal(batch_size, accumulation, ranks), "train", "training.batch_size", "expected ",
             accumulation, " x ", batch_size, " sequences a step (accumulation x batch_size) that ",
             ranks, " data-parallel ranks can share, got a remainder. ",
             near(batch_size, accumulation, ranks), " ranks can; or change one of the two.");
  if (ranks > accumulation) parts_ = ranks / accumulation;
}

MicroBatch BatchShare::at(int64_t first_index, int64_t round) const {
  const int64_t piece = round * ranks_ + rank_;
  return {first_index + piece / parts_, {piece % parts_ * rows(), rows()}};
}

}  // namespace moe8
