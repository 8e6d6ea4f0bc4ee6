// SPDX-License-Identifier: BSD-3-Clause
// From codes of a byte, scaled along rows, back to numbers: what it takes and gives. No Torch.
// Deterministic; it writes every byte of its output, allocates nothing and never waits for the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"
#include "formats/float_type.h"
#include "moe8/formats.h"

namespace moe8::cuda {

/// out = decode(code) * f in float32, rounded once; a NaN is 0x7FC00000. FP8: f = 1 / scale of the row,
/// MX: f = 2^(scale - 127) of its block of 32 columns, which the last one may lack some of.
/// Cost floor per element: 1 byte read, 2 or 4 written.
struct DecodeRowsArgs {
  const uint8_t* codes;        // [rows, columns]
  const float* scale;          // [rows], what the source was multiplied by; or nullptr, and:
  const uint8_t* block_scale;  // E8M0 [rows, ceil(columns / 32)]
  int64_t rows;
  int64_t columns;
  ElemDtype elem;  // E4M3 or E5M2
  void* out;       // [rows, columns]
  FloatType out_type;
};
LaunchStatus launch_decode_rows(const DecodeRowsArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
