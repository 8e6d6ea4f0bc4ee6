// SPDX-License-Identifier: BSD-3-Clause
// Columns of text for a terminal. No Torch.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace moe8 {

struct TextTable {
  std::string indent{};
  /// How wide a line may be: cells of the widest column continue on lines below. 0: no limit, for
  /// files and for programs that read the output line by line.
  size_t columns = 0;
};

/// The rows with every column but the last padded to its widest cell; each line ends in a newline.
/// A row with one cell is a remark, as long as it likes.
std::string text_table(const std::vector<std::vector<std::string>>& rows,
                       const TextTable& style = {});

/// Characters, not bytes: continuation bytes of UTF-8 take no column.
size_t text_width(std::string_view text);

/// The text cut into pieces of at most `width` characters, at spaces where there are any.
std::vector<std::string> folded(const std::string& text, size_t width);

}  // namespace moe8
