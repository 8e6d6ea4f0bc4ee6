// SPDX-License-Identifier: BSD-3-Clause
// What processes send each other over Gloo, in real processes.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"
#include "dist/exchanges.h"
#include "dist/group.h"
#include "moe8/parallel.h"
#include "testing/processes.h"

namespace moe8 {
namespace {

using testing::in_processes;

const std::vector<at::ScalarType> kDtypes = {
    at::kFloat, at::kBFloat16, at::kHalf,          at::kDouble,      at::kLong,          at::kInt,
    at::kByte,  at::kBool,     at::kFloat8_e4m3fn, at::kFloat8_e5m2, at::kFloat8_e8m0fnu};

// Values that say who made them, as codes of a dtype.
at::Tensor rows_of(int64_t rank, int64_t rows, int64_t columns, at::ScalarType dtype) {
  const at::Tensor values =
      (at::arange(rows * columns) + 7 * rank).remainder(251).to(at::kByte).view({rows, columns});
  if (at::elementSize(dtype) == 1) {
    return dtype == at::kBool ? values.remainder(2).to(at::kBool) : values.view(dtype);
  }
  return values.to(dtype);
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         a.contiguous().view(at::kByte).equal(b.contiguous().view(at::kByte));
}

// What `from` sends `to`: some of them nothing.
int64_t rows_between(int64_t from, int64_t to) {
  return (3 * from + 5 * to + 1) % 4;
}

TEST(Collectives, MoveRowsOfEveryDtype) {
  in_processes({1, 2, 4}, [](Parallel& p) {
    const Group& world = p.world();
    const int64_t n = world.size(), me = world.rank();
    std::vector<int64_t> in_rows, out_rows;
    for (int64_t r = 0; r < n; ++r) in_rows.push_back(rows_between(me, r));
    for (int64_t r = 0; r < n; ++r) out_rows.push_back(rows_between(r, me));
    for (const at::ScalarType dtype : kDtypes) {
      SCOPED_TRACE(at::toString(dtype));
      std::vector<at::Tensor> sent, expected, gathered;
      for (int64_t r = 0; r < n; ++r) {
        sent.push_back(rows_of(10 * me + r, rows_between(me, r), 3, dtype));
        expected.push_back(rows_of(10 * r + me, rows_between(r, me), 3, dtype));
        gathered.push_back(rows_of(r, 2, 3, dtype));
      }
      EXPECT_TRUE(
          same_bits(all_to_all(world, at::cat(sent), in_rows, out_rows), at::cat(expected)));
      EXPECT_TRUE(same_bits(all_gather(world, rows_of(me, 2, 3, dtype)), at::cat(gathered)));
      const at::Tensor last = rows_of(me, 2, 3, dtype).clone();
      broadcast_(world, last, n - 1);
      EXPECT_TRUE(same_bits(last, rows_of(n - 1, 2, 3, dtype)));
    }
    // One axis, no columns, columns in another order, nothing at all.
    const at::Tensor numbers = at::arange(n) + 100 * me;
    const std::vector<int64_t> ones(static_cast<size_t>(n), 1), zeros(static_cast<size_t>(n), 0);
    EXPECT_TRUE(all_to_all(world, numbers, ones, ones).equal(100 * at::arange(n) + me));
    EXPECT_EQ(all_to_all(world, at::empty({n, 0}), ones, ones).sizes(), at::IntArrayRef({n, 0}));
    EXPECT_TRUE(all_gather(world, at::arange(6).view({2, 3}).t())
                    .narrow(0, 0, 3)
                    .equal(at::arange(6).view({2, 3}).t()));
    EXPECT_EQ(all_to_all(world, at::empty({0, 5}), zeros, zeros).size(0), 0);
    EXPECT_EQ(all_gather(world, at::empty({0, 5})).sizes(), at::IntArrayRef({0, 5}));
    barrier(world);
  });
}

TEST(Collectives, TwoExchangesMayBeOnTheirWay) {
  in_processes({2, 4}, [](Parallel& p) {
    const Group& world = p.world();
    const std::vector<int64_t> ones(static_cast<size_t>(world.size()), 1);
    Pending first = begin_all_to_all(world, at::full({world.size()}, world.rank()), ones, ones);
    Pending second = begin_all_gather(world, at::full({1}, 10 * world.rank()));
    Pending third = begin_reduce_scatter(world, at::ones({world.size()}));
    EXPECT_TRUE(third.wait().equal(at::full({1}, static_cast<float>(world.size()))));
    EXPECT_TRUE(second.wait().equal(10 * at::arange(world.size())));
    EXPECT_TRUE(first.wait().equal(at::arange(world.size())));
    EXPECT_FALSE(first.valid());
    EXPECT_THROW(first.wait(), c10::Error);
  });
}

// To the rank before, from the rank after; some have no rows.
TEST(Collectives, OneSendsWhileItReceives) {
  in_processes({2, 4}, [](Parallel& p) {
    const Group& world = p.world();
    const int64_t size = world.size(), rank = world.rank(), step = size - 1;
    const int64_t to = (rank + step) % size, from = (rank + size - step) % size;
    for (const at::ScalarType dtype : kDtypes) {
      const at::Tensor out = rows_of(rank, rows_between(rank, to), 5, dtype);
      const at::Tensor expected = rows_of(from, rows_between(from, rank), 5, dtype);
      const at::Tensor all = at::zeros({expected.size(0) + 2, 5}, out.options());
      const at::Tensor in = all.narrow(0, 1, expected.size(0));
      Pending coming = begin_send_and_receive(world, out, to, in, from);
      EXPECT_TRUE(same_bits(coming.wait(), expected)) << dtype;
      EXPECT_TRUE(same_bits(in, expected)) << dtype;  // where it was to come
      EXPECT_TRUE(same_bits(all[0], at::zeros_like(all[0])));
    }
  });
}

// Ranks may begin exchanges of the group and of its background in different orders.
TEST(Collectives, TheBackgroundIsATransportOfItsOwn) {
  in_processes({1, 3}, [](Parallel& p) {
    const Group& world = p.world();
    const Group beside = background(world);
    EXPECT_EQ(beside.process_group(), background(world).process_group());
    EXPECT_EQ(beside.process_group() == world.process_group(), world.size() == 1);
    EXPECT_EQ(beside.ranks(), world.ranks());
    EXPECT_EQ(beside.rank(), world.rank());
    const std::vector<int64_t> ones(static_cast<size_t>(world.size()), 1);
    const at::Tensor own = at::full({world.size()}, world.rank());
    const bool is_odd = world.rank() % 2 == 1;
    Pending first = begin_all_to_all(is_odd ? beside : world, own, ones, ones);
    Pending second = begin_all_to_all(is_odd ? world : beside, own, ones, ones);
    EXPECT_TRUE(second.wait().equal(at::arange(world.size())));
    EXPECT_TRUE(first.wait().equal(at::arange(world.size())));
  });
}

TEST(Collectives, SumsAddInTheOrderOfRanks) {
  in_processes({1, 2, 4}, [](Parallel& p) {
    const Group& world = p.world();
    const int64_t n = world.size();
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble, at::kLong}) {
      for (const int64_t rows : {int64_t{1}, int64_t{5000}}) {
        at::Tensor sum, mine;
        for (int64_t r = 0; r < n; ++r) {
          at::manual_seed(static_cast<uint64_t>(r + 1));
          const at::Tensor x = at::randn({n * rows, 2}).mul(1000).to(dtype);
          if (r == world.rank()) mine = x;
          const at::ScalarType wide = dtype == at::kBFloat16 ? at::kFloat : dtype;
          sum = sum.defined() ? sum + x : x.to(wide);
        }
        sum = sum.to(dtype);
        EXPECT_TRUE(
            same_bits(reduce_scatter(world, mine), sum.narrow(0, world.rank() * rows, rows)));
        const at::Tensor all = mine.clone();
        all_reduce_(world, all);
        EXPECT_TRUE(same_bits(all, sum));
      }
    }
    const at::Tensor scalar = at::full({}, static_cast<double>(p.world().rank()));
    all_reduce_(world, scalar, Reduction::MAX);
    EXPECT_EQ(scalar.item<double>(), static_cast<double>(n - 1));
    all_reduce_(world, scalar);
    EXPECT_EQ(scalar.item<double>(), static_cast<double>(n * (n - 1)));
    const at::Tensor least = at::full({2}, world.rank() + 3);
    all_reduce_(world, least, Reduction::MIN);
    EXPECT_TRUE(least.equal(at::full({2}, int64_t{3})));
  });
}

TEST(Collectives, TextsOfAnyLength) {
  in_processes({1, 4}, [](Parallel& p) {
    const std::string own(static_cast<size_t>(3 * p.world().rank()), 'x');
    const std::vector<std::string> all = all_gather_text(p.world(), own);
    ASSERT_EQ(static_cast<int64_t>(all.size()), p.world().size());
    for (size_t r = 0; r < all.size(); ++r) EXPECT_EQ(all[r], std::string(3 * r, 'x'));
    EXPECT_EQ(all_gather_text(p.world(), "").back(), "");
  });
}

std::string error_of(const std::function<void()>& function) {
  try {
    function();
  } catch (const c10::Error& error) {
    return message_of(error);
  }
  return "no error";
}

TEST(Collectives, WrongArgumentsAreErrorsBeforeAnythingIsSent) {
  in_processes({2}, [](Parallel& p) {
    const Group& world = p.world();
    const at::Tensor x = at::ones({3, 2});
    const std::vector<int64_t> good{1, 2}, few{1}, negative{4, -1};
    EXPECT_EQ(error_of([&] { all_to_all(world, x, few, good); }),
              "[all_to_all] in_rows: expected 2 numbers of rows that add up to 3, got [1]");
    EXPECT_EQ(error_of([&] { all_to_all(world, x, negative, good); }),
              "[all_to_all] in_rows: expected 2 numbers of rows that add up to 3, got [4, -1]");
    EXPECT_EQ(error_of([&] { all_to_all(world, x, good, few); }),
              "[all_to_all] out_rows: expected 2 numbers of rows, got [1]");
    EXPECT_EQ(error_of([&] { reduce_scatter(world, x); }),
              "[reduce_scatter] in: expected a multiple of 2 rows, got Float [3, 2] on cpu");
    EXPECT_EQ(error_of([&] { all_reduce_(world, x.to(at::kFloat8_e4m3fn)); }),
              "[all_reduce_] tensor: expected a floating-point or integer dtype that has sums, got "
              "Float8_e4m3fn [3, 2] on cpu");
    EXPECT_EQ(error_of([&] { broadcast_(world, x, 2); }),
              "[broadcast_] from: expected a rank of 0 to 1, got 2");
    EXPECT_EQ(error_of([&] { broadcast_(world, x.t(), 0); }),
              "[broadcast_] tensor: expected a contiguous tensor, got Float [2, 3] on cpu");
  });
}

}  // namespace
}  // namespace moe8
