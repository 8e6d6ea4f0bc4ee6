// SPDX-License-Identifier: BSD-3-Clause
#include "gemm/trial.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>

#include <exception>
#include <map>
#include <mutex>

#include "base/plain_text.h"
#include "device/cuda_device.h"

namespace moe8 {
namespace {

constexpr int64_t kSize = 128;
constexpr int64_t kEnds[] = {40, 200};  // of the two groups; the last is also that of one group

// Codes whatever their scale, and exact in bf16.
at::Tensor small_integers(at::IntArrayRef sizes, const at::Device& device) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  return at::arange(count, options).mul(7).remainder(5).sub(2).to(at::kBFloat16).view(sizes);
}

// In high precision: of the rows of a group, as A and as dO, and its weight.
at::Tensor expected_product(Gemm gemm, const at::Tensor& group, const at::Tensor& w) {
  switch (gemm) {
    case Gemm::OUT:
      return group.matmul(w.t());
    case Gemm::GRAD_INPUT:
      return group.matmul(w);
    case Gemm::GRAD_WEIGHT:
      break;
  }
  return group.t().matmul(group);
}

// Equal but for the last rounding to bf16.
bool is_right(const at::Tensor& got, const at::Tensor& expected) {
  return at::allclose(got.to(at::kFloat), expected, /*rtol=*/0x1p-7, /*atol=*/1e-3);
}

bool multiplies_rightly(const Trial& trial, Gemm gemm, const at::Device& device) {
  const int64_t groups = trial.in_groups ? 2 : 1;
  const at::Tensor rows = small_integers({kEnds[1], kSize}, device);
  const at::Tensor weight = small_integers({groups, kSize, kSize}, device);
  GemmProblem problem{.gemm = gemm,
                      .left = rows,
                      .right = gemm == Gemm::GRAD_WEIGHT ? rows : weight,
                      .groups = {},
                      .formats = trial.formats,
                      .out_dtype = at::kBFloat16};
  if (trial.in_groups) {
    const auto options = at::TensorOptions().dtype(at::kInt).device(device);
    problem.groups = at::cat({at::full({1}, kEnds[0], options), at::full({1}, kEnds[1], options)});
  }
  const at::Tensor got = trial.multiply(problem);
  for (int64_t e = 0; e < groups; ++e) {
    const int64_t first = e * kEnds[0], last = kEnds[e + 2 - groups];
    const at::Tensor expected =
        expected_product(gemm, rows.slice(0, first, last).to(at::kFloat), weight[e].to(at::kFloat));
    const at::Tensor mine = gemm == Gemm::GRAD_WEIGHT ? got[e] : got.slice(0, first, last);
    if (!is_right(mine, expected)) return false;
  }
  return true;
}

// A large term, small ones, and the large one taken back: a sum of few bits loses the small.
bool keeps_small_terms(const Trial& trial, const at::Device& device) {
  constexpr int64_t kPart = 256;  // parts of at most so many terms may be summed in fewer bits
  constexpr double kLarge = 256, kSmall = 0.25;
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(device);
  const at::Tensor right_row = at::full({3 * kPart}, kSmall, options);
  right_row.narrow(0, 0, 1).fill_(kLarge);
  right_row.narrow(0, 2 * kPart, 1).fill_(kLarge);
  const at::Tensor left_row = right_row.clone();
  left_row.narrow(0, 2 * kPart, 1).fill_(-kLarge);
  const GemmProblem problem{.gemm = Gemm::OUT,
                            .left = left_row.expand({16, 3 * kPart}).contiguous(),
                            .right = right_row.expand({1, 16, 3 * kPart}).contiguous(),
                            .groups = {},
                            .formats = trial.formats,
                            .out_dtype = at::kBFloat16};
  const at::Tensor sum = trial.multiply(problem).to(at::kFloat);
  // The part in the middle is kept whole; the other two may lose what stands beside a large term.
  constexpr double kOfPart = kPart * kSmall * kSmall;
  return sum.ge(0.99 * kOfPart).logical_and(sum.le(3.01 * kOfPart)).all().item<bool>();
}

std::optional<std::string> try_all(const Trial& trial, const at::Device& device) {
  const auto failed = [&](const std::string& how) {
    return concat(trial.function, " was tried on ", device, " and ", how);
  };
  try {
    for (const Gemm gemm : trial.gemms) {
      if (!multiplies_rightly(trial, gemm, device)) {
        return failed(concat("gave a wrong ", to_string(gemm)));
      }
    }
    if (trial.sums_in_float32 && !keeps_small_terms(trial, device)) {
      return failed("sums in less than float32");
    }
  } catch (const std::exception& error) {
    return failed("failed: " + std::string(error.what()).substr(0, 300));
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> trial_refusal(const Trial& trial, const at::Device& device) {
  static std::mutex mutex;
  static std::map<std::string, std::optional<std::string>> answers;
  const std::string what =
      concat(trial.function, trial.in_groups ? " in groups on " : " on ", device, ": ",
             to_string(trial.formats.left), " x ", to_string(trial.formats.right),
             trial.formats.use_fast_accum ? ", fast" : "");
  const std::lock_guard lock(mutex);
  if (const auto known = answers.find(what); known != answers.end()) return known->second;
  if (current_stream(device).capture != 0) {
    return concat(trial.function, " was not tried on ", device,
                  " yet, which a graph capture does not allow: run one product before it");
  }
  return answers[what] = try_all(trial, device);
}

}  // namespace moe8
