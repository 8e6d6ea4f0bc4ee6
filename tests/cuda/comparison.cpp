// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/comparison.h"

#include <cstdio>
#include <cstdlib>

namespace moe8::cuda {

void expect(bool condition, const std::string& what) {
  ++compared;
  if (!condition && ++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

void expect_equal(const std::string& what, const DeviceBytes& actual, const Bytes& expected) {
  const Bytes got = actual.is_intact() ? actual.host() : Bytes{};
  compared += static_cast<int64_t>(expected.size());
  if (got == expected) return;
  if (++failures > 20) return;
  if (got.size() != expected.size()) {
    std::printf("FAILED %s: wrote outside its %zu bytes\n", what.c_str(), expected.size());
    return;
  }
  size_t first = 0, count = 0;
  for (size_t i = expected.size(); i-- > 0;) {
    if (got[i] != expected[i]) first = i, ++count;
  }
  std::printf("FAILED %s: %zu of %zu bytes differ, first %zu: expected %02x, got %02x\n",
              what.c_str(), count, expected.size(), first, expected[first], got[first]);
}

int run_checks(int argc, char** argv, int usual, const char* unit, const char* problems,
               void (*checks)(int random)) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  const int random = argc > 1 ? static_cast<int>(std::strtol(argv[1], nullptr, 10)) : usual;
  checks(random);
  std::printf("%s: %lld %s compared, %d failures, %d random %s\n", failures == 0 ? "OK" : "FAILED",
              static_cast<long long>(compared), unit, failures, random, problems);
  return failures == 0 ? 0 : 1;
}

}  // namespace moe8::cuda
