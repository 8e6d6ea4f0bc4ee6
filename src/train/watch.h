// SPDX-License-Identifier: BSD-3-Clause
// Who of several ranks is still alive. A rank that was killed or stopped leaves the others in an
// exchange that does not end: this ends them.
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
};

/// A thread that writes a sign of life of this rank into the store of the launcher, and looks at
/// those of the others. While a rank waits in an exchange its thread goes on, so that only a process
/// that is gone or stands still is missed.
class Watch {
 public:
  /// @param lost  called once, in the thread, with the rank that gave no sign for so long; -1: the
  ///              store does not answer any more
  /// Every rank makes one; the constructors return when all have.
  Watch(const c10::intrusive_ptr<c10d::Store>& store, int64_t rank, int64_t ranks,
        std::function<void(int64_t rank)> lost, const WatchOptions& options = {});
  /// This rank leaves: the others do not miss it.
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moe8
