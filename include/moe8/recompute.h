// SPDX-License-Identifier: BSD-3-Clause
// How much of a transformer's activations is kept from forward to backward.
#pragma once

#include <string_view>

namespace moe8 {

/// What of a block is not kept but computed once more in backward, in the same bits.
///   NONE       nothing
///   SELECTIVE  its second half: norm, router and experts, or the dense feed-forward. The hidden rows
///              of the experts are most of what a block keeps; attention, whose time grows with the
///              sequence, is not computed again
///   FULL       all of it: a block keeps its input alone
enum class Recompute { NONE, SELECTIVE, FULL };

/// "none", "selective", "full"
std::string_view to_string(Recompute value);

}  // namespace moe8
