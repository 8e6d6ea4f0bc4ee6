// SPDX-License-Identifier: BSD-3-Clause
// What programs that hold kernels to src/reference/ compare with: outputs lie poisoned between
// guards, each launch is done twice, and differences are counted and printed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cuda/device_buffer.h"

namespace moe8::cuda {

using Bytes = std::vector<uint8_t>;
using DeviceBytes = testing::DeviceBuffer<uint8_t>;
using testing::require;

inline int failures = 0;
inline int64_t compared = 0;

void expect(bool condition, const std::string& what);
void expect_equal(const std::string& what, const DeviceBytes& actual, const Bytes& expected);

template <typename T>
Bytes bytes_of(const std::vector<T>& v) {
  Bytes bytes(v.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), v.data(), bytes.size());
  return bytes;
}

/// Runs `launch` twice on poisoned outputs, comparing both times.
template <typename Launch>
void run(const std::string& what, std::vector<std::pair<DeviceBytes*, const Bytes*>> outputs,
         Launch launch) {
  for (int time = 0; time < 2; ++time) {
    for (auto& [out, _] : outputs) out->poison();
    require(launch(), what.c_str());
    require(cudaDeviceSynchronize(), what.c_str());
    for (size_t i = 0; i < outputs.size(); ++i) {
      expect_equal(what + " output " + std::to_string(i), *outputs[i].first, *outputs[i].second);
    }
  }
}

/// The main of such a program, `NAME [RANDOM]`: runs `checks` with the number of random problems that
/// the command line says, `usual` without one, and prints what became of them: "OK: 7 bytes compared,
/// 0 failures, 40 random shapes".
/// @param unit  what is counted, "bytes"
/// @param problems  what is random, "shapes"
/// @returns the exit status; 77, "skipped", where there is no GPU
int run_checks(int argc, char** argv, int usual, const char* unit, const char* problems,
               void (*checks)(int random));

}  // namespace moe8::cuda
