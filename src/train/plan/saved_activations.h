// SPDX-License-Identifier: BSD-3-Clause
// What autograd keeps from forward to backward, part by part of a model, from a config alone. On a
// CPU to the byte (tests/train/plan/memory_plan_test.cpp), on a Hopper GPU what moe8's own norms,
// loss and router keep there (tests/cuda/train_test.cpp).
#pragma once

#include <string>
#include <vector>

#include "train/config/run_config.h"
#include "train/plan/planned_conversion.h"

namespace moe8 {

/// Something that autograd keeps from forward to backward.
struct SavedTensor {
  std::string what;
  double bytes = 0;  // a token
};

/// What one part of the model keeps for each token of a rank.
struct SavedByPart {
  std::vector<SavedTensor> kept;  // until the part's backward is through
  double recomputed = 0;          // bytes a token beside them, of what backward computes again

  double bytes() const;  // of kept
};

/// The embedding, each layer, and the end: norm, output projection and loss.
/// A few bytes that do not depend on the tokens are left out.
/// @param held  ranks over which the model is spread. Each product of a part of a weight sees the
///              tokens of the whole tensor group; experts see what the ranks of their group send
///              them when each expert gets as many tokens
std::vector<SavedByPart> saved_by_part(const RunConfig& config, const PlannedConversion& conversion,
                                       const ParallelConfig& held);

/// The same of all parts together. @throws c10::Error as quantize_.
std::vector<SavedTensor> saved_for_backward(const RunConfig& config,
                                            const ParallelConfig& held = {});

/// Of how many parts a model is made, and which has a parameter or module of this name.
size_t parts_of_model(const TransformerConfig& config);
size_t part_of_name(const std::string& name, const TransformerConfig& config);

/// Whether what the parameter of this name is used for is computed once more in backward.
bool is_recomputed(const std::string& name, Recompute recompute);

/// The chance that a given one of `ranks` has an expert of a token.
double chance_of_rank(const TransformerConfig& config, int64_t ranks);

}  // namespace moe8
