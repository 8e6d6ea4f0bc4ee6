// SPDX-License-Identifier: BSD-3-Clause
// Samples of operands are quantized anew on the CPU, which gives the same bits on every device
// (docs/numerics.md).
#include "numerics/measure.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/matmul.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <variant>

#include "base/overloaded.h"
#include "formats/elem.h"
#include "moe8/float8.h"
#include "moe8/mx.h"

namespace moe8 {
namespace {

constexpr double kMinSqnr = -200;

at::Tensor as(at::ScalarType dtype, const at::Tensor& x) {
  return x.to(at::kCPU, dtype).contiguous();
}

// ---- quantized samples ------------------------------------------------------
struct Quantized {
  at::Tensor values;  // float32
  at::Tensor codes;   // float32: what the codes are without their scales; undefined: no codes
};

Quantized quantized(const OperandSample& sample, const at::Tensor& x, const MxFormat& f) {
  MXTensor mx = quantize_mx(x, f.elem, f.mode, sample.axis, sample.offs);
  const at::Tensor values = dequantize(mx, at::kFloat);
  const at::Tensor bytes = mx.scale.view(at::kByte);
  mx.scale = at::full_like(bytes, 127).view(at::kFloat8_e8m0fnu);  // 2^0
  return {values, dequantize(mx, at::kFloat)};
}

Quantized quantized(const OperandSample& sample, const at::Tensor& values, const Float8Format& f,
                    double amax) {
  const bool whole = f.granularity == ScalingGranularity::TENSORWISE;
  // A tensor's one scale follows from the amax of all of it: that value goes along.
  const at::Tensor x =
      whole ? at::cat({values.flatten(), at::full({1}, amax, values.options())}) : values;
  const Float8Tensor q = quantize_float8(
      x, whole ? Float8Granularity::tensorwise() : Float8Granularity::axiswise(sample.axis), f.elem,
      f.round_scales_to_power_of_2, whole ? std::nullopt : sample.offs);
  return {dequantize(q, at::kFloat), q.data.to(at::kFloat)};
}

// Beyond `max` by more than rounding explains: a format without limit would have a larger code.
double saturation_ratio(ElemDtype elem) {
  const ElemLayout f = layout_of(elem);
  return 1 + std::ldexp(0.5, f.max_exponent - f.mantissa_bits) / static_cast<double>(f.max);
}

OperandSums sums_over(const at::Tensor& x, const Quantized& q, ElemDtype elem) {
  const double max = static_cast<double>(layout_of(elem).max);
  const double ratio = saturation_ratio(elem);
  const auto* xs = x.const_data_ptr<float>();
  const auto* qs = q.values.const_data_ptr<float>();
  const auto* codes = q.codes.const_data_ptr<float>();
  OperandSums sums;
  sums.error.values = x.numel();
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double source = static_cast<double>(xs[i]), value = static_cast<double>(qs[i]);
    if (!std::isfinite(value)) {
      ++sums.error.nonfinite;
      continue;
    }
    sums.nonzero += source != 0;
    sums.underflow += source != 0 && value == 0;
    sums.saturated += std::abs(static_cast<double>(codes[i])) >= max &&
                      std::abs(source) > std::abs(value) * ratio;
    sums.error.signal += source * source;
    sums.error.noise += (source - value) * (source - value);
  }
  return sums;
}

OperandSums sums_in_high_precision(const at::Tensor& x) {
  OperandSums sums;
  sums.error.values = x.numel();
  const auto* xs = x.const_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double source = static_cast<double>(xs[i]);
    const bool finite = std::isfinite(source);
    sums.error.nonfinite += !finite;
    sums.nonzero += finite && source != 0;
    if (finite) sums.error.signal += source * source;
  }
  return sums;
}

// NaN where one of the magnitudes is NaN.
double amax_of(const OperandSample& sample) {
  const at::Tensor parts = as(at::kFloat, sample.magnitudes);
  const auto* magnitudes = parts.const_data_ptr<float>();
  double amax = 0;
  for (int64_t i = 0; i < parts.numel() && !std::isnan(amax); ++i) {
    const auto magnitude = static_cast<double>(magnitudes[i]);
    if (!(magnitude <= amax)) amax = magnitude;
  }
  return amax;
}

OperandSums sums_of(const OperandSample& sample, const OperandFormat& format) {
  const at::Tensor x = as(at::kFloat, sample.x);
  const double amax = amax_of(sample);
  OperandSums sums = std::visit(
      Overloaded{[&](const HighPrecision&) { return sums_in_high_precision(x); },
                 [&](const MxFormat& f) { return sums_over(x, quantized(sample, x, f), f.elem); },
                 [&](const Float8Format& f) {
                   return sums_over(x, quantized(sample, x, f, amax), f.elem);
                 }},
      format);
  sums.amax = amax;
  return sums;
}

// ---- results ----------------------------------------------------------------
void add_errors(ErrorSums& sums, const at::Tensor& reference, const at::Tensor& got) {
  const at::Tensor expected = as(at::kDouble, reference), actual = as(at::kDouble, got);
  const auto* e = expected.const_data_ptr<double>();
  const auto* a = actual.const_data_ptr<double>();
  sums.values += expected.numel();
  for (int64_t i = 0; i < expected.numel(); ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(e[i])) {
      ++sums.nonfinite;
      continue;
    }
    sums.signal += e[i] * e[i];
    sums.noise += (e[i] - a[i]) * (e[i] - a[i]);
  }
}

ErrorSums sums_of(Gemm gemm, const ResultSample& sample) {
  ErrorSums sums;
  if (sample.expected.defined()) {
    add_errors(sums, sample.expected.sum(1), sample.got);
    return sums;
  }
  int64_t begin = 0;
  for (size_t g = 0; g < sample.rows.size(); ++g) {
    const auto rows = [&](const at::Tensor& x) { return x.narrow(0, begin, sample.rows[g]); };
    const at::Tensor weight = as(at::kDouble, sample.right.select(0, static_cast<int64_t>(g)));
    const at::Tensor left = as(at::kDouble, rows(sample.left));
    add_errors(sums, at::matmul(left, gemm == Gemm::OUT ? weight.t() : weight), rows(sample.got));
    begin += sample.rows[g];
  }
  return sums;
}

}  // namespace

// ---- sums -------------------------------------------------------------------
void ErrorSums::add(const ErrorSums& other) {
  values += other.values;
  nonfinite += other.nonfinite;
  signal += other.signal;
  noise += other.noise;
}

double ErrorSums::sqnr_db() const {
  if (noise == 0) return std::numeric_limits<double>::infinity();
  return std::max(kMinSqnr, 10 * std::log10(signal / noise));
}

void OperandSums::add(const OperandSums& other) {
  error.add(other.error);
  if (!(amax > other.amax) && !std::isnan(amax)) amax = other.amax;  // NaN stays
  nonzero += other.nonzero;
  underflow += other.underflow;
  saturated += other.saturated;
}

void GemmSums::add(const GemmSums& other) {
  calls += other.calls;
  left.add(other.left);
  right.add(other.right);
  result.add(other.result);
  tokens.resize(std::max(tokens.size(), other.tokens.size()));
  for (size_t i = 0; i < other.tokens.size(); ++i) tokens[i] += other.tokens[i];
}

// ---- one product ------------------------------------------------------------
GemmSums sums_of(const ProductSample& sample) {
  GemmSums sums;
  sums.calls = 1;
  sums.tokens = sample.tokens;
  if (sample.is_empty) return sums;
  sums.left = sums_of(sample.left, sample.formats.left);
  sums.right = sums_of(sample.right, sample.formats.right);
  sums.result = sums_of(sample.gemm, sample.result);
  return sums;
}

}  // namespace moe8
