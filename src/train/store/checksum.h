// SPDX-License-Identifier: BSD-3-Clause
// Checksums that tell whether bytes are still what was written; no protection against intent.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace moe8 {

/// XXH3 with 128 bits, as 32 hexadecimal digits: what `xxh128sum` prints.
std::string checksum(std::span<const uint8_t> bytes);

/// Of a whole file, read in pieces. @throws c10::Error when it cannot be read.
std::string checksum_of_file(const char* op, const std::string& path);

}  // namespace moe8
