// SPDX-License-Identifier: BSD-3-Clause
// Text with numbers in it: the same bytes under every locale of the process, whereas streams (and
// with them c10::str) group digits and printf writes a decimal comma when the locale does.
#pragma once

#include <locale>
#include <sstream>
#include <string>
#include <type_traits>

namespace moe8 {
namespace plain_text {

// Literals of every length as the one type that is streamed.
inline const char* part(const char* text) {
  return text;
}
template <typename T>
requires(!std::is_array_v<T>) const T& part(const T& value) {
  return value;
}

template <typename... Parts>
std::string streamed(const Parts&... parts) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  (out << ... << parts);
  return out.str();
}

}  // namespace plain_text

/// The parts streamed one after the other, as c10::str does it, in the classic locale.
template <typename... Parts>
std::string concat(const Parts&... parts) {
  return plain_text::streamed(plain_text::part(parts)...);
}

/// The shortest text that reads back as the same number: "0.05", "500000", "1e-05", "inf".
std::string shortest(double value);

/// As printf's "%.*f" and "%.*g" in the C locale.
std::string fixed_digits(double value, int digits);
std::string general_digits(double value, int digits);

/// As printf writes it in the C locale.
[[gnu::format(printf, 1, 2)]] std::string formatted(const char* format, ...);

}  // namespace moe8
