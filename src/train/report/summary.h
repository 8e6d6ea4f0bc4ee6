// SPDX-License-Identifier: BSD-3-Clause
// The top of the page: the verdict, a card for every run, and the table.
#pragma once

#include <string>

#include "train/report/report.h"

namespace moe8 {

std::string summary(const Report& report);

}  // namespace moe8
