// SPDX-License-Identifier: BSD-3-Clause
// The checkpoints of one run: which are there, which is the newest good one, which are kept.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace moe8 {

/// A folder that holds step-00000100/, step-00000200/, ... and `best`, a link to the one with the
/// lowest validation loss. There is no list of them anywhere: a folder of such a name is a
/// checkpoint, as it got its name when it was complete. Names that end in .partial are unfinished
/// or half deleted, those in .damaged were set aside.
/// Only the process that holds the run's lock may change anything.
class CheckpointFolder {
 public:
  struct Entry {
    int64_t step = 0;
    std::string path;
  };

  explicit CheckpointFolder(std::string path) : path_(std::move(path)) {}

  std::string path_of(int64_t step) const;
  std::vector<Entry> entries() const;  // the newest first

  /// The newest one whose bytes are what was written; a warning for each that is passed over. None
  /// when there are none at all.
  /// @throws c10::Error when all are damaged.
  std::optional<Entry> newest_good() const;

  /// Makes the folder and removes what a killed process left unfinished.
  void prepare();
  /// Renames those after `step`, which newest_good() passed over: step-00000300.damaged.
  void set_aside_after(int64_t step);
  /// Removes all but the newest `count` and the best, and points `best` at the latter. Failures are
  /// warnings: what could not be removed does no harm.
  void keep(int64_t count, std::optional<int64_t> best);

 private:
  std::string path_;
};

}  // namespace moe8
