// SPDX-License-Identifier: BSD-3-Clause
#include "moe8/version.h"

#define MOE8_TEXT_OF(x) #x
#define MOE8_TEXT(x) MOE8_TEXT_OF(x)

namespace moe8 {

const char* version() {
  return MOE8_TEXT(MOE8_VERSION_MAJOR) "." MOE8_TEXT(MOE8_VERSION_MINOR) "." MOE8_TEXT(
      MOE8_VERSION_PATCH);
}

}  // namespace moe8
