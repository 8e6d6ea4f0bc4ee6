// SPDX-License-Identifier: BSD-3-Clause
#include "reference/adamw.h"

#include <cmath>
#include <vector>

#include "reference/element.h"

namespace moe8::reference {
namespace {

void store_moment(void* x, FloatType type, int64_t i, float value, uint32_t random) {
  if (type == FloatType::F32) return store(x, type, i, value);
  static_cast<BFloat16*>(x)[i] = to_bf16_stochastic(value, random);
}

// Neighbours first, then neighbours of their sums. The number of lanes is a power of two.
template <typename T>
T tree_sum(std::vector<T> lanes) {
  while (lanes.size() > 1) {
    for (size_t i = 0; i < lanes.size() / 2; ++i) lanes[i] = lanes[2 * i] + lanes[2 * i + 1];
    lanes.resize(lanes.size() / 2);
  }
  return lanes[0];
}

}  // namespace

void adamw(const AdamWArgs& a, int64_t begin, int64_t end) {
  if (a.scalars.go == 0) return;
  for (int64_t i = begin; i < end; ++i) {
    const AdamWElement old{load(a.weight, a.weight_type, i), load(a.first, a.moment_type, i),
                           load(a.second, a.moment_type, i)};
    const AdamWElement next = adamw(old, load(a.grad, a.grad_type, i), a.rule, a.scalars);
    const uint32_t random = rounding_bits(a.scalars.key, i);
    store(a.weight, a.weight_type, i, next.weight);
    store_moment(a.first, a.moment_type, i, next.first, random & 0xFFFFu);
    store_moment(a.second, a.moment_type, i, next.second, random >> 16);
    if (a.copy != nullptr) a.copy[i] = from_float<BFloat16>(next.weight);
  }
}

float sum_of_squares(const void* x, FloatType type, int64_t n) {
  std::vector<float> lanes(kNormLanes);
  for (int64_t i = 0; i < n; ++i) {
    float& lane = lanes[static_cast<size_t>(i % kNormLanes)];
    const float value = load(x, type, i);
    lane = std::fma(value, value, lane);
  }
  return tree_sum(lanes);
}

float norm_of(const float* sums, int64_t count) {
  std::vector<double> lanes(kNormSumLanes);
  for (int64_t i = 0; i < count; ++i) lanes[static_cast<size_t>(i % kNormSumLanes)] += sums[i];
  return static_cast<float>(std::sqrt(tree_sum(lanes)));
}

}  // namespace moe8::reference
