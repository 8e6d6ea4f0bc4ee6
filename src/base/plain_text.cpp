// SPDX-License-Identifier: BSD-3-Clause
#include "base/plain_text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <clocale>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <limits>

namespace moe8 {
namespace {

// The longest: all digits of the largest double, a sign, a point and the digits asked for.
constexpr int kMaxDigits = 100;
using Buffer = std::array<char, std::numeric_limits<double>::max_exponent10 + kMaxDigits + 4>;

template <typename... Format>
std::string number_text(double value, Format... format) {
  if (std::isnan(value)) return "nan";  // whatever its sign
  Buffer buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, format...);
  return {buffer.data(), end.ptr};
}

// printf asks the locale of the thread, which while one lives is C's.
class CLocale {
 public:
  CLocale() : before_(::uselocale(::newlocale(LC_ALL_MASK, "C", nullptr))) {}
  ~CLocale() { ::uselocale(before_); }
  CLocale(const CLocale&) = delete;
  CLocale& operator=(const CLocale&) = delete;

 private:
  locale_t before_;
};

}  // namespace

std::string shortest(double value) {
  const double size = std::abs(value);
  const bool fits = value == 0 || (size >= 1e-4 && size < 1e16);  // 500000, not 5e+05
  return fits ? number_text(value, std::chars_format::fixed) : number_text(value);
}
std::string fixed_digits(double value, int digits) {
  return number_text(value, std::chars_format::fixed, std::min(digits, kMaxDigits));
}
std::string general_digits(double value, int digits) {
  return number_text(value, std::chars_format::general, std::min(digits, kMaxDigits));
}

std::string formatted(const char* format, ...) {
  const CLocale c_locale;
  std::va_list values, again;
  va_start(values, format);
  va_copy(again, values);
  std::string text(static_cast<size_t>(std::max(0, std::vsnprintf(nullptr, 0, format, values))), 0);
  std::vsnprintf(text.data(), text.size() + 1, format, again);
  va_end(again);
  va_end(values);
  return text;
}

}  // namespace moe8
