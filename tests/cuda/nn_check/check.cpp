// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/nn_check/check.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace moe8::cuda {
namespace {

// To the next float of the type, from half of which on a result is another one.
double unit_of(FloatType type, double value) {
  if (value == 0) return 0;
  return std::ldexp(1.0, std::ilogb(value) - (type == FloatType::BF16 ? 7 : 23));
}

bool is_close(FloatType type, double got, const Expected& expected) {
  const double value = expected.value;
  if (std::isnan(value)) return std::isnan(got);
  if (std::isinf(value)) return got == value;
  return std::abs(got - value) <= 0.501 * unit_of(type, value) + expected.tolerance;
}

}  // namespace

const char* name_of(FloatType type) {
  return type == FloatType::BF16 ? "bf16" : "float32";
}

Numbers::Numbers(FloatType type, int64_t count, int64_t shift)
    : type_(type),
      count_(count),
      offset_(static_cast<size_t>(shift) * size_of(type)),
      host_(static_cast<size_t>(count) * size_of(type) + offset_),
      buffer_(host_.size()) {}

Numbers::Numbers(FloatType type, int64_t count, std::mt19937& rng, float spread, int64_t shift)
    : Numbers(type, count, shift) {
  std::normal_distribution<float> normal(0, spread);
  std::fill(host_.begin(), host_.end(), DeviceBytes::kPoison);
  for (int64_t i = 0; i < count; ++i) {
    const float x = normal(rng);
    const BFloat16 narrow = from_float<BFloat16>(x);
    uint8_t* place = host_.data() + offset_ + static_cast<size_t>(i) * size_of(type);
    std::memcpy(place, type == FloatType::BF16 ? static_cast<const void*>(&narrow) : &x,
                size_of(type));
  }
  if (host_.empty()) return;
  require(cudaMemcpy(buffer_.get(), host_.data(), host_.size(), cudaMemcpyHostToDevice), "fill");
}

double Numbers::at(int64_t i) const {
  return with_numbers(*this, [&](const auto* x) { return static_cast<double>(to_float(x[i])); });
}

void Numbers::set(int64_t i, float value) {
  const BFloat16 narrow = from_float<BFloat16>(value);
  const size_t place = offset_ + static_cast<size_t>(i) * size_of(type_);
  const void* from = type_ == FloatType::BF16 ? static_cast<const void*>(&narrow) : &value;
  std::memcpy(host_.data() + place, from, size_of(type_));
  require(cudaMemcpy(buffer_.get() + place, from, size_of(type_), cudaMemcpyHostToDevice), "set");
}

Bytes Numbers::bytes() {
  fetch();
  return {host_.begin() + static_cast<int64_t>(offset_), host_.end()};
}

bool Numbers::is_intact() const {
  const Bytes all = buffer_.host();
  return buffer_.is_intact() &&
         std::all_of(all.begin(), all.begin() + static_cast<int64_t>(offset_),
                     [](uint8_t byte) { return byte == DeviceBytes::kPoison; });
}

void expect_close(const std::string& what, Numbers& got, const std::vector<Expected>& expected) {
  got.fetch();
  for (size_t i = 0; i < expected.size(); ++i) {
    const double value = got.at(static_cast<int64_t>(i));
    if (is_close(got.type(), value, expected[i])) {
      ++compared;
      continue;
    }
    expect(false, what + " [" + std::to_string(i) + "]: expected " +
                      std::to_string(expected[i].value) + ", got " + std::to_string(value));
    return;
  }
}

}  // namespace moe8::cuda
