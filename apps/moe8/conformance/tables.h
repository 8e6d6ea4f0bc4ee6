// SPDX-License-Identifier: BSD-3-Clause
// Conformance of names: a model's modules and parameters, and which of them a FqnToConfig converts.
#pragma once

#include <functional>
#include <string>

#include "conformance/compare.h"

namespace moe8 {

/// Checks every table of a fqn_to_config file; `report` gets its number, from 0, and what came out.
/// @throws c10::Error when the file cannot be read or holds no tables.
void check_tables(const std::string& path,
                  const std::function<void(size_t number, const Outcome&)>& report);

}  // namespace moe8
