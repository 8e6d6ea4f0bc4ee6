// SPDX-License-Identifier: BSD-3-Clause
#include "testing/locale.h"

#include <clocale>
#include <cstdlib>
#include <string>

namespace moe8::testing {
namespace {

struct German : std::numpunct<char> {
  char do_thousands_sep() const override { return '.'; }
  char do_decimal_point() const override { return ','; }
  std::string do_grouping() const override { return "\3"; }
};

std::locale german() {
  return {std::locale(), new German};  // the locale owns its facets
}

// The system's own messages stay English, as tests expect them. Returns the locale before.
std::locale make_global(const std::locale& locale) {
  std::locale before = std::locale::global(locale);
  std::setlocale(LC_MESSAGES, "C");
  return before;
}

}  // namespace

GermanStreams::GermanStreams() : before_(make_global(german())) {}
GermanStreams::~GermanStreams() {
  make_global(before_);
}

void set_locale_of_environment() {
  const char* name = std::getenv("MOE8_TEST_LOCALE");
  if (!name) return;
  make_global(std::string(name) == "streams" ? german() : std::locale(name));
}

}  // namespace moe8::testing
