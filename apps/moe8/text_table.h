// SPDX-License-Identifier: BSD-3-Clause
// Columns of text for a terminal.
#pragma once

#include <string>
#include <vector>

namespace moe8 {

/// The rows with every column but the last padded to its widest cell; each line ends in a newline.
std::string text_table(const std::vector<std::vector<std::string>>& rows,
                       const std::string& indent = "");

}  // namespace moe8
