// SPDX-License-Identifier: BSD-3-Clause
// Evenly spaced indices, the same ones on every device: what of a product is looked at. Without Torch.
#pragma once

#include <cstdint>

#include "formats/host_device.h"

namespace moe8 {

/// `count` evenly spaced ones of the indices begin, ..., begin + size - 1; 1 <= count <= size.
struct PickedRun {
  int64_t begin;
  int64_t size;
  int64_t count;
};

/// Number i of a run, 0 <= i < count: begin + floor((i + phase) size / count), in float64 from left to
/// right, at most the last; all of them where count is size.
/// @param phase  0 <= phase < 1
MOE8_HD inline int64_t picked_index(const PickedRun& run, int64_t i, double phase) {
  if (run.count == run.size) return run.begin + i;
  const double at = (static_cast<double>(i) + phase) / static_cast<double>(run.count) *
                    static_cast<double>(run.size);
  const int64_t index = static_cast<int64_t>(at);
  return run.begin + (index < run.size ? index : run.size - 1);
}

}  // namespace moe8
