// SPDX-License-Identifier: BSD-3-Clause
// What `--recipe NAME` converts in the transformer of moe.h.
#include "train/config/recipe_rules.h"

#include <array>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"

namespace moe8 {
namespace {

constexpr const char* kExperts = "re:.*\\.moe\\.experts\\.w[123]";
constexpr const char* kLinears =
    "re:.*\\.(attention\\.w([qkvo]|k?[qv]_[ab])|(feed_forward|shared_experts)\\.w[123])\\.weight";

struct LinearCompanion {
  const char* experts;     // recipe of the experts
  const char* linear;      // recipe of the Linears beside them
  const char* scale_mode;  // set where the linear recipe's own differs from the experts'
};

constexpr std::array<LinearCompanion, 6> kCompanions{{
    {"fp8_rowwise", "rowwise", nullptr},
    {"mxfp8_rceil", "mxfp8_cublas_rceil", nullptr},
    {"mxfp8_rceil_wgrad_with_hp", "mxfp8_cublas_rceil", nullptr},
    {"mxfp8_emulated_rceil", "mxfp8_emulated", "rceil"},
    {"mxfp8_floor", "mxfp8_cublas", nullptr},
    {"mxfp8_floor_wgrad_with_hp", "mxfp8_cublas", nullptr},
}};

ConversionRule rule(const char* match, const std::string& recipe_name) {
  return {match, recipe_name, {}, "recipe " + recipe_name};
}

/// Linears of one shape.
struct LinearGroup {
  const char* match;
  int64_t elements;
};

std::vector<LinearGroup> attention_groups(const TransformerConfig& c) {
  const int64_t width = c.n_heads * c.head_width(), kv = c.n_kv_heads * c.head_width();
  return {{"re:.*\\.attention\\.w[qo]\\.weight", width * c.dim},
          {"re:.*\\.attention\\.w[kv]\\.weight", kv * c.dim}};
}

std::vector<LinearGroup> latent_attention_groups(const TransformerConfig& c) {
  const int64_t queries = c.n_heads * c.query_width();
  std::vector<LinearGroup> groups{
      {"re:.*\\.attention\\.wo\\.weight", c.n_heads * c.head_width() * c.dim},
      {"re:.*\\.attention\\.wkv_a\\.weight", (c.kv_rank + c.rotary_dim) * c.dim},
      {"re:.*\\.attention\\.wkv_b\\.weight",
       c.n_heads * (c.plain_head_dim + c.head_width()) * c.kv_rank}};
  if (c.q_rank > 0) {
    groups.push_back({"re:.*\\.attention\\.wq_a\\.weight", c.q_rank * c.dim});
    groups.push_back({"re:.*\\.attention\\.wq_b\\.weight", queries * c.q_rank});
  } else {
    groups.push_back({"re:.*\\.attention\\.wq\\.weight", queries * c.dim});
  }
  return groups;
}

// Those that the model has: a rule that decides nothing is an error.
std::vector<LinearGroup> linear_groups(const TransformerConfig& c) {
  std::vector<LinearGroup> groups =
      c.has_latent_attention() ? latent_attention_groups(c) : attention_groups(c);
  if (c.n_dense_layers > 0) {
    groups.push_back({"re:.*\\.feed_forward\\.w[123]\\.weight", c.dense_hidden_dim * c.dim});
  }
  if (c.n_shared_experts > 0 && c.n_dense_layers < c.n_layers) {
    groups.push_back(
        {"re:.*\\.shared_experts\\.w[123]\\.weight", c.n_shared_experts * c.hidden_dim * c.dim});
  }
  return groups;
}

}  // namespace

std::vector<std::string> training_recipes() {
  std::vector<std::string> names{"bf16"};
  for (const RecipeInfo& info : all_recipes()) names.push_back(info.name);
  return names;
}

std::vector<ConversionRule> recipe_rules(const std::string& name) {
  if (name == "bf16") return {};
  const std::vector<std::string> names = training_recipes();
  MOE8_CHECK(std::find(names.begin(), names.end(), name) != names.end(), "recipe", "name",
             "expected one of ", join(names), ", got '", name, "'", did_you_mean(name, names));
  if (!is_grouped(recipe(name))) return {rule(kLinears, name)};
  for (const LinearCompanion& companion : kCompanions) {
    if (name != companion.experts) continue;
    ConversionRule linears = rule(kLinears, companion.linear);
    if (companion.scale_mode) {
      linears.fields.emplace_back("scale_calculation_mode", companion.scale_mode);
    }
    return {rule(kExperts, name), linears};
  }
  fail("recipe", "name",
       concat("the table of recipe_rules.cpp lacks a linear recipe beside '", name, "'"));
}

std::vector<ConversionRule> without_small_linears(const std::vector<ConversionRule>& rules,
                                                  const TransformerConfig& config) {
  constexpr int64_t kWorthIt = 1 << 20;  // elements
  std::vector<ConversionRule> result;
  const std::vector<LinearGroup> groups = linear_groups(config);
  for (const LinearGroup& group : groups) {
    if (group.elements < kWorthIt) {
      result.push_back({group.match, "none", {}, "training.small_linears"});
    }
  }
  const bool leaves_some = result.size() < groups.size();
  for (const ConversionRule& rule : rules) {
    if (rule.match != kLinears || leaves_some) result.push_back(rule);
  }
  return result;
}

}  // namespace moe8
