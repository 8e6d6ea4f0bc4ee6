// SPDX-License-Identifier: BSD-3-Clause
// The kinds of conformance cases: what each computes and how the result is compared.
#pragma once

#include "conformance/case_file.h"
#include "conformance/compare.h"

namespace moe8 {

/// @throws c10::Error for an unknown kind, and for a case that lacks something or does not fit.
Outcome check_case(const CaseFile& file);

}  // namespace moe8
