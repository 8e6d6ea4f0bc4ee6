// SPDX-License-Identifier: BSD-3-Clause
// Text that programs read back: the same bytes under every global locale, whereas streams (and with
// them c10::str) group digits and printf writes a decimal comma when the program's locale does.
#pragma once

#include <locale>
#include <sstream>
#include <string>

namespace moe8 {

/// The parts streamed one after the other, as c10::str does it, in the classic locale.
template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  (out << ... << parts);
  return out.str();
}

/// The shortest text that reads back as the same number: "0.05", "500000", "1e-05", "inf".
std::string shortest(double value);

/// As printf's "%.*f" and "%.*g" in the C locale.
std::string fixed_digits(double value, int digits);
std::string general_digits(double value, int digits);

}  // namespace moe8
