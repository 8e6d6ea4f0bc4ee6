// SPDX-License-Identifier: BSD-3-Clause
#include "testing/compare.h"

#include <ATen/ATen.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace moe8::testing {
namespace {

using ::testing::AssertionFailure;
using ::testing::AssertionResult;
using ::testing::AssertionSuccess;

AssertionResult same_kind(const at::Tensor& expected, const at::Tensor& got) {
  if (!expected.defined() || !got.defined()) {
    if (expected.defined() == got.defined()) return AssertionSuccess();
    return AssertionFailure() << "one of the tensors is undefined";
  }
  if (expected.scalar_type() != got.scalar_type() || expected.sizes() != got.sizes()) {
    return AssertionFailure() << "expected " << expected.scalar_type() << expected.sizes()
                              << ", got " << got.scalar_type() << got.sizes();
  }
  return AssertionSuccess();
}

at::Tensor bytes_of(const at::Tensor& x) {  // [elements, bytes of one]
  return x.contiguous().reshape({-1}).view(at::kByte).reshape({-1, x.element_size()});
}

AssertionResult first_difference(const at::Tensor& expected, const at::Tensor& got,
                                 const at::Tensor& differs) {
  const at::Tensor where = differs.nonzero();
  if (where.size(0) == 0) return AssertionSuccess();
  const int64_t flat = where[0].item<int64_t>();
  const auto show = [&](const at::Tensor& x) {
    std::string text;
    for (int64_t i = x.element_size() - 1; i >= 0; --i) {
      char digits[3];
      std::snprintf(digits, sizeof digits, "%02x", bytes_of(x)[flat][i].item<uint8_t>());
      text += digits;
    }
    return "0x" + text;
  };
  std::string index;
  int64_t rest = flat;
  for (int64_t d = expected.dim() - 1; d >= 0; --d) {
    if (!index.empty()) index.insert(0, ", ");
    index.insert(0, std::to_string(rest % expected.size(d)));
    rest /= expected.size(d);
  }
  return AssertionFailure() << where.size(0) << " of " << differs.numel()
                            << " elements differ, the first at [" << index << "]: expected bits "
                            << show(expected) << ", got " << show(got);
}

}  // namespace

AssertionResult same_bits(const at::Tensor& expected, const at::Tensor& got) {
  if (AssertionResult kind = same_kind(expected, got); !kind || !expected.defined()) return kind;
  if (expected.numel() == 0) return AssertionSuccess();
  return first_difference(expected, got, bytes_of(expected).ne(bytes_of(got)).any(1));
}

AssertionResult same_values(const at::Tensor& expected, const at::Tensor& got) {
  if (AssertionResult kind = same_kind(expected, got); !kind || !expected.defined()) return kind;
  if (expected.numel() == 0) return AssertionSuccess();
  at::Tensor differs = bytes_of(expected).ne(bytes_of(got)).any(1);
  const at::Tensor both_nan =
      expected.to(at::kFloat).isnan().logical_and(got.to(at::kFloat).isnan());
  return first_difference(expected, got, differs.logical_and(both_nan.reshape(-1).logical_not()));
}

double sqnr_db(const at::Tensor& reference, const at::Tensor& got) {
  const at::Tensor r = reference.to(at::kDouble);
  const double noise = (r - got.to(at::kDouble)).norm().item<double>();
  if (std::isnan(noise)) return -std::numeric_limits<double>::infinity();
  if (noise == 0) return std::numeric_limits<double>::infinity();
  return 20 * std::log10(r.norm().item<double>() / noise);
}

double least_seconds(const std::function<void()>& call) {
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 7; ++i) {
    const auto start = std::chrono::steady_clock::now();
    call();
    least = std::min(
        least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return least;
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return message_of(error);
  }
  return "(no error)";
}

}  // namespace moe8::testing
