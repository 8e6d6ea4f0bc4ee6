// SPDX-License-Identifier: BSD-3-Clause
// The config.json of a folder of a published model, as Hugging Face lays such folders out.
#pragma once

#include <string>

#include "moe8/transformer_config.h"

namespace moe8 {

/// The text of one of a folder's JSON files.
/// @throws c10::Error naming the file that is missing or a Git LFS pointer.
std::string read_hf_file(const std::string& folder, const std::string& name);

/// The model that `folder`/config.json describes, with the settings of training at what the file says
/// of them, or none. @throws c10::Error naming the file, the key, and what is wrong with it.
TransformerConfig read_hf_config(const std::string& folder);

}  // namespace moe8
