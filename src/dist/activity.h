// SPDX-License-Identifier: BSD-3-Clause
// What this process is doing, as others may want to know: whether it waits for them, and how far it
// has come. Written by its exchanges, read by whoever watches it from another thread.
#pragma once

#include <chrono>
#include <cstdint>

namespace moe8 {

/// While one lives, this process waits: for other ranks, or for what they keep its device from doing.
class WaitsForOthers {
 public:
  enum class For { RANKS, DEVICE };
  explicit WaitsForOthers(For what = For::RANKS);
  ~WaitsForOthers();
  WaitsForOthers(const WaitsForOthers&) = delete;
  WaitsForOthers& operator=(const WaitsForOthers&) = delete;

 private:
  For what_;
  int64_t since_;
};

/// While one lives, this process may need long for what others do not wait for otherwise, such as
/// files.
class LongWork {
 public:
  LongWork();
  ~LongWork();
  LongWork(const LongWork&) = delete;
  LongWork& operator=(const LongWork&) = delete;
};

struct Activity {
  int64_t waits = 0;  // that have begun or ended: as long as it stays the same, nothing was sent
  bool is_waiting = false;
  bool is_long_work = false;
  std::chrono::nanoseconds longest_alone{};  // between two waits
  std::chrono::nanoseconds waited{};         // for ranks, in all
  int64_t bytes_sent = 0;                    // to other ranks, in all
};

/// Of this process, since its start.
Activity activity();

/// Adds to Activity::bytes_sent.
void count_sent(int64_t bytes);

}  // namespace moe8
