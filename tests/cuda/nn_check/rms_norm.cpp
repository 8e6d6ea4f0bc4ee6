// SPDX-License-Identifier: BSD-3-Clause
// RMSNorm: every number of threads per row, widths and addresses that take no packets, sums, and
// gradients with and without one that comes from elsewhere.
#include "cuda/nn/rms_norm.h"

#include <algorithm>
#include <cmath>

#include "cuda/nn_check/check.h"
#include "reference/model.h"

namespace moe8::cuda {
namespace {

constexpr float kEps = 1e-5f;

struct Shape {
  int64_t rows, columns;
  int64_t shift = 0;
};

struct Case {
  Shape s;
  FloatType type;
  bool has_sum;
  std::string what;
  int64_t count;
  Numbers x, added, weight, grad, grad_sum;
  Numbers sum, out, rstd;

  Case(const Shape& shape, FloatType t, bool with_sum, std::mt19937& rng)
      : s(shape),
        type(t),
        has_sum(with_sum),
        what("norm " + std::to_string(s.rows) + " x " + std::to_string(s.columns) + " shift " +
             std::to_string(s.shift) + " " + name_of(type) + (has_sum ? " of a sum" : "")),
        count(s.rows * s.columns),
        x(type, count, rng, 2, s.shift),
        added(type, count, rng, 1, s.shift),
        weight(type, s.columns, rng, 1, s.shift),
        grad(type, count, rng, 1, s.shift),
        grad_sum(type, count, rng, 1, s.shift),
        sum(type, count, s.shift),
        out(type, count, s.shift),
        rstd(FloatType::F32, s.rows) {}

  const Numbers& h() const { return has_sum ? sum : x; }
};

void check_forward(Case& c) {
  const RmsNormArgs args{c.x.device(),
                         c.has_sum ? c.added.device() : nullptr,
                         c.has_sum ? c.sum.device() : nullptr,
                         c.weight.device(),
                         c.type,
                         c.s.rows,
                         c.s.columns,
                         kEps,
                         c.out.device(),
                         static_cast<float*>(c.rstd.device())};
  std::vector<Numbers*> results{&c.out, &c.rstd};
  if (c.has_sum) results.push_back(&c.sum);
  run_twice(c.what, results, [&] { return launch_rms_norm(args, nullptr); });
  if (c.has_sum) {
    std::vector<Expected> sums;
    for (int64_t i = 0; i < c.count; ++i) sums.push_back({c.x.at(i) + c.added.at(i), 1e-7});
    expect_close(c.what + " sum", c.sum, sums);
  }
  std::vector<Expected> scales, values;
  for (int64_t row = 0; row < c.s.rows; ++row) {
    const double scale = with_numbers(c.h(), [&](const auto* h) {
      return reference::rms_norm_scale(h + row * c.s.columns, c.s.columns, double(kEps));
    });
    scales.push_back({scale, 2e-6 * scale});
    for (int64_t i = 0; i < c.s.columns; ++i) {
      const double value = c.h().at(row * c.s.columns + i) * scale * c.weight.at(i);
      values.push_back({value, 2e-6 * std::abs(value)});
    }
  }
  expect_close(c.what + " rstd", c.rstd, scales);
  expect_close(c.what + " out", c.out, values);
}

void check_backward(Case& c, bool has_grad_sum) {
  Numbers grad_x(c.type, c.count, c.s.shift), grad_weight(c.type, c.s.columns);
  RmsNormBackwardArgs args{c.h().device(),
                           c.weight.device(),
                           static_cast<const float*>(c.rstd.device()),
                           c.grad.device(),
                           has_grad_sum ? c.grad_sum.device() : nullptr,
                           c.type,
                           c.s.rows,
                           c.s.columns,
                           grad_x.device(),
                           grad_weight.device(),
                           nullptr};
  Numbers workspace(FloatType::F32, rms_norm_workspace(args));
  args.workspace = static_cast<float*>(workspace.device());
  const std::string what = c.what + (has_grad_sum ? " gradient with another" : " gradient");
  run_twice(what, {&grad_x, &grad_weight}, [&] {
    workspace.poison();
    return launch_rms_norm_backward(args, nullptr);
  });
  expect(workspace.is_intact(), what + ": wrote outside the workspace");
  std::vector<Expected> of_x;
  std::vector<Expected> of_weight(static_cast<size_t>(c.s.columns), Expected{0, 0});
  for (int64_t row = 0; row < c.s.rows; ++row) {
    const int64_t start = row * c.s.columns;
    std::vector<double> exact = with_numbers(c.h(), [&](const auto* h) {
      using T = std::remove_cv_t<std::remove_pointer_t<decltype(h)>>;
      return reference::rms_norm_gradient(h + start, static_cast<const T*>(c.weight.host()),
                                          static_cast<const T*>(c.grad.host()) + start, c.s.columns,
                                          c.rstd.at(row));
    });
    double largest = 0;  // of the terms, which may cancel
    for (int64_t i = 0; i < c.s.columns; ++i) {
      const double g = c.grad.at(start + i) * c.weight.at(i);
      largest = std::max(largest, std::abs(g * c.rstd.at(row)));
    }
    for (int64_t i = 0; i < c.s.columns; ++i) {
      const double other = has_grad_sum ? c.grad_sum.at(start + i) : 0;
      of_x.push_back({exact[static_cast<size_t>(i)] + other, 4e-6 * (largest + std::abs(other))});
      const double term = c.grad.at(start + i) * c.h().at(start + i) * c.rstd.at(row);
      of_weight[static_cast<size_t>(i)].value += term;
      of_weight[static_cast<size_t>(i)].tolerance += 1e-6 * std::abs(term);
    }
  }
  expect_close(what + " x", grad_x, of_x);
  expect_close(what + " weight", grad_weight, of_weight);
}

}  // namespace

void check_rms_norm(std::mt19937& rng, int random_shapes) {
  std::vector<Shape> shapes{{1, 8},    {5, 1},    {300, 768},  {7, 2048},  {3000, 64}, {9, 1024},
                            {9, 1032}, {4, 4096}, {4, 4104},   {3, 8192},  {3, 16384}, {2, 16392},
                            {20, 100}, {6, 769},  {5, 768, 1}, {2, 20000}, {0, 64},    {1100, 24}};
  for (int i = 0; i < random_shapes; ++i) {
    const int64_t columns = 1 + static_cast<int64_t>(rng() % 1500);
    shapes.push_back({1 + static_cast<int64_t>(rng() % 400), rng() % 2 ? 8 * columns : columns,
                      rng() % 4 == 0 ? 1 + static_cast<int64_t>(rng() % 7) : 0});
    if (shapes.back().columns > 2000) shapes.back().rows = 1 + shapes.back().rows % 8;
  }
  for (const Shape& s : shapes) {
    for (const FloatType type : kTypes) {
      for (const bool has_sum : {false, true}) {
        Case c(s, type, has_sum, rng);
        check_forward(c);
        for (const bool has_grad_sum : {false, true}) check_backward(c, has_grad_sum);
      }
    }
  }
}

}  // namespace moe8::cuda
