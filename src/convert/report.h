// SPDX-License-Identifier: BSD-3-Clause
// The report of a conversion for a terminal.
#pragma once

#include <cstddef>
#include <string>

#include "moe8/quantize_model.h"

namespace moe8 {

/// What ConversionReport::to_table() says, in lines of at most `columns` characters; 0: no limit.
std::string fitted_table(const ConversionReport& report, size_t columns);

}  // namespace moe8
