// SPDX-License-Identifier: BSD-3-Clause
// From FP8 codes with one scale per row back to numbers: what it takes and gives. No Torch.
// Deterministic; it writes every byte of its output, allocates nothing and never waits for the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"
#include "formats/float_type.h"
#include "moe8/formats.h"

namespace moe8::cuda {

/// out = decode(code) * (1 / scale) in float32, rounded once; a NaN is 0x7FC00000.
/// Cost floor per element: 1 byte read, 2 or 4 written.
struct Float8DecodeArgs {
  const uint8_t* codes;  // [rows, columns]
  const float* scale;    // [rows], what the source was multiplied by
  int64_t rows;
  int64_t columns;
  ElemDtype elem;  // E4M3 or E5M2
  void* out;       // [rows, columns]
  FloatType out_type;
};
LaunchStatus launch_float8_decode(const Float8DecodeArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
