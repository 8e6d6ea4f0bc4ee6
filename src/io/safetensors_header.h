// SPDX-License-Identifier: BSD-3-Clause
// The JSON header of a safetensors file, to and from text. No file access here.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "moe8/safetensors.h"

namespace moe8 {

// The operations, for messages.
inline constexpr const char* kLoad = "load_safetensors";
inline constexpr const char* kSave = "save_safetensors";

inline constexpr uint64_t kSafetensorsLengthBytes = 8;        // little-endian, before the header
inline constexpr uint64_t kSafetensorsMaxHeader = 100000000;  // the limit of the format

/// An element type of the format.
struct SafetensorsDtype {
  std::string_view name;
  int bits;             // of one element as shapes count them
  at::ScalarType type;  // Undefined: LibTorch has no such type
  int packed = 1;       // elements in one of LibTorch's
};

/// nullptr when the format has no such type.
const SafetensorsDtype* find_safetensors_dtype(std::string_view name);
const SafetensorsDtype* find_safetensors_dtype(at::ScalarType type);

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
};

/// Reads and checks a header whose data section has `data_size` bytes.
/// @throws c10::Error naming `file`, the tensor and what is wrong.
SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t data_size,
                                           const std::string& file);

/// The text of a header, padded with spaces so that the data section starts at a multiple of 8.
/// @throws c10::Error when a name or the metadata is not UTF-8.
std::string write_safetensors_header(const SafetensorsHeader& header, const std::string& file);

/// A name from a file as it may stand in a message: quoted, escaped and shortened.
std::string shown(std::string_view name);

}  // namespace moe8
