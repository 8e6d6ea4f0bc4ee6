// SPDX-License-Identifier: BSD-3-Clause
// How many threads LibTorch computes with, for the time of a run.
#pragma once

#include <cstdint>

namespace moe8 {

/// Sets the number of LibTorch's threads and restores it at the end of its life. A change makes
/// LibTorch rebuild a pool of threads, which waits for ever for those that a process without memory
/// cannot make: so nothing is called where nothing changes, nor on the way out of a failure.
class ThreadCount {
 public:
  /// @param count  0 leaves it as it is
  explicit ThreadCount(int64_t count);
  ~ThreadCount();
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_;
  int exceptions_;  // that were on their way already
};

}  // namespace moe8
