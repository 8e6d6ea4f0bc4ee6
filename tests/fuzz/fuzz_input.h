// SPDX-License-Identifier: BSD-3-Clause
// What the fuzz targets share: values taken off the bytes of an input, and what every target
// checks. A target is one file with LLVMFuzzerTestOneInput; libFuzzer or replay.cpp calls it.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace moe8::fuzz {

/// Ends the program as a fuzzer expects it when something that must hold does not.
inline void require(bool condition, std::string_view what) {
  if (condition) return;
  std::fprintf(stderr, "fuzz: does not hold: %.*s\n", static_cast<int>(what.size()), what.data());
  std::abort();
}

/// Takes values off an input from the front; zeros when it has run out.
class FuzzInput {
 public:
  FuzzInput(const uint8_t* bytes, size_t size) : rest_(bytes, size) {}

  bool empty() const { return rest_.empty(); }
  size_t size() const { return rest_.size(); }

  template <typename T>
  T value() {
    T value{};
    const size_t count = std::min(sizeof value, rest_.size());
    if (count > 0) std::memcpy(&value, rest_.data(), count);  // an empty span points to nothing
    rest_ = rest_.subspan(count);
    return value;
  }

  /// From low to high, both included.
  int64_t integer(int64_t low, int64_t high) {
    const uint64_t span = static_cast<uint64_t>(high - low) + 1;
    const uint64_t drawn = span <= 256 ? value<uint8_t>() : value<uint32_t>();
    return low + static_cast<int64_t>(drawn % span);
  }
  bool flag() { return (value<uint8_t>() & 1) != 0; }

  template <typename Container>
  const auto& pick(const Container& choices) {
    return choices[integer(0, static_cast<int64_t>(std::size(choices)) - 1)];
  }

  /// The bytes before the next `separator` or the end; skips the separator.
  std::string text_until(char separator) {
    const auto* end = std::find(rest_.data(), rest_.data() + rest_.size(), separator);
    std::string text(rest_.data(), end);
    rest_ = rest_.subspan(std::min(text.size() + 1, rest_.size()));
    return text;
  }
  std::string rest() {
    std::string text(rest_.begin(), rest_.end());
    rest_ = {};
    return text;
  }

 private:
  std::span<const uint8_t> rest_;
};

}  // namespace moe8::fuzz
