// SPDX-License-Identifier: BSD-3-Clause
// How wide the terminal is.
#pragma once

#include <cstddef>

namespace moe8 {

/// Columns of the terminal behind a file descriptor now; where there is none, those that the
/// variable COLUMNS says; else 80.
int terminal_columns(int fd);

/// The same for what writes tables: 0, which is no limit, where the output goes into a file or to
/// another program.
size_t table_columns(int fd);

}  // namespace moe8
