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

}  // namespace

GermanStreams::GermanStreams() : before_(std::locale::global(german())) {}
GermanStreams::~GermanStreams() {
  std::locale::global(before_);
}

void set_locale_of_environment() {
  const char* name = std::getenv("MOE8_TEST_LOCALE");
  if (!name) return;
  std::locale::global(std::string(name) == "streams" ? german() : std::locale(name));
  std::setlocale(LC_MESSAGES, "C");  // the system's own messages stay English, as tests expect them
}

}  // namespace moe8::testing
