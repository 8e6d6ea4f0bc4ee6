// SPDX-License-Identifier: BSD-3-Clause
#include "train/plan/step_memory.h"

#include <algorithm>
#include <cstddef>

namespace moe8 {

double StepMemory::begin_of_backward() const {
  double bytes = fixed;
  for (const PartMemory& part : parts) bytes += part.saved + part.forms + part.earlier;
  return bytes;
}

double StepMemory::end_of_backward() const {
  double bytes = fixed;
  for (const PartMemory& part : parts) bytes += part.kept_forms + part.gradients;
  return bytes;
}

double StepMemory::peak() const {
  double alive = begin_of_backward(), peak = alive, on_their_way = 0;
  for (size_t i = parts.size(); i-- > 0;) {
    const PartMemory& part = parts[i];
    const double travelling = std::min(on_their_way, most_travelling);
    peak = std::max(peak, alive + part.recomputed + part.passing + travelling);
    alive += part.kept_forms - part.forms + part.gradients - part.earlier - part.saved;
    on_their_way += part.travelling;
  }
  return std::max({peak, alive + std::min(on_their_way, most_travelling), before});
}

}  // namespace moe8
