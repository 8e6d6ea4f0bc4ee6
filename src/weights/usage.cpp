// SPDX-License-Identifier: BSD-3-Clause
#include "weights/usage.h"

#include <c10/util/StringUtil.h>

#include <mutex>
#include <set>
#include <string>
#include <tuple>

#include "base/log.h"

namespace moe8 {

void note_low_precision(uint64_t /*id*/) {}

void note_high_precision(uint64_t id, const char* op, const char* why) {
  static std::mutex mutex;
  static std::set<std::tuple<uint64_t, std::string, std::string>> told;
  {
    const std::lock_guard lock(mutex);
    if (!told.insert({id, op, why}).second) return;
  }
  log_warning(c10::str("[quantize_] at::", op,
                       " with a converted weight runs in high precision: ", why, "."));
}

}  // namespace moe8
