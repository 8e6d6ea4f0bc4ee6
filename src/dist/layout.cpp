// SPDX-License-Identifier: BSD-3-Clause
#include "dist/layout.h"

#include "base/check.h"

namespace moe8 {
namespace {

void check(const ParallelLayout& layout, int64_t world) {
  constexpr const char* kLayout = "parallel";
  MOE8_CHECK(layout.tensor >= 1 && world % layout.tensor == 0, kLayout, "tensor",
             "expected a divisor of the world of ", world, " processes, got ", layout.tensor);
  const int64_t data = world / layout.tensor;
  MOE8_CHECK(layout.expert >= 1 && data % layout.expert == 0, kLayout, "expert",
             "expected a divisor of ", data, ", the world of ", world,
             " processes by tensor = ", layout.tensor, ", got ", layout.expert);
}

std::vector<int64_t> every(int64_t count, int64_t first, int64_t step) {
  std::vector<int64_t> ranks;
  for (int64_t i = 0; i < count; ++i) ranks.push_back(first + i * step);
  return ranks;
}

}  // namespace

LayoutGroups layout_groups(const ParallelLayout& layout, int64_t world, int64_t rank) {
  check(layout, world);
  const int64_t data_size = world / layout.tensor;
  const int64_t tensor_rank = rank % layout.tensor, data_rank = rank / layout.tensor;
  const int64_t expert_rank = data_rank % layout.expert, replica = data_rank / layout.expert;
  const auto of_data_rank = [&](int64_t r) { return r * layout.tensor + tensor_rank; };
  // The ranks of a tensor group hold the same experts, and see different tokens.
  std::vector<int64_t> expert_data;
  for (int64_t r = expert_rank; r < data_size; r += layout.expert) {
    for (int64_t t = 0; t < layout.tensor; ++t) expert_data.push_back(r * layout.tensor + t);
  }
  return {.world = every(world, 0, 1),
          .data = every(data_size, of_data_rank(0), layout.tensor),
          .expert = every(layout.expert, of_data_rank(replica * layout.expert), layout.tensor),
          .expert_data = expert_data,
          .tensor = every(layout.tensor, data_rank * layout.tensor, 1)};
}

}  // namespace moe8
