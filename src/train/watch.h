// SPDX-License-Identifier: BSD-3-Clause
// Who of several ranks is still alive and goes on. A rank that was killed, was stopped or computes for
// ever leaves the others in an exchange that does not end: this ends them.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

namespace c10d {
class Store;
}

namespace moe8 {

struct WatchOptions {
  std::chrono::milliseconds interval{2000};   // between signs of life
  std::chrono::milliseconds patience{30000};  // without one of a rank
  /// For how long a rank that lives may keep others waiting in an exchange: at least so long, and at
  /// least as long as these have computed without one themselves.
  std::chrono::milliseconds stall{45000};
  int64_t stalls_of_long_work = 10;  // so many times as long while it reads or writes files
};

/// A rank that the others cannot go on with.
struct LostRank {
  int64_t rank = 0;    // -1: the store does not answer any more
  bool hangs = false;  // it lives, and comes to no exchange; else it gave no sign of life
  double seconds = 0;  // for how long
};

/// A thread that writes a sign of life of this rank into the store of the launcher, and looks at
/// those of the others. It finds processes that are gone or stand still, whose thread does not go on
/// either, and those that live but do not come to an exchange in which others wait. The first rank
/// that finds one tells the others, so that all end for the same reason.
class Watch {
 public:
  /// @param lost  called once, in the thread
  /// Every rank makes one; the constructors return when all have.
  Watch(const c10::intrusive_ptr<c10d::Store>& store, int64_t rank, int64_t ranks,
        std::function<void(const LostRank& lost)> lost, const WatchOptions& options = {});
  /// This rank leaves: the others do not miss it.
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moe8
