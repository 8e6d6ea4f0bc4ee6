// SPDX-License-Identifier: BSD-3-Clause
// NVIDIA's driver, found at run time. Whoever asks it needs neither CUDA's headers nor its
// libraries, so that a build without them still knows the GPUs that LibTorch computes on.
#pragma once

#include <cstdint>

namespace moe8 {

/// Functions of libcuda.so.1; each returns 0 when it succeeded.
struct CudaDriver {
  int (*device_get_count)(int* count);
  int (*device_get)(int* device, int ordinal);
  int (*device_get_name)(char* name, int size, int device);
  int (*device_get_attribute)(int* value, int attribute, int device);
  int (*stream_get_capture_info)(void* stream, int* status, uint64_t* id);

  // Values of the driver's enumerations.
  static constexpr int kCapabilityMajor = 75;
  static constexpr int kCapabilityMinor = 76;
  static constexpr int kCaptureActive = 1;
};

/// Null where there is no driver, or where it cannot start.
const CudaDriver* cuda_driver();

}  // namespace moe8
