// SPDX-License-Identifier: BSD-3-Clause
// Peak resident memory from /proc, or from getrusage where there is none.
#include "train/process_memory.h"

#include <malloc.h>
#include <sys/resource.h>

#include <fstream>
#include <string>

namespace moe8 {
namespace {

// In bytes; 0 where there is no such line.
int64_t status_line(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    int64_t kilobytes = 0;
    if (word == name && status >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

}  // namespace

void restart_peak_memory() {
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << "5";  // sets VmHWM to what is resident now
}

int64_t resident_memory() {
  return status_line("VmRSS:");
}

int64_t peak_memory() {
  if (const int64_t most = status_line("VmHWM:")) return most;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

}  // namespace moe8
