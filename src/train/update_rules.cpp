// SPDX-License-Identifier: BSD-3-Clause
#include "train/update_rules.h"

namespace moe8 {

namespace {

// Of one expert, where several are stacked.
int64_t own_dimensions(std::string_view name, int64_t dimensions) {
  const bool is_stacked = name.find(".moe.experts.") != std::string_view::npos;
  return dimensions - (is_stacked ? 1 : 0);
}

}  // namespace

bool decays(std::string_view name, int64_t dimensions) {
  return own_dimensions(name, dimensions) >= 2;
}

UpdateRule update_rule(OptimizerKind kind, std::string_view name, int64_t dimensions) {
  if (kind == OptimizerKind::ADAMW || own_dimensions(name, dimensions) < 2)
    return UpdateRule::ADAMW;
  const bool is_of_tokens = name == "tok_embeddings.weight" || name == "output.weight";
  const bool is_router = name.find(".router.") != std::string::npos;
  return is_of_tokens || is_router ? UpdateRule::ADAMW : UpdateRule::MUON;
}

}  // namespace moe8
