// SPDX-License-Identifier: BSD-3-Clause
// Linears without bias and random initial weights.
#include "nn/init.h"

#include <cmath>
#include <numbers>

namespace moe8 {
namespace {

double normal_cdf(double x) {
  return std::erfc(-x / std::numbers::sqrt2) / 2;
}

constexpr double kCutoff = 3.0;

}  // namespace

torch::nn::Linear linear_without_bias(int64_t in, int64_t out) {
  return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
}

void trunc_normal_(at::Tensor& parameter, at::Generator& generator, double std) {
  const torch::NoGradGuard no_grad;
  // The inverse of the distribution function, applied to what lies between the two cuts.
  const double edge = 2 * normal_cdf(kCutoff) - 1;
  at::Tensor values = at::empty(parameter.sizes(), at::kFloat).uniform_(-edge, edge, generator);
  values.erfinv_().mul_(std * std::numbers::sqrt2).clamp_(-kCutoff * std, kCutoff * std);
  parameter.copy_(values);
}

void normal_(at::Tensor& parameter, at::Generator& generator, double std) {
  const torch::NoGradGuard no_grad;
  parameter.copy_(at::empty(parameter.sizes(), at::kFloat).normal_(0, std, generator));
}

}  // namespace moe8
