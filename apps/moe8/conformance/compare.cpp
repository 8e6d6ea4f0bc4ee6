// SPDX-License-Identifier: BSD-3-Clause
#include "conformance/compare.h"

#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/plain_text.h"
#include "conformance/case_file.h"

namespace moe8 {
namespace {

void check_shape(const std::string& name, const at::Tensor& got, const at::Tensor& expected) {
  MOE8_CHECK(got.sizes() == expected.sizes(), kCaseOp, name, "expected shape ", expected.sizes(),
             " (the file's), got ", got.sizes());
}

at::Tensor bits_of(const at::Tensor& x) {
  switch (x.element_size()) {
    case 1:
      return x.view(at::kByte);
    case 2:
      return x.view(at::kShort);
    case 4:
      return x.view(at::kInt);
    default:
      return x.view(at::kLong);
  }
}

// Formats without a float conversion in LibTorch have one NaN code at most.
at::Tensor nan_mask(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat8_e4m3fn:
    case at::kFloat8_e5m2:
      return x.to(at::kFloat).isnan();
    case at::kBFloat16:
    case at::kHalf:
    case at::kFloat:
    case at::kDouble:
      return x.isnan();
    default:
      return bits_of(x).ne(bits_of(x));
  }
}

std::string hex(const at::Tensor& bits, int64_t index) {
  const auto value = static_cast<unsigned long long>(bits.reshape({-1})[index].item<int64_t>());
  const int digits = 2 * static_cast<int>(bits.element_size());
  const unsigned long long mask = digits == 16 ? ~0ULL : (1ULL << (4 * digits)) - 1;
  return formatted("0x%0*llx", digits, value & mask);
}

std::string position(const at::Tensor& x, int64_t index) {
  std::string text;
  for (int64_t d = x.dim() - 1; d >= 0; --d) {
    text = concat(index % x.size(d), text.empty() ? "" : ", ", text);
    index /= x.size(d);
  }
  return "[" + text + "]";
}

std::string decibels(double value) {
  if (std::isinf(value)) return value > 0 ? "exact" : "not finite where expected";
  return formatted("%.1f dB", value);
}

}  // namespace

void ExactCheck::add(const std::string& name, const at::Tensor& result, at::Tensor expected) {
  const at::Tensor got = result.cpu().contiguous();
  expected = expected.cpu();
  if (expected.scalar_type() == at::kByte && got.element_size() == 1) {
    expected = expected.view(got.scalar_type());
  }
  check_shape(name, got, expected);
  MOE8_CHECK(got.scalar_type() == expected.scalar_type(), kCaseOp, name, "expected ",
             expected.scalar_type(), " (the file's), got ", got.scalar_type());
  const at::Tensor differs =
      bits_of(got)
          .ne(bits_of(expected))
          .logical_and_(nan_mask(got).logical_and_(nan_mask(expected)).logical_not_());
  const int64_t count = differs.sum().item<int64_t>();
  if (count > 0 && first_.empty()) {
    const int64_t index = differs.reshape({-1}).nonzero()[0][0].item<int64_t>();
    first_ = concat(name, " at ", position(got, index), ": expected ",
                    hex(bits_of(expected), index), ", got ", hex(bits_of(got), index));
  }
  compared_ += differs.numel();
  different_ += count;
}

Outcome ExactCheck::outcome() const {
  return {
      different_ == 0,
      concat(different_, " of ", compared_, " differ", first_.empty() ? "" : ", first " + first_),
      "bit for bit"};
}

void AccuracyCheck::add(const std::string& name, const at::Tensor& got,
                        const at::Tensor& expected) {
  check_shape(name, got, expected);
  const double sqnr = sqnr_db(got.cpu(), expected.cpu());
  passed_ = passed_ && sqnr >= kSqnrBar;
  measured_ += concat(measured_.empty() ? "" : ", ", name, " ", decibels(sqnr));
}

Outcome AccuracyCheck::outcome() const {
  return {passed_, measured_, concat(">= ", kSqnrBar, " dB")};
}

double sqnr_db(const at::Tensor& got, const at::Tensor& expected) {
  const at::Tensor y = got.detach().to(at::kDouble);
  const at::Tensor ref = expected.detach().to(at::kDouble);
  const at::Tensor same = y.eq(ref).logical_or_(y.isnan().logical_and_(ref.isnan()));
  const double noise = ref.sub(y).masked_fill_(same, 0).norm().item<double>();
  const double signal = ref.masked_fill(ref.isfinite().logical_not_(), 0).norm().item<double>();
  if (noise == 0) return std::numeric_limits<double>::infinity();
  if (!std::isfinite(noise)) return -std::numeric_limits<double>::infinity();
  return 20 * std::log10(signal / noise);
}

}  // namespace moe8
