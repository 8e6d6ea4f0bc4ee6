// SPDX-License-Identifier: BSD-3-Clause
#include "testing/fill.h"

#include <ATen/ATen.h>

namespace moe8::testing {

at::Tensor wide_normal(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed, int spread) {
  const at::Generator gen = at::make_generator<at::CPUGeneratorImpl>(seed);
  const at::Tensor exponent = at::randint(-spread, spread + 1, shape, gen, at::kFloat);
  const at::Tensor kept = at::rand(shape, gen, at::kFloat).gt(0.03);
  return (at::randn(shape, gen, at::kFloat) * exponent.exp2() * kept).to(dtype);
}

at::Tensor hard_values(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed,
                       bool with_nonfinite) {
  const at::Generator gen = at::make_generator<at::CPUGeneratorImpl>(seed);
  at::Tensor x = wide_normal(shape, at::kFloat, seed + 1, 12);
  std::vector<float> special = {0.0f,    -0.0f,     448.f, 464.f,  480.f,   -448.f,  1e-45f,
                                1e-40f,  1.18e-38f, 3e38f, -3e38f, 0.0625f, 57344.f, 61440.f,
                                1.0625f, 1.1875f,   6.f,   5.f,    0.25f,   0.75f,   9.4e-38f};
  if (with_nonfinite) {
    special.push_back(std::numeric_limits<float>::infinity());
    special.push_back(-std::numeric_limits<float>::infinity());
    special.push_back(std::numeric_limits<float>::quiet_NaN());
  }
  const at::Tensor choice =
      at::randint(0, static_cast<int64_t>(special.size()), shape, gen, at::kLong);
  const at::Tensor picked = at::tensor(special).index_select(0, choice.reshape(-1)).reshape(shape);
  const at::Tensor use_special = at::rand(shape, gen, at::kFloat).lt(with_nonfinite ? 0.004 : 0.05);
  return at::where(use_special, picked, x).to(dtype);
}

at::Tensor small_integers(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed, int limit) {
  const at::Generator gen = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randint(-limit, limit + 1, shape, gen, at::kFloat).to(dtype);
}

at::Tensor offs_of(const std::vector<int64_t>& sizes) {
  return at::tensor(sizes, at::kLong).cumsum(0).to(at::kInt);
}

const std::vector<int64_t>& awkward_sizes() {
  static const std::vector<int64_t> sizes = {0, 1, 31, 32, 33, 127, 128, 129};
  return sizes;
}

}  // namespace moe8::testing
