// SPDX-License-Identifier: BSD-3-Clause
#include "groups/token_groups.h"

#include <torch/torch.h>

#include "groups/padded_tokens.h"
#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

using ::testing::HasSubstr;
using testing::offs_of;

TEST(TokenGroups, TheHostKnowsTheirEnds) {
  EXPECT_EQ(TokenGroups().ends_on_host(7), std::vector<int64_t>({7}));
  EXPECT_EQ(TokenGroups(offs_of({3, 0, 4})).ends_on_host(9), std::vector<int64_t>({3, 3, 7}));
  EXPECT_TRUE(TokenGroups(at::empty({0}, at::kInt)).ends_on_host(9).empty());
}

TEST(TokenGroups, WrongEndsAreErrorsOnTheHost) {
  const auto ends = [](at::ArrayRef<int> values) { return torch::tensor(values, at::kInt); };
  EXPECT_THAT(testing::error_of([&] {
                TokenGroups(ends({5, 3})).ends_on_host(9);
              }),
              HasSubstr("offs: expected non-decreasing end rows from 0 on, got 3 after 5"));
  EXPECT_THAT(testing::error_of([&] {
                TokenGroups(ends({5, 10})).ends_on_host(9);
              }),
              HasSubstr("offs: expected end rows of at most 9, the rows there are, got 10"));
}

TEST(PaddedTokens, ComeBackAsTheyWere) {
  const at::Tensor x = testing::wide_normal({150, 5}, at::kFloat, 3);
  for (const std::vector<int64_t>& sizes :
       {std::vector<int64_t>{0, 1, 31, 32, 33, 0}, {150}, {0, 0}, {64, 64}}) {
    const at::Tensor offs = offs_of(sizes);
    const int64_t in_groups = offs[-1].item<int64_t>();
    for (const int64_t padding : {4, 32, 128}) {
      const PaddedTokens tokens =
          pad_tokens(offs, 150, padding, padded_row_bound(150, offs.numel(), padding));
      const at::Tensor padded = to_padded(x, tokens);
      const at::Tensor back = from_padded(padded, tokens);
      EXPECT_TRUE(testing::same_bits(x.slice(0, 0, in_groups), back.slice(0, 0, in_groups)));
      EXPECT_EQ(back.slice(0, in_groups).count_nonzero().item<int64_t>(), 0);
      EXPECT_EQ(padded.count_nonzero().item<int64_t>(),
                x.slice(0, 0, in_groups).count_nonzero().item<int64_t>());
    }
  }
}

}  // namespace
}  // namespace moe8
