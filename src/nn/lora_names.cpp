// SPDX-License-Identifier: BSD-3-Clause
#include "nn/lora_names.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "convert/name_patterns.h"

namespace moe8 {
namespace {

constexpr const char* kLoraOp = "lora";
constexpr std::string_view kWeightEnd = ".weight";

bool is_adapted_experts(std::string_view name) {
  return name.find(".moe.experts.w") != std::string_view::npos;
}

bool is_of_linear(std::string_view name) {
  for (const std::string_view part : {".attention.w", ".feed_forward.w", ".shared_experts.w"}) {
    if (name.find(part) != std::string_view::npos) return name.ends_with(kWeightEnd);
  }
  return false;
}

}  // namespace

std::string lora_beginning(const std::string& weight) {
  if (is_adapted_experts(weight)) return weight + "_";
  if (!is_of_linear(weight)) return "";
  return weight.substr(0, weight.size() - kWeightEnd.size() + 1);
}

LoraShape lora_shape(const std::vector<int64_t>& weight, int64_t rank) {
  LoraShape shape{weight, weight};
  shape.a[weight.size() - 2] = rank;
  shape.b[weight.size() - 1] = rank;
  return shape;
}

std::vector<ParameterShape> lora_targets(const TransformerConfig& config,
                                         const LoraOptions& options) {
  MOE8_CHECK(options.rank >= 1, kLoraOp, "rank", "expected at least 1, got ", options.rank);
  MOE8_CHECK(std::isfinite(options.alpha), kLoraOp, "alpha", "expected a finite number, got ",
             options.alpha);
  NamePatterns targets(kLoraOp, "targets", options.targets);
  std::vector<ParameterShape> weights;
  for (const ParameterShape& p : parameter_shapes(config)) {
    if (!targets.matches(p.name)) continue;
    MOE8_CHECK(
        !lora_beginning(p.name).empty(), kLoraOp, "targets",
        "expected weights of Linears in attention or feed-forward, or of routed experts, got ",
        p.name);
    const int64_t most = std::max(p.shape.back(), p.shape[p.shape.size() - 2]);
    MOE8_CHECK(options.rank <= most, kLoraOp, "rank", "expected at most ", most,
               ", the longer side of ", p.name, ", got ", options.rank);
    weights.push_back(p);
  }
  targets.check_all_matched();
  return weights;
}

std::vector<ParameterShape> lora_shapes(const TransformerConfig& config,
                                        const LoraOptions& options) {
  std::vector<ParameterShape> shapes;
  for (const ParameterShape& weight : lora_targets(config, options)) {
    const std::string begin = lora_beginning(weight.name);
    const LoraShape shape = lora_shape(weight.shape, options.rank);
    shapes.push_back({begin + kLoraA, shape.a});
    shapes.push_back({begin + kLoraB, shape.b});
  }
  return shapes;
}

}  // namespace moe8
