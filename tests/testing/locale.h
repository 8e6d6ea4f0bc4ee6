// SPDX-License-Identifier: BSD-3-Clause
// The global locale of a program that a library cannot choose: digits grouped, a decimal comma.
#pragma once

#include <locale>

namespace moe8::testing {

/// While it lives, streams write 4.000 and 0,5.
class GermanStreams {
 public:
  GermanStreams();
  ~GermanStreams();
  GermanStreams(const GermanStreams&) = delete;
  GermanStreams& operator=(const GermanStreams&) = delete;

 private:
  std::locale before_;
};

/// Takes the locale that MOE8_TEST_LOCALE names, for streams and printf; "streams" for the above.
void set_locale_of_environment();

}  // namespace moe8::testing
