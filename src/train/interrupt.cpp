// SPDX-License-Identifier: BSD-3-Clause
#include "train/interrupt.h"

#include <unistd.h>

#include <array>
#include <csignal>
#include <utility>

namespace moe8 {
namespace {

constexpr std::array kStop{SIGINT, SIGTERM, SIGHUP};
constexpr std::array kIgnore{SIGXFSZ, SIGPIPE};

volatile std::sig_atomic_t first_signal = 0;
std::array<struct sigaction, kStop.size() + kIgnore.size()> before;

extern "C" void note_signal(int number) {
  if (first_signal != 0) ::_exit(128 + number);
  first_signal = number;
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
  size_t i = 0;
  for (const int number : kStop) {
    before[i] = set(number, &note_signal);
    if (before[i].sa_handler == SIG_IGN) set(number, SIG_IGN);
    ++i;
  }
  for (const int number : kIgnore) before[i++] = set(number, SIG_IGN);
}

Interrupt::~Interrupt() {
  size_t i = 0;
  for (const int number : kStop) ::sigaction(number, &before[i++], nullptr);
  for (const int number : kIgnore) ::sigaction(number, &before[i++], nullptr);
}

int Interrupt::received() {
  return first_signal;
}

}  // namespace moe8
