// SPDX-License-Identifier: BSD-3-Clause
// What the parts of nn_check share: random tensors of either type, at aligned and other addresses,
// and comparison with numbers in float64. Each part has its own file and a line in main.cpp.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cuda/comparison.h"
#include "formats/float_type.h"

namespace moe8::cuda {

constexpr FloatType kTypes[] = {FloatType::BF16, FloatType::F32};

inline size_t size_of(FloatType type) {
  return type == FloatType::BF16 ? 2 : 4;
}
const char* name_of(FloatType type);

/// Numbers of a type, on the host and on the device. With `shift` they lie that many elements after
/// a 16-byte boundary.
class Numbers {
 public:
  /// Random normal numbers.
  Numbers(FloatType type, int64_t count, std::mt19937& rng, float spread = 1, int64_t shift = 0);
  /// Poisoned: a result.
  Numbers(FloatType type, int64_t count, int64_t shift = 0);

  void* device() const { return buffer_.get() + offset_; }
  double at(int64_t i) const;  // what the host has
  const void* host() const { return host_.data() + offset_; }
  void fetch() { host_ = buffer_.host(); }
  void poison() { buffer_.poison(); }
  /// Whatever lies before the first number is still poison, and nothing was written outside.
  bool is_intact() const;
  int64_t count() const { return count_; }
  FloatType type() const { return type_; }
  /// Changes a number in both places.
  void set(int64_t i, float value);
  /// fetch(), then the numbers alone.
  Bytes bytes();

 private:
  FloatType type_;
  int64_t count_;
  size_t offset_;
  Bytes host_;
  DeviceBytes buffer_;
};

/// With T that the numbers have: use(const T*).
template <typename Use>
auto with_numbers(const Numbers& x, Use use) {
  return x.type() == FloatType::BF16 ? use(static_cast<const BFloat16*>(x.host()))
                                     : use(static_cast<const float*>(x.host()));
}

/// A number and how far from it a result may be, beside half a unit in the last place of its type.
struct Expected {
  double value;
  double tolerance;
};

/// Fetches `got` and compares. NaN is expected as NaN, infinity as itself.
void expect_close(const std::string& what, Numbers& got, const std::vector<Expected>& expected);

/// Launches, waits, and the same again: the results must have the same bits. Leaves them fetched.
template <typename Launch>
void run_twice(const std::string& what, const std::vector<Numbers*>& results, Launch launch) {
  std::vector<Bytes> first;
  for (int time = 0; time < 2; ++time) {
    for (Numbers* result : results) result->poison();
    require(launch(), what.c_str());
    require(cudaDeviceSynchronize(), what.c_str());
    for (size_t i = 0; i < results.size(); ++i) {
      expect(results[i]->is_intact(), what + ": wrote outside result " + std::to_string(i));
      if (time == 0) first.push_back(results[i]->bytes());
      if (time == 1) expect(results[i]->bytes() == first[i], what + ": does not repeat itself");
    }
  }
}

void check_rotary(std::mt19937& rng, int random_shapes);
void check_cross_entropy(std::mt19937& rng, int random_shapes);
void check_rms_norm(std::mt19937& rng, int random_shapes);
void check_gate(std::mt19937& rng, int random_shapes);
void check_route(std::mt19937& rng, int random_shapes);

}  // namespace moe8::cuda
