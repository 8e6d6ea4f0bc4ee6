// SPDX-License-Identifier: BSD-3-Clause
#include "dist/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"

namespace moe8 {
namespace {

using ::testing::ElementsAre;

std::string error_of(const ParallelLayout& layout, int64_t world) {
  try {
    layout_groups(layout, world, 0);
  } catch (const c10::Error& error) {
    return message_of(error);
  }
  return "no error";
}

TEST(Layout, ExpertGroupsAreNeighboursAmongTheRanksOfOneTensorRank) {
  // rank = (replica * 2 + expert_rank) * 2 + tensor_rank
  const LayoutGroups g = layout_groups({.expert = 2, .tensor = 2}, 8, 5);
  EXPECT_THAT(g.world, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(g.data, ElementsAre(1, 3, 5, 7));
  EXPECT_THAT(g.expert, ElementsAre(5, 7));
  EXPECT_THAT(g.expert_data, ElementsAre(0, 1, 4, 5));
  EXPECT_THAT(g.tensor, ElementsAre(4, 5));
}

void expect_members_agree(const ParallelLayout& layout, int64_t world, int64_t rank) {
  const LayoutGroups own = layout_groups(layout, world, rank);
  for (const auto member : {&LayoutGroups::world, &LayoutGroups::data, &LayoutGroups::expert,
                            &LayoutGroups::expert_data, &LayoutGroups::tensor}) {
    EXPECT_THAT(own.*member, ::testing::Contains(rank));
    for (const int64_t other : own.*member) {
      EXPECT_EQ(layout_groups(layout, world, other).*member, own.*member);
    }
  }
  EXPECT_EQ(own.expert.size() * own.expert_data.size(), own.world.size());
}

TEST(Layout, EveryGroupHoldsTheRankAndAllMembersAgree) {
  for (const int64_t world : {1, 2, 4, 6, 8, 12}) {
    for (int64_t tensor = 1; tensor <= world; ++tensor) {
      for (int64_t expert = 1; expert <= world; ++expert) {
        const ParallelLayout layout{.expert = expert, .tensor = tensor};
        if (world % tensor != 0 || (world / tensor) % expert != 0) continue;
        for (int64_t rank = 0; rank < world; ++rank) expect_members_agree(layout, world, rank);
      }
    }
  }
}

TEST(Layout, WhatDoesNotDivideIsAnError) {
  EXPECT_EQ(error_of({.tensor = 3}, 8),
            "[parallel] tensor: expected a divisor of the world of 8 processes, got 3");
  EXPECT_EQ(error_of({.expert = 3}, 8),
            "[parallel] expert: expected a divisor of 8, the world of 8 processes by tensor = 1, "
            "got 3");
  EXPECT_EQ(error_of({.expert = 8, .tensor = 2}, 8),
            "[parallel] expert: expected a divisor of 4, the world of 8 processes by tensor = 2, "
            "got 8");
  EXPECT_EQ(error_of({.expert = 0}, 8).substr(0, 28), "[parallel] expert: expected ");
}

}  // namespace
}  // namespace moe8
