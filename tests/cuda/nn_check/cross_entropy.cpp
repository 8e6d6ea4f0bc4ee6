// SPDX-License-Identifier: BSD-3-Clause
// The loss and its gradient: short and long rows at any address, ignored rows, targets that do not
// exist, infinities and NaN, the gradient over the logits and beside them.
#include "cuda/nn/cross_entropy.h"

#include <algorithm>
#include <cmath>

#include "cuda/nn_check/check.h"
#include "reference/model.h"

namespace moe8::cuda {
namespace {

constexpr int64_t kIgnored = -100;
constexpr float kUpstream = 0.75f;

struct Shape {
  int64_t rows, columns;
  int64_t shift = 0;
  bool hard = false;     // ignored rows, wrong targets, infinities, NaN
  bool divided = false;  // by a number that is given
};

std::vector<int64_t> targets_of(const Shape& s, std::mt19937& rng) {
  std::vector<int64_t> targets(static_cast<size_t>(s.rows));
  for (int64_t& target : targets) {
    target = static_cast<int64_t>(rng() % static_cast<uint64_t>(s.columns));
    if (s.hard && rng() % 4 == 0) target = kIgnored;
    if (s.hard && rng() % 9 == 0) target = rng() % 2 ? s.columns : -1;
  }
  return targets;
}

void spoil(const Shape& s, Numbers& logits, std::mt19937& rng) {
  for (int64_t row = 0; row < s.rows; ++row) {
    const auto any = [&] {
      return row * s.columns + static_cast<int64_t>(rng() % static_cast<uint64_t>(s.columns));
    };
    const auto dice = rng() % 12;
    if (dice == 0) logits.set(any(), -HUGE_VALF);
    if (dice == 1) logits.set(any(), HUGE_VALF);
    if (dice == 2) logits.set(any(), NAN);
    if (dice == 3) logits.set(any(), 1e37f);
    for (int64_t i = 0; dice == 4 && i < s.columns; ++i) {
      logits.set(row * s.columns + i, -HUGE_VALF);
    }
  }
}

/// What a row gives in float64.
struct RowResult {
  bool ignored, exists;
  double lse, loss;
};

RowResult row_result(const Numbers& logits, const Shape& s, int64_t row, int64_t target) {
  return with_numbers(logits, [&](const auto* x) {
    const auto* own = x + row * s.columns;
    RowResult r{target == kIgnored, target >= 0 && target < s.columns, 0, 0};
    const bool has_nan =
        std::any_of(own, own + s.columns, [](auto v) { return std::isnan(to_float(v)); });
    r.lse = has_nan ? NAN : reference::log_sum_exp(own, s.columns);
    if (!r.ignored) r.loss = r.exists ? r.lse - static_cast<double>(to_float(own[target])) : NAN;
    return r;
  });
}

struct Case {
  Shape shape;
  Numbers logits;
  std::vector<int64_t> targets;
  std::vector<RowResult> rows;
  double divisor = 0;
  std::string what;

  Case(const Shape& s, FloatType type, std::mt19937& rng)
      : shape(s),
        logits(type, s.rows * s.columns, rng, 3, s.shift),
        targets(targets_of(s, rng)),
        what("loss " + std::to_string(s.rows) + " x " + std::to_string(s.columns) + " shift " +
             std::to_string(s.shift) + (s.hard ? " hard " : " ") + name_of(type)) {
    if (s.hard) spoil(s, logits, rng);
    for (int64_t row = 0; row < s.rows; ++row) {
      rows.push_back(row_result(logits, s, row, targets[static_cast<size_t>(row)]));
      divisor += !rows.back().ignored;
    }
    if (s.divided) divisor = 7;
  }
};

Expected near_sum(double value) {
  return {value, 2e-6 * (1 + std::abs(value))};
}

void check_gradient(Case& c, CrossEntropyBackwardArgs args, Numbers& lse, bool in_place) {
  const Shape& s = c.shape;
  Numbers grad(c.logits.type(), c.logits.count(), s.shift);
  args.grad = grad.device();
  const auto launch = [&] {
    if (in_place) {  // over a copy of the logits
      args.logits = args.grad;
      const size_t bytes = static_cast<size_t>(c.logits.count()) * size_of(c.logits.type());
      require(cudaMemcpy(args.grad, c.logits.device(), bytes, cudaMemcpyDeviceToDevice), "copy");
    }
    return launch_cross_entropy_backward(args, nullptr);
  };
  run_twice(c.what + (in_place ? " gradient in place" : " gradient"), {&grad}, launch);
  const double scale = kUpstream / c.divisor;
  std::vector<Expected> expected;
  for (int64_t row = 0; row < s.rows; ++row) {
    const RowResult& r = c.rows[static_cast<size_t>(row)];
    const std::vector<double> exact = with_numbers(c.logits, [&](const auto* x) {
      return reference::cross_entropy_gradient(x + row * s.columns, s.columns, lse.at(row),
                                               c.targets[static_cast<size_t>(row)], scale);
    });
    for (const double value : exact) {
      const double wanted = r.ignored ? 0 : r.exists ? value : NAN;
      expected.push_back({wanted, r.ignored ? 0 : 1e-5 * std::abs(value) + 2e-7 * scale});
    }
  }
  expect_close(c.what + " gradient", grad, expected);
}

void check_shape(const Shape& s, FloatType type, std::mt19937& rng) {
  Case c(s, type, rng);
  const DeviceBytes targets(bytes_of(c.targets));
  Numbers lse(FloatType::F32, s.rows), losses(FloatType::F32, s.rows), loss(FloatType::F32, 1);
  Numbers divisor(FloatType::F32, 1), upstream(FloatType::F32, 1);
  upstream.set(0, kUpstream);
  const CrossEntropyRows rows{c.logits.device(),     type,    s.rows, s.columns,
                              targets.as<int64_t>(), kIgnored};
  CrossEntropyArgs args{};
  static_cast<CrossEntropyRows&>(args) = rows;
  args.lse = static_cast<float*>(lse.device());
  args.row_loss = static_cast<float*>(losses.device());
  args.loss = static_cast<float*>(loss.device());
  args.divisor = static_cast<float*>(divisor.device());
  args.count_rows = !s.divided;
  run_twice(c.what, {&lse, &losses, &loss}, [&] {
    if (s.divided) divisor.set(0, 7);
    return launch_cross_entropy(args, nullptr);
  });
  std::vector<Expected> lses, row_losses;
  double sum = 0;
  for (const RowResult& r : c.rows) {
    lses.push_back(near_sum(r.lse));
    row_losses.push_back({r.loss, r.ignored ? 0 : 2e-6 * (1 + std::abs(r.lse))});
    sum += r.loss;
  }
  expect_close(c.what + " lse", lse, lses);
  expect_close(c.what + " of rows", losses, row_losses);
  expect_close(c.what + " mean", loss, {near_sum(sum / c.divisor)});
  divisor.fetch();
  expect(divisor.at(0) == c.divisor, c.what + ": divisor");

  CrossEntropyBackwardArgs backward{};
  static_cast<CrossEntropyRows&>(backward) = rows;
  backward.lse = args.lse;
  backward.divisor = args.divisor;
  backward.grad_loss = static_cast<const float*>(upstream.device());
  for (const bool in_place : {false, true}) check_gradient(c, backward, lse, in_place);
}

}  // namespace

void check_cross_entropy(std::mt19937& rng, int random_shapes) {
  std::vector<Shape> shapes{{1, 1},
                            {3, 2},
                            {100, 7},
                            {33, 256},
                            {64, 257, 1},
                            {7, 4095},
                            {7, 4096},
                            {5, 4097, 3},
                            {3, 50257},
                            {2, 151936},
                            {2, 32001},
                            {2500, 8, 0},
                            {40, 300, 0, true},
                            {60, 5000, 0, true},
                            {0, 5},
                            {20, 64, 0, false, true}};
  for (int i = 0; i < random_shapes; ++i) {
    const bool is_long = rng() % 4 == 0;
    shapes.push_back({1 + static_cast<int64_t>(rng() % (is_long ? 8 : 90)),
                      1 + static_cast<int64_t>(rng() % (is_long ? 30000 : 900)),
                      static_cast<int64_t>(rng() % 2 * (rng() % 8)), rng() % 2 == 0,
                      rng() % 4 == 0});
  }
  for (const Shape& s : shapes) {
    for (const FloatType type : kTypes) check_shape(s, type, rng);
  }
}

}  // namespace moe8::cuda
