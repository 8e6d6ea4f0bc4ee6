// SPDX-License-Identifier: BSD-3-Clause
// How many threads LibTorch computes with, for the time of a run.
#pragma once

#include <cstdint>
#include <functional>

namespace moe8 {

/// For a run on a GPU whose config leaves the choice: torchrun gives its processes one thread each unless
/// it is told otherwise (OMP_NUM_THREADS), by which initial weights of billions of parameters take minutes.
/// Then an equal part of the machine's; else 0, LibTorch's choice.
/// @param variable  reads the environment
int64_t threads_beside_gpu(const std::function<const char*(const char*)>& variable,
                           int64_t of_machine);

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
