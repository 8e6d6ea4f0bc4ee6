// SPDX-License-Identifier: BSD-3-Clause
// Blocked scale layouts against the formula of a byte's position, and their inverses.
#include "moe8/blocked_scales.h"

#include <ATen/ATen.h>

#include "formats/integers.h"
#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::offs_of;
using testing::same_bits;

// Where byte (r, c) of a [rows, cols] matrix of scales lies.
int64_t position(int64_t r, int64_t c, int64_t cols) {
  const int64_t tile = r / 128 * (round_up(cols, 4) / 4) + c / 4;
  return tile * 512 + r % 128 % 32 * 16 + r % 128 / 32 * 4 + c % 4;
}

at::Tensor random_scales(at::IntArrayRef sizes) {
  return at::randint(1, 255, sizes, at::make_generator<at::CPUGeneratorImpl>(1), at::kLong)
      .to(at::kByte);
}

at::Tensor expected_blocked(const at::Tensor& scale) {
  const int64_t rows = scale.size(0);
  const int64_t cols = scale.size(1);
  at::Tensor out = at::zeros({round_up(rows, 128) * round_up(cols, 4)}, at::kByte);
  const at::Tensor source = scale.contiguous();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      out.mutable_data_ptr<uint8_t>()[position(r, c, cols)] =
          source.const_data_ptr<uint8_t>()[r * cols + c];
    }
  }
  return out;
}

TEST(BlockedScales, FollowsTheFormulaAndComesBack) {
  for (auto [rows, cols] : {std::pair<int64_t, int64_t>{128, 4},
                            {200, 7},
                            {64, 12},
                            {1, 1},
                            {129, 5},
                            {0, 4},
                            {3, 0}}) {
    const at::Tensor scale = random_scales({rows, cols});
    const at::Tensor blocked = to_blocked(scale);
    EXPECT_TRUE(same_bits(expected_blocked(scale), blocked)) << rows << " x " << cols;
    EXPECT_TRUE(same_bits(scale, from_blocked(blocked, rows, cols)));
    const at::Tensor e8m0 = scale.view(at::kFloat8_e8m0fnu);
    EXPECT_TRUE(same_bits(e8m0, from_blocked(to_blocked(e8m0), rows, cols)));
  }
}

TEST(BlockedScales, MGroups) {
  const std::vector<int64_t> sizes = {0, 1, 127, 128, 129, 0, 33};
  const at::Tensor offs = offs_of(sizes);
  const at::Tensor scale = random_scales({430, 6});  // 12 rows past the last group
  const BlockedGroups result = to_blocked_m_groups(scale, offs);
  ASSERT_EQ(result.blocked.sizes(), at::IntArrayRef({430 + 128 * 7, 8}));
  int64_t row = 0;
  int64_t start = 0;
  for (size_t g = 0; g < sizes.size(); ++g) {
    EXPECT_EQ(result.start[g].item<int64_t>(), start);
    const int64_t rows = round_up(sizes[g], 128);
    EXPECT_TRUE(same_bits(expected_blocked(scale.narrow(0, row, sizes[g])),
                          result.blocked.narrow(0, start, rows).reshape({-1})));
    row += sizes[g];
    start += rows;
  }
  EXPECT_TRUE(result.blocked.slice(0, start).eq(0).all().item<bool>());
  const at::Tensor back = from_blocked_m_groups(result.blocked, offs, 430, 6);
  EXPECT_TRUE(same_bits(scale.narrow(0, 0, row), back.narrow(0, 0, row)));
  EXPECT_TRUE(back.slice(0, row).eq(0).all().item<bool>());
}

TEST(BlockedScales, KGroups) {
  const std::vector<int64_t> sizes = {4, 0, 1, 7};
  const at::Tensor offs = offs_of(sizes);
  const at::Tensor scale = random_scales({140, 13});  // 1 column past the last group
  const BlockedGroups result = to_blocked_k_groups(scale, offs);
  ASSERT_EQ(result.blocked.sizes(), at::IntArrayRef({256, 13 + 4 * 4}));
  const at::Tensor flat = result.blocked.reshape({-1});
  int64_t column = 0;
  int64_t start = 0;
  for (size_t g = 0; g < sizes.size(); ++g) {
    EXPECT_EQ(result.start[g].item<int64_t>(), start);
    const int64_t width = round_up(sizes[g], 4);
    EXPECT_TRUE(same_bits(expected_blocked(scale.narrow(1, column, sizes[g])),
                          flat.narrow(0, 256 * start, 256 * width)));
    column += sizes[g];
    start += width;
  }
  EXPECT_TRUE(flat.slice(0, 256 * start).eq(0).all().item<bool>());
  const at::Tensor back = from_blocked_k_groups(result.blocked, offs, 140, 13);
  EXPECT_TRUE(
      same_bits(scale.narrow(1, 0, column).contiguous(), back.narrow(1, 0, column).contiguous()));
}

TEST(BlockedScales, ThreeD) {
  const at::Tensor scale = random_scales({3, 136, 6});
  const at::Tensor blocked = to_blocked_3d(scale);
  ASSERT_EQ(blocked.sizes(), at::IntArrayRef({3, int64_t{256} * 8}));
  for (int64_t e = 0; e < 3; ++e) EXPECT_TRUE(same_bits(to_blocked(scale[e]), blocked[e]));
  EXPECT_TRUE(same_bits(scale, from_blocked_3d(blocked, 136, 6)));
}

TEST(BlockedScales, MisuseIsToldInWords) {
  const at::Tensor scale = random_scales({4, 4});
  EXPECT_THAT(error_of([&] { to_blocked(scale.to(at::kFloat)); }),
              HasSubstr("[to_blocked] scale: expected 2-D uint8 or float8_e8m0fnu, got Float"));
  EXPECT_THAT(error_of([&] { to_blocked_3d(scale); }), HasSubstr("expected 3-D"));
  EXPECT_THAT(error_of([&] { from_blocked(to_blocked(scale), 200, 4); }),
              HasSubstr("expected [1024], got [512]"));
  EXPECT_THAT(error_of([&] { from_blocked(to_blocked(scale), -1, 4); }), HasSubstr("at least 0"));
  EXPECT_THAT(error_of([&] { to_blocked_m_groups(scale, offs_of({5})); }), HasSubstr("at most 4"));
}

}  // namespace
}  // namespace moe8
