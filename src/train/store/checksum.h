// SPDX-License-Identifier: BSD-3-Clause
// Checksums that tell whether bytes are still what was written; no protection against intent.
#pragma once

#include <string>

#include "io/file.h"

namespace moe8 {

/// XXH3 with 128 bits of a whole file, as 32 hexadecimal digits: what `xxh128sum` prints.
/// @throws c10::Error when it cannot be read.
std::string checksum(const InputFile& file);

}  // namespace moe8
