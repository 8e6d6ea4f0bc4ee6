// SPDX-License-Identifier: BSD-3-Clause
#include "train/watch.h"

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>
#include <vector>

#include "base/plain_text.h"

namespace moe8 {
namespace {

using Clock = std::chrono::steady_clock;
using Bytes = std::vector<uint8_t>;

constexpr const char* kLeft = "left";

std::string key_of(int64_t rank) {
  return concat("alive/", rank);
}

Bytes bytes_of(const std::string& text) {
  return {text.begin(), text.end()};
}

}  // namespace

struct Watch::State {
  c10::intrusive_ptr<c10d::Store> store;
  int64_t rank = 0;
  std::vector<std::string> keys;  // of all ranks
  std::function<void(int64_t)> lost;
  WatchOptions options;

  struct Seen {
    Bytes sign;
    Clock::time_point since = Clock::now();
  };
  std::vector<Seen> seen;
  std::mutex mutex;
  std::condition_variable wake;
  bool ends = false;
  std::thread thread;

  void run();
  int64_t missed();
};

// The first rank that was silent too long; -2: none.
int64_t Watch::State::missed() {
  const std::vector<Bytes> signs = store->multiGet(keys);
  const Clock::time_point now = Clock::now();
  for (size_t r = 0; r < signs.size(); ++r) {
    const bool is_new = signs[r] != seen[r].sign;
    if (is_new) seen[r] = {signs[r], now};
    if (static_cast<int64_t>(r) == rank || signs[r] == bytes_of(kLeft)) continue;
    if (now - seen[r].since > options.patience) return static_cast<int64_t>(r);
  }
  return -2;
}

void Watch::State::run() {
  Clock::time_point answered = Clock::now();
  for (int64_t beat = 1;; ++beat) {
    {
      std::unique_lock lock(mutex);
      if (wake.wait_for(lock, options.interval, [&] { return ends; })) return;
    }
    int64_t gone = -2;
    const Clock::time_point start = Clock::now();
    // After a long pause of this process itself the others' signs are not old: they were not read.
    if (start - answered > options.patience / 2) {
      for (Seen& one : seen) one.since = start;
    }
    try {
      store->set(keys[static_cast<size_t>(rank)], bytes_of(std::to_string(beat)));
      gone = missed();
      answered = Clock::now();
    } catch (const std::exception&) {
      if (Clock::now() - answered > options.patience / 2) gone = -1;
    }
    if (gone == -2) continue;
    lost(gone);
    return;
  }
}

Watch::Watch(const c10::intrusive_ptr<c10d::Store>& store, int64_t rank, int64_t ranks,
             std::function<void(int64_t rank)> lost, const WatchOptions& options)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.store = store->clone();  // a connection of its own: exchanges may keep the other one busy
  s.rank = rank;
  s.lost = std::move(lost);
  s.options = options;
  for (int64_t r = 0; r < ranks; ++r) s.keys.push_back(key_of(r));
  s.seen.resize(s.keys.size());
  s.store->set(key_of(rank), bytes_of("0"));
  s.store->wait(s.keys);
  for (State::Seen& one : s.seen) one.since = Clock::now();
  s.thread = std::thread([&s] { s.run(); });
}

Watch::~Watch() {
  State& s = *state_;
  {
    const std::lock_guard lock(s.mutex);
    s.ends = true;
  }
  s.wake.notify_all();
  s.thread.join();
  try {
    s.store->set(key_of(s.rank), bytes_of(kLeft));
  } catch (const std::exception&) {  // whoever serves it has ended
  }
}

}  // namespace moe8
