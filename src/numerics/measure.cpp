// SPDX-License-Identifier: BSD-3-Clause
// What is sampled keeps the contracted axis whole, so a sample is quantized as the operand was; it
// is quantized anew on the CPU, which gives the same bits on every device (docs/numerics.md).
#include "numerics/measure.h"

#include <ATen/ops/aminmax.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tensor.h>

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

constexpr int64_t kMinSlices = 4;       // rows or columns of a sample, however long they are
constexpr int64_t kResultColumns = 32;  // of OUT and GRAD_INPUT
constexpr double kMinSqnr = -200;

// The high-precision side of a product.
struct Product {
  Gemm gemm;
  at::Tensor left;
  at::Tensor right;
  std::optional<at::Tensor> offs;
};

// ---- groups -----------------------------------------------------------------
struct Group {
  int64_t index;
  int64_t begin;  // rows
  int64_t size;
};

std::vector<int64_t> end_rows(const Product& p) {
  if (!p.offs) return {p.left.size(0)};
  const at::Tensor ends = p.offs->to(at::kCPU, at::kLong).contiguous();
  const auto* data = ends.const_data_ptr<int64_t>();
  return {data, data + ends.numel()};
}

std::vector<int64_t> sizes_of(const std::vector<int64_t>& ends) {
  std::vector<int64_t> sizes;
  for (size_t g = 0; g < ends.size(); ++g) sizes.push_back(ends[g] - (g ? ends[g - 1] : 0));
  return sizes;
}

// Some of the groups that have rows.
std::vector<Group> sampled_groups(const std::vector<int64_t>& ends, const Sampling& s) {
  std::vector<Group> filled;
  const std::vector<int64_t> sizes = sizes_of(ends);
  for (size_t g = 0; g < sizes.size(); ++g) {
    if (sizes[g] > 0) filled.push_back({static_cast<int64_t>(g), ends[g] - sizes[g], sizes[g]});
  }
  std::vector<Group> chosen;
  for (const int64_t i : spaced(static_cast<int64_t>(filled.size()), s.experts, s.phase)) {
    chosen.push_back(filled[static_cast<size_t>(i)]);
  }
  return chosen;
}

// ---- samples ----------------------------------------------------------------
at::Tensor take(const at::Tensor& x, int64_t axis, const std::vector<int64_t>& indices) {
  if (static_cast<int64_t>(indices.size()) == x.size(axis)) return x;
  return at::index_select(x, axis, at::tensor(indices, x.options().dtype(at::kLong)));
}

at::Tensor on_cpu(const at::Tensor& x, at::ScalarType dtype) {
  return x.to(at::kCPU, dtype).contiguous();
}

// As many slices of `length` values as fit the wish.
std::vector<int64_t> slices(int64_t size, int64_t length, int64_t values, double phase) {
  return spaced(size, std::max(kMinSlices, values / std::max<int64_t>(length, 1)), phase);
}

// Part of an operand, float32 on the CPU, and how it is quantized.
struct Sample {
  at::Tensor x;
  int64_t axis;
  std::optional<at::Tensor> offs;
};

Sample sample_of_rows(const Product& p, const at::Tensor& operand, int64_t rows,
                      const Sampling& s) {
  const at::Tensor x = operand.narrow(0, 0, rows);  // what lies in no group takes no part
  if (p.gemm == Gemm::GRAD_WEIGHT) {
    const at::Tensor columns = take(x, 1, slices(x.size(1), rows, s.values, s.phase));
    return {on_cpu(columns, at::kFloat), 0, p.offs ? std::optional(p.offs->cpu()) : std::nullopt};
  }
  return {on_cpu(take(x, 0, slices(rows, x.size(1), s.values, s.phase)), at::kFloat), 1, {}};
}

Sample sample_of_weight(const Product& p, const Sampling& s) {
  const at::Tensor x = take(p.right, 0, spaced(p.right.size(0), s.experts, s.phase));
  const int64_t axis = p.gemm == Gemm::OUT ? 2 : 1;  // contracted
  const int64_t other = 3 - axis;
  const auto indices = slices(x.size(other), x.size(0) * x.size(axis), s.values, s.phase);
  return {on_cpu(take(x, other, indices), at::kFloat), axis, {}};
}

// ---- quantized samples ------------------------------------------------------
struct Quantized {
  at::Tensor values;  // float32
  at::Tensor codes;   // float32: what the codes are without their scales; undefined: no codes
};

Quantized quantized(const Sample& sample, const MxFormat& f) {
  MXTensor mx = quantize_mx(sample.x, f.elem, f.mode, sample.axis, sample.offs);
  const at::Tensor values = dequantize(mx, at::kFloat);
  const at::Tensor bytes = mx.scale.view(at::kByte);
  mx.scale = at::full_like(bytes, 127).view(at::kFloat8_e8m0fnu);  // 2^0
  return {values, dequantize(mx, at::kFloat)};
}

Quantized quantized(const Sample& sample, const Float8Format& f, double amax) {
  const bool whole = f.granularity == ScalingGranularity::TENSORWISE;
  // A tensor's one scale follows from the amax of all of it: that value goes along.
  const at::Tensor x =
      whole ? at::cat({sample.x.flatten(), at::full({1}, amax, sample.x.options())}) : sample.x;
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

double amax_of(const at::Tensor& x) {
  const auto [least, most] = at::aminmax(x);
  const double low = least.item<double>(), high = most.item<double>();
  return std::isnan(low) ? low : std::max(std::abs(low), std::abs(high));
}

OperandSums measure_operand(const Sample& sample, const OperandFormat& format, double amax) {
  OperandSums sums = std::visit(
      Overloaded{
          [&](const HighPrecision&) { return sums_in_high_precision(sample.x); },
          [&](const MxFormat& f) { return sums_over(sample.x, quantized(sample, f), f.elem); },
          [&](const Float8Format& f) {
            return sums_over(sample.x, quantized(sample, f, amax), f.elem);
          }},
      format);
  sums.amax = amax;
  return sums;
}

// ---- results ----------------------------------------------------------------
void add_errors(ErrorSums& sums, const at::Tensor& reference, const at::Tensor& got) {
  const at::Tensor expected = reference.contiguous(), actual = on_cpu(got, at::kDouble);
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

at::Tensor doubles(const at::Tensor& x, int64_t axis, const std::vector<int64_t>& indices) {
  return on_cpu(take(x, axis, indices), at::kDouble);
}

// Some rows and columns of one group's rows of OUT or GRAD_INPUT.
void add_rows_of_group(ErrorSums& sums, const Product& p, const at::Tensor& result,
                       const Group& group, int64_t rows_wanted, double phase) {
  const auto rows = spaced(group.size, rows_wanted, phase);
  const auto columns = spaced(result.size(1), kResultColumns, phase);
  const at::Tensor left = doubles(p.left.narrow(0, group.begin, group.size), 0, rows);
  const at::Tensor weight = p.right.select(0, group.index);  // [N, K]
  const at::Tensor right =
      p.gemm == Gemm::OUT ? doubles(weight, 0, columns).t() : doubles(weight, 1, columns);
  const at::Tensor got = take(result.narrow(0, group.begin, group.size), 0, rows);
  add_errors(sums, at::matmul(left, right), take(got, 1, columns));
}

// Some rows and columns of one group's GRAD_WEIGHT.
void add_block_of_group(ErrorSums& sums, const Product& p, const at::Tensor& result,
                        const Group& group, int64_t side, double phase) {
  const auto rows = spaced(result.size(1), side, phase);
  const auto columns = spaced(result.size(2), side, phase);
  const at::Tensor left = doubles(p.left.narrow(0, group.begin, group.size), 1, rows);
  const at::Tensor right = doubles(p.right.narrow(0, group.begin, group.size), 1, columns);
  const at::Tensor got = take(take(result.select(0, group.index), 0, rows), 1, columns);
  add_errors(sums, at::matmul(left.t(), right), got);
}

ErrorSums measure_result(const Product& p, const at::Tensor& result,
                         const std::vector<Group>& groups, const Sampling& s) {
  ErrorSums sums;
  const int64_t share = s.results / static_cast<int64_t>(groups.size());  // of a group
  const auto side = static_cast<int64_t>(std::sqrt(static_cast<double>(share)));
  for (const Group& group : groups) {
    if (p.gemm == Gemm::GRAD_WEIGHT) {
      add_block_of_group(sums, p, result, group, std::max(kMinSlices, side), s.phase);
    } else {
      add_rows_of_group(sums, p, result, group, std::max<int64_t>(1, share / kResultColumns),
                        s.phase);
    }
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
std::vector<int64_t> spaced(int64_t size, int64_t count, double phase) {
  std::vector<int64_t> indices;
  const int64_t wanted = std::min(size, count);
  for (int64_t i = 0; i < wanted; ++i) {
    const double at = (static_cast<double>(i) + (wanted < size ? phase : 0)) /
                      static_cast<double>(wanted) * static_cast<double>(size);
    indices.push_back(wanted < size ? std::min(size - 1, static_cast<int64_t>(at)) : i);
  }
  return indices;
}

GemmSums measure(const GemmProblem& problem, const at::Tensor& result, const Sampling& sampling) {
  const Product p{problem.gemm, problem.left.source(), problem.right.source(),
                  problem.groups.offs()};
  const GemmFormats& formats = problem.formats;
  GemmSums sums;
  sums.calls = 1;
  const std::vector<int64_t> ends = end_rows(p);
  if (p.offs) sums.tokens = sizes_of(ends);
  const std::vector<Group> groups = sampled_groups(ends, sampling);
  if (groups.empty() || p.left.numel() == 0 || p.right.numel() == 0) return sums;
  const auto measure_rows = [&](const at::Tensor& x, const OperandFormat& format) {
    const int64_t rows = ends.back();
    return measure_operand(sample_of_rows(p, x, rows, sampling), format,
                           amax_of(x.narrow(0, 0, rows)));
  };
  sums.left = measure_rows(p.left, formats.left);
  sums.right = p.gemm == Gemm::GRAD_WEIGHT ? measure_rows(p.right, formats.right)
                                           : measure_operand(sample_of_weight(p, sampling),
                                                             formats.right, amax_of(p.right));
  sums.result = measure_result(p, result, groups, sampling);
  return sums;
}

}  // namespace moe8
