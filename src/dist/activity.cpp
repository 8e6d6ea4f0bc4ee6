// SPDX-License-Identifier: BSD-3-Clause
#include "dist/activity.h"

#include <algorithm>
#include <atomic>

namespace moe8 {
namespace {

// Of all threads: exchanges may begin in that of backward.
struct Counters {
  std::atomic<int64_t> waits{0}, waiting{0}, long_works{0};
  std::atomic<int64_t> alone_since{0}, longest_alone{0}, waited{0};  // nanoseconds
  std::atomic<int64_t> bytes_sent{0};
};

Counters& counters() {
  static Counters counters;
  return counters;
}

int64_t now() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

}  // namespace

WaitsForOthers::WaitsForOthers(For what) : what_(what), since_(now()) {
  Counters& c = counters();
  if (c.waiting++ == 0) {
    const int64_t alone_since = c.alone_since;
    if (alone_since > 0) c.longest_alone = std::max(c.longest_alone.load(), since_ - alone_since);
  }
  ++c.waits;
}

WaitsForOthers::~WaitsForOthers() {
  Counters& c = counters();
  const int64_t end = now();
  if (what_ == For::RANKS) c.waited += end - since_;
  ++c.waits;
  if (--c.waiting == 0) c.alone_since = end;
}

LongWork::LongWork() {
  ++counters().long_works;
}

// Work with files says nothing about how long a step may take.
LongWork::~LongWork() {
  --counters().long_works;
  counters().alone_since = now();
}

Activity activity() {
  const Counters& c = counters();
  return {c.waits,
          c.waiting > 0,
          c.long_works > 0,
          std::chrono::nanoseconds(c.longest_alone),
          std::chrono::nanoseconds(c.waited),
          c.bytes_sent};
}

void count_sent(int64_t bytes) {
  counters().bytes_sent += bytes;
}

}  // namespace moe8
