// SPDX-License-Identifier: BSD-3-Clause
// Text from files and other strangers, made fit to be shown. No Torch.
#pragma once

#include <string>
#include <string_view>

namespace moe8 {

/// `text` with its control characters as \xNN, so that it cannot steer a terminal.
std::string printable(std::string_view text);

}  // namespace moe8
