// SPDX-License-Identifier: BSD-3-Clause
// How much of a machine a run uses: floating-point operations of the model, and what GPUs can do.
#pragma once

#include <optional>
#include <string_view>

#include "moe8/transformer.h"

namespace moe8 {

/// Operations that training takes for one token, forward and backward, whatever a recipe does: 6
/// for every parameter that a token is multiplied with, and 6 * S * heads * width for every layer's
/// causal attention over sequences of S tokens.
double model_flops(const TransformerConfig& config, int64_t seq_len);

/// The most bf16 operations a second, without sparsity, that the maker of a GPU gives for it;
/// nothing for CPUs and GPUs that are not in the table.
std::optional<double> bf16_peak(std::string_view device);

}  // namespace moe8
