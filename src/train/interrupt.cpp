// SPDX-License-Identifier: BSD-3-Clause
#include "train/interrupt.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <csignal>

namespace moe8 {
namespace {

constexpr std::array kStop{SIGINT, SIGTERM, SIGHUP};
constexpr std::array kIgnore{SIGXFSZ, SIGPIPE};

// Written and read by handlers in any thread, so they must not need a lock.
std::atomic<int> first_signal = 0;
std::atomic<int> patience = 0;  // seconds that a signal waits
static_assert(std::atomic<int>::is_always_lock_free);
std::array<struct sigaction, kStop.size() + kIgnore.size() + 1> before;

extern "C" void note_signal(int number) {
  if (first_signal != 0 || patience == 0) ::_exit(128 + number);
  ::alarm(static_cast<unsigned>(patience));  // first: who sees the signal stops the clock
  first_signal = number;
}

extern "C" void end_waiting(int) {
  constexpr char kText[] =
      "moe8: the step did not end in time; stopped without a checkpoint of it\n";
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kText, sizeof kText - 1);
  ::_exit(128 + first_signal);
}

// Returns what was there before.
struct sigaction set(int number, void (*handler)(int)) {
  struct sigaction action {
  }, old{};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  ::sigaction(number, &action, &old);
  return old;
}

}  // namespace

Interrupt::Interrupt() {
  first_signal = 0;
  patience = 0;
  size_t i = 0;
  before[i++] = set(SIGALRM, &end_waiting);
  for (const int number : kStop) {
    before[i] = set(number, &note_signal);
    if (before[i].sa_handler == SIG_IGN) set(number, SIG_IGN);
    ++i;
  }
  for (const int number : kIgnore) before[i++] = set(number, SIG_IGN);
}

Interrupt::~Interrupt() {
  ::alarm(0);
  size_t i = 0;
  ::sigaction(SIGALRM, &before[i++], nullptr);
  for (const int number : kStop) ::sigaction(number, &before[i++], nullptr);
  for (const int number : kIgnore) ::sigaction(number, &before[i++], nullptr);
}

void Interrupt::wait(double seconds) {
  constexpr double kDay = 86400;
  patience = static_cast<int>(std::ceil(std::clamp(seconds, 0.0, kDay)));
}

int Interrupt::received() {
  if (first_signal != 0) ::alarm(0);
  return first_signal;
}

}  // namespace moe8
