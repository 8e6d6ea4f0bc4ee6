// SPDX-License-Identifier: BSD-3-Clause
// Conversion files: which weights train in which format, as TOML.
//   [[convert]]
//   match = "re:.*\\.experts\\.w[123]"      a key of moe8/quantize_model.h
//   recipe = "mxfp8_rceil"                  or "none": leave alone
//   wgrad_with_hp = true                    optional: fields of the recipe's config
#pragma once

#include <string>

#include "moe8/quantize_model.h"

namespace moe8 {

/// What a conversion file says, as quantize_ takes it; `moe8 train --convert` and `moe8 plan` read
/// it the same way. Rules keep their order.
///
///   moe8::quantize_(*model, moe8::read_conversion_file("convert.toml"));
///
/// @throws c10::Error naming file and line, and what was expected: for a file that cannot be read,
///         text that is no TOML, unknown tables, recipes and fields, values of the wrong kind.
FqnToConfig read_conversion_file(const std::string& path);

}  // namespace moe8
