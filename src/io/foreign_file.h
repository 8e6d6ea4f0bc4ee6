// SPDX-License-Identifier: BSD-3-Clause
// What people pass in place of safetensors files and of text: known by the first bytes.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "io/file.h"

namespace moe8 {

/// "a Git LFS pointer. The file itself was not downloaded: ...", for after "expected ..., got ";
/// nothing when the bytes are of no known kind.
std::optional<std::string> foreign_kind(std::string_view first_bytes);

/// The same for a file. The index of a model in several files is named with these.
std::optional<std::string> foreign_kind(const InputFile& file);

bool is_git_lfs_pointer(std::string_view first_bytes);

/// What to say of a directory: "a directory. Pass its files instead: ..."
std::string directory_kind(const std::string& path);

/// Text in UTF-16 or UTF-32 as iconv calls it, by its byte order mark or by its NUL bytes beside
/// printable ASCII; nothing for all other bytes.
std::optional<std::string> wide_encoding(std::string_view first_bytes);

}  // namespace moe8
