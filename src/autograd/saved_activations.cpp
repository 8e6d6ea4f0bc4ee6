// SPDX-License-Identifier: BSD-3-Clause
// The setting of include/moe8/memory.h for what a product saves; form_to_save in
// low_precision_mm.cpp decides by it.
#include <atomic>
#include <cstdlib>
#include <string_view>

#include "moe8/memory.h"

namespace moe8 {
namespace {

bool saves_quantized_at_start() {
  const char* setting = std::getenv("MOE8_SAVE_ACTIVATIONS");
  return !setting || std::string_view(setting) != "source";
}

std::atomic<bool>& saves_quantized() {
  static std::atomic<bool> value{saves_quantized_at_start()};
  return value;
}

}  // namespace

void set_save_quantized_activations(bool quantized) {
  saves_quantized().store(quantized);
}

bool save_quantized_activations() {
  return saves_quantized().load();
}

}  // namespace moe8
