// SPDX-License-Identifier: BSD-3-Clause
// CPU quantizers against a copy of the same memory (the ceiling) and against the chain of ATen
// operations that computes the same (the baseline).
#include <torch/torch.h>

#include <iostream>

#include "harness.h"
#include "moe8/float8.h"
#include "moe8/mx.h"
#include "shapes.h"

namespace {

using at::Tensor;
using moe8::ElemDtype;
using moe8::ScaleCalculationMode;

// e4m3 codes with a power-of-two scale per row.
Tensor float8_rows_by_aten(const Tensor& x) {
  const Tensor scale =
      (448.0 / x.abs().amax({1}, true).to(at::kDouble).clamp_min(1e-12)).to(at::kFloat);
  const Tensor pow2 = scale.log2().floor().exp2();
  return (x.to(at::kFloat) * pow2).clamp(-448, 448).to(at::kFloat8_e4m3fn);
}

// bf16 values of e4m3 codes with a floor scale per 32 elements of the last axis.
Tensor mx_values_by_aten(const Tensor& x) {
  const Tensor blocks = x.to(at::kFloat).unflatten(-1, {-1, 32});
  const Tensor amax = blocks.abs().amax({-1}, true);
  const Tensor scale = (amax.log2().floor() - 8).exp2();
  const Tensor values =
      (blocks / scale).clamp(-448, 448).to(at::kFloat8_e4m3fn).to(at::kFloat) * scale;
  return values.flatten(-2).to(at::kBFloat16);
}

Tensor mx_columns_by_aten(const Tensor& x) {
  return mx_values_by_aten(x.t().contiguous()).t().contiguous();
}

bool differ(const char* what, const Tensor& a, const Tensor& b) {
  if (at::equal(a.to(at::kFloat), b.to(at::kFloat))) return false;
  std::cerr << what << ": the baseline computes something else; not timed\n";
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const moe8::bench::MatrixShape shape = moe8::bench::kCpuMatrixShapes[0];
  torch::manual_seed(1);
  const Tensor x = torch::randn({shape.rows, shape.cols}).to(at::kBFloat16);
  const double n = static_cast<double>(x.numel());
  Tensor target = at::empty_like(x);

  const auto float8_rows = [=] {
    return moe8::quantize_float8(x, moe8::Float8Granularity::axiswise(1), ElemDtype::E4M3, true)
        .data;
  };
  const auto mx = [=](int64_t axis) {
    return moe8::fake_quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::FLOOR, axis);
  };
  if (differ("float8 rows", float8_rows_by_aten(x), float8_rows()) ||
      differ("mx rows", mx_values_by_aten(x), mx(1)) ||
      differ("mx columns", mx_columns_by_aten(x), mx(0))) {
    return 1;
  }

  const std::string of = std::string(shape.name) + " bf16";
  const std::vector<moe8::bench::Row> rows = {
      {"copy", of, "-", 4 * n, 0, [=]() mutable { target.copy_(x); }},
      {"float8 rows, ATen chain", of, "e4m3 pow2", 3 * n, 0, [=] { float8_rows_by_aten(x); }, -1,
       0},
      {"float8 rows", of, "e4m3 pow2", 3 * n, 0, [=] { float8_rows(); }, 1, 0},
      {"float8 columns", of, "e4m3 pow2", 3 * n, 0,
       [=] {
         moe8::quantize_float8(x, moe8::Float8Granularity::axiswise(0), ElemDtype::E4M3, true);
       },
       1, 0},
      {"mx values both directions, ATen chain", of, "e4m3 floor", 6 * n, 0,
       [=] {
         mx_values_by_aten(x);
         mx_columns_by_aten(x);
       },
       -1, 0},
      {"mx values both directions", of, "e4m3 floor", 6 * n, 0,
       [=] {
         mx(1);
         mx(0);
       },
       4, 0},
      {"mx values rows", of, "e4m3 rceil", 4 * n, 0,
       [=] { moe8::fake_quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 1); }, -1, 0},
      {"mx values columns", of, "e4m3 rceil", 4 * n, 0,
       [=] { moe8::fake_quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 0); }, -1, 0},
      {"mx codes rows", of, "e4m3 rceil", 3 * n, 0,
       [=] { moe8::quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 1); }, -1, 0},
  };
  return moe8::bench::run_table("CPU quantizers", rows, argc, argv);
}
