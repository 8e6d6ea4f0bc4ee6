// SPDX-License-Identifier: BSD-3-Clause
// The "quantization_config" of a config.json: which quantized files are read, and what is written beside
// weights that save_pretrained() quantizes. No Torch.
#pragma once

#include "models/config_json.h"

namespace moe8 {

/// Formats of the library compressed-tensors, which vLLM reads as well.
inline constexpr const char* kFloatQuantized = "float-quantized";  // FP8, a scale per row
inline constexpr const char* kMxfp8Quantized = "mxfp8-quantized";  // FP8, a scale per 32 of a row

/// Reads the key, where it is there. All families are read with FP8 weights: with a scale per block of
/// 128 x 128 (quant_method fp8), or as quantization_config() says.
/// @throws c10::Error for every other quantization
void read_quantization(ConfigReader& json);

/// The same for a family whose experts may be MXFP4, and nothing else.
void read_mxfp4_quantization(ConfigReader& json);

/// Of files whose Linears, experts among them, are quantized: all but routers and output projection.
/// @param format  kFloatQuantized or kMxfp8Quantized
OrderedJson quantization_config(const char* format);

}  // namespace moe8
