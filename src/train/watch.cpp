// SPDX-License-Identifier: BSD-3-Clause
#include "train/watch.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>
#include <vector>

#include "base/plain_text.h"
#include "dist/activity.h"

namespace moe8 {
namespace {

using Clock = std::chrono::steady_clock;
using Bytes = std::vector<uint8_t>;

constexpr const char* kLeft = "left";
constexpr const char* kVerdictKey = "alive/lost";
constexpr const char* kNobody = "-";

std::string key_of(int64_t rank) {
  return concat("alive/", rank);
}

Bytes bytes_of(const std::string& text) {
  return {text.begin(), text.end()};
}

std::string text_of(const Bytes& bytes) {
  return {bytes.begin(), bytes.end()};
}

double seconds(Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

// ---- what a rank writes ---------------------------------------------------------
// "12 1034 1 0": the beat, then how far the rank is, whether it waits, whether it works with files.
std::string sign_of(int64_t beat, const Activity& now) {
  return concat(beat, ' ', now.waits, ' ', int{now.is_waiting}, ' ', int{now.is_long_work});
}

struct Sign {
  int64_t beat = 0, waits = 0;
  bool is_waiting = false, is_long_work = false;
};

Sign sign_from(const std::string& text) {
  Sign sign;
  std::istringstream(text) >> sign.beat >> sign.waits >> sign.is_waiting >> sign.is_long_work;
  return sign;
}

std::string text_of(const LostRank& lost) {
  return concat(lost.rank, ' ', int{lost.hangs}, ' ', lost.seconds);
}

LostRank lost_from(const std::string& text) {
  LostRank lost;
  std::istringstream(text) >> lost.rank >> lost.hangs >> lost.seconds;
  return lost;
}

}  // namespace

struct Watch::State {
  c10::intrusive_ptr<c10d::Store> store;
  int64_t rank = 0;
  std::vector<std::string> keys;  // of all ranks, and of the verdict
  std::function<void(const LostRank&)> lost;
  WatchOptions options;

  struct Seen {
    std::string sign{};
    Clock::time_point since = Clock::now();    // without another sign
    Clock::time_point went_on = Clock::now();  // came to or left an exchange
    int64_t waits = -1;
  };
  std::vector<Seen> seen;
  std::mutex mutex;
  std::condition_variable wake;
  bool ends = false;
  std::thread thread;

  void run();
  std::optional<LostRank> look();
  void note(size_t r, const std::string& text, Clock::time_point now);
  std::optional<LostRank> judge(size_t r, Clock::time_point now) const;
  Clock::duration allowed(bool long_work) const;
};

// For how long a rank may keep this one waiting.
Clock::duration Watch::State::allowed(bool long_work) const {
  const int64_t times = long_work ? options.stalls_of_long_work : 1;
  return std::max<Clock::duration>(times * options.stall, activity().longest_alone);
}

void Watch::State::note(size_t r, const std::string& text, Clock::time_point now) {
  Seen& one = seen[r];
  if (text == one.sign) return;
  one.sign = text;
  one.since = now;
  const int64_t waits = sign_from(text).waits;
  if (waits != one.waits) {
    one.waits = waits;
    one.went_on = now;
  }
}

std::optional<LostRank> Watch::State::judge(size_t r, Clock::time_point now) const {
  const Seen& one = seen[r];
  if (static_cast<int64_t>(r) == rank || one.sign == kLeft) return std::nullopt;
  const auto number = static_cast<int64_t>(r);
  if (now - one.since > options.patience) {
    return LostRank{number, false, seconds(options.patience)};
  }
  // Whom all wait for is whoever waits for nobody.
  const Seen& own = seen[static_cast<size_t>(rank)];
  const Sign sign = sign_from(one.sign);
  if (!sign_from(own.sign).is_waiting || sign.is_waiting) return std::nullopt;
  const Clock::duration limit = allowed(sign.is_long_work);
  if (now - own.went_on <= limit || now - one.went_on <= limit) return std::nullopt;
  return LostRank{number, true, seconds(limit)};
}

// The first rank that the others cannot go on with, in the words of whoever found it.
std::optional<LostRank> Watch::State::look() {
  const std::vector<Bytes> texts = store->multiGet(keys);
  const Clock::time_point now = Clock::now();
  const std::string verdict = text_of(texts.back());
  if (verdict != kNobody) return lost_from(verdict);
  for (size_t r = 0; r < seen.size(); ++r) note(r, text_of(texts[r]), now);
  for (size_t r = 0; r < seen.size(); ++r) {
    const auto found = judge(r, now);
    if (!found) continue;
    const Bytes first =
        store->compareSet(kVerdictKey, bytes_of(kNobody), bytes_of(text_of(*found)));
    return lost_from(text_of(first));
  }
  return std::nullopt;
}

void Watch::State::run() {
  Clock::time_point answered = Clock::now();
  for (int64_t beat = 1;; ++beat) {
    {
      std::unique_lock lock(mutex);
      if (wake.wait_for(lock, options.interval, [&] { return ends; })) return;
    }
    std::optional<LostRank> gone;
    const Clock::time_point start = Clock::now();
    // After a long pause of this process itself the others' signs are not old: they were not read.
    if (start - answered > options.patience / 2) {
      for (Seen& one : seen) one.since = one.went_on = start;
    }
    try {
      store->set(keys[static_cast<size_t>(rank)], bytes_of(sign_of(beat, activity())));
      gone = look();
      answered = Clock::now();
    } catch (const std::exception&) {
      if (Clock::now() - answered > options.patience / 2) gone = LostRank{.rank = -1};
    }
    if (!gone) continue;
    lost(*gone);
    return;
  }
}

Watch::Watch(const c10::intrusive_ptr<c10d::Store>& store, int64_t rank, int64_t ranks,
             std::function<void(const LostRank&)> lost, const WatchOptions& options)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.store = store->clone();  // a connection of its own: exchanges may keep the other one busy
  s.rank = rank;
  s.lost = std::move(lost);
  s.options = options;
  for (int64_t r = 0; r < ranks; ++r) s.keys.push_back(key_of(r));
  s.seen.resize(s.keys.size());
  s.store->set(kVerdictKey, bytes_of(kNobody));
  s.store->set(key_of(rank), bytes_of(sign_of(0, activity())));
  s.store->wait(s.keys);
  s.keys.emplace_back(kVerdictKey);
  for (State::Seen& one : s.seen) one.since = one.went_on = Clock::now();
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
