// SPDX-License-Identifier: BSD-3-Clause
// The index of a published model in several files: which of them holds which tensor. No file access
// here.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace moe8 {

inline constexpr const char* kIndexFile = "model.safetensors.index.json";

/// {"weight_map": {"name of a tensor": "name of its file", ...}}: files by tensors. A file's name is one
/// of a file beside the index, in characters that may be printed.
/// @param where  the index, for messages
/// @throws c10::Error naming the tensor and what is wrong with its file
std::map<std::string, std::string> parse_weight_map(std::string_view text,
                                                    const std::string& where);

}  // namespace moe8
