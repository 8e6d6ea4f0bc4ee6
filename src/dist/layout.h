// SPDX-License-Identifier: BSD-3-Clause
// Which ranks of a world form the groups of a layout. Numbers alone: no process is asked.
#pragma once

#include <cstdint>
#include <vector>

#include "moe8/parallel.h"

namespace moe8 {

/// The members of the groups that hold one rank, ascending, as ranks of the world.
struct LayoutGroups {
  std::vector<int64_t> world, data, expert, expert_data, tensor;
};

/// @throws c10::Error when the layout does not divide the world.
LayoutGroups layout_groups(const ParallelLayout& layout, int64_t world, int64_t rank);

}  // namespace moe8
