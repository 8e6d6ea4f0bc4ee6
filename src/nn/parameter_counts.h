// SPDX-License-Identifier: BSD-3-Clause
// What one parameter adds to the counts of a model.
#pragma once

#include "moe8/transformer_config.h"

namespace moe8 {

/// Of a parameter of Transformer(config): all its elements, and those that one token uses, of the
/// routed experts top_k. For models that count_parameters() accepts.
ParameterCounts counts_of(const ParameterShape& parameter, const TransformerConfig& config);

}  // namespace moe8
