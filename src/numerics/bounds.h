// SPDX-License-Identifier: BSD-3-Clause
// Which values of a report are out of bounds. The bounds themselves are the table in bounds.cpp.
#pragma once

#include <optional>
#include <vector>

#include "moe8/numerics.h"

namespace moe8 {

/// The format with fewer mantissa bits, which decides how exact a product can be. Not set: high
/// precision.
std::optional<ElemDtype> coarser(const std::optional<ElemDtype>& a,
                                 const std::optional<ElemDtype>& b);

/// The default bound that counts for a format, or nothing where there is none.
std::optional<NumericsBound> default_bound(NumericsQuantity quantity,
                                           const std::optional<ElemDtype>& elem);

/// The bound on the busiest expert, where it can get at most `largest` times the mean: that of the
/// table, or two thirds of the way from balance to `largest` where that is less. So it can be
/// reached by every layer whose experts do not all get every token.
double most_for_busiest(double of_the_table, double largest);

/// Every value of the report that has a bound and leaves it, in the report's order.
std::vector<NumericsWarning> warnings_of(const NumericsReport& report,
                                         const std::vector<NumericsBound>& bounds);

}  // namespace moe8
