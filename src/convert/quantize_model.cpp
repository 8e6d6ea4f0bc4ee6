// SPDX-License-Identifier: BSD-3-Clause
// quantize_ and dequantize_ on live modules: names the parameters, asks resolve(), tags them, and
// has their use watched.
#include "moe8/quantize_model.h"

#include <ATen/autocast_mode.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/nearest.h"
#include "base/plain_text.h"
#include "convert/aten_hooks.h"
#include "convert/model_names.h"
#include "convert/resolve.h"
#include "weights/backward_end.h"
#include "weights/tags.h"
#include "weights/usage.h"

namespace moe8 {
namespace {

// ---- one decision per tensor ------------------------------------------------
struct Decision {
  at::Tensor tensor;
  const torch::nn::Module* owner;  // of its first name
  ConversionRow row;
  bool is_new = true;  // converted by this call, from plain or from another config
};

std::string text_of(const ConversionRow& row) {
  return concat(row.config ? to_string(*row.config) : "to be left alone", " by key '",
                row.key.value_or(""), "'");
}

// A tied parameter (one tensor under several names) is decided by any of its names; two that
// disagree are an error. `names` are the rows' positions, the first name first.
ConversionRow merge_names(const std::vector<ConversionRow>& rows,
                          const std::vector<size_t>& names) {
  const ConversionRow* decided = nullptr;
  std::vector<std::string> aliases;
  for (const size_t i : names) {
    if (i != names.front()) aliases.push_back(rows[i].fqn);
    if (!rows[i].key) continue;
    MOE8_CHECK(!decided || decided->config == rows[i].config, "quantize_", rows[i].fqn,
               "expected the same config as ", decided->fqn, ", which is the same tensor (",
               text_of(*decided), "), got ", text_of(rows[i]));
    if (!decided) decided = &rows[i];
  }
  ConversionRow merged = decided ? *decided : rows[names.front()];
  merged.fqn = rows[names.front()].fqn;
  if (!aliases.empty()) merged.reason += ", the same tensor as " + join(aliases);
  return merged;
}

std::vector<Decision> decisions_of(const ModelNames& names,
                                   const std::vector<ConversionRow>& rows) {
  std::unordered_map<const c10::TensorImpl*, size_t> group_of;
  std::vector<std::vector<size_t>> groups;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto [entry, is_new] =
        group_of.try_emplace(names.tensors[i].unsafeGetTensorImpl(), groups.size());
    if (is_new) groups.emplace_back();
    groups[entry->second].push_back(i);
  }
  std::vector<Decision> decisions;
  decisions.reserve(groups.size());
  for (const std::vector<size_t>& group : groups) {
    const size_t first = group.front();
    decisions.push_back({names.tensors[first], names.owners[first], merge_names(rows, group)});
  }
  return decisions;
}

// Completes the row by what the tensor was before.
void compare_with_before(Decision& decision) {
  ConversionRow& row = decision.row;
  const std::optional<Config> before = config_of(decision.tensor);
  if (!before) return;
  decision.is_new = row.key && row.config != before;
  if (row.config == before) return;
  if (row.key) {
    row.replaced = before;
    row.reason += row.config ? ", replacing " + to_string(*before) : ", conversion taken back";
  } else {
    row.config = before;
    row.reason = "converted earlier, no key of this call names it";
  }
}

// Whether the Linear that owns the weight computes with another tensor, and one that is plain.
// Nothing is kept alive.
std::function<bool()> replacement_watch(const Decision& decision) {
  if (!decision.owner->as<torch::nn::LinearImpl>()) return {};
  return [owner = decision.owner->weak_from_this(), impl = decision.tensor.unsafeGetTensorImpl()] {
    const std::shared_ptr<const torch::nn::Module> module = owner.lock();
    if (!module) return false;
    const at::Tensor& weight = module->as<torch::nn::LinearImpl>()->weight;
    return weight.unsafeGetTensorImpl() != impl && !find_tag(weight);
  };
}

// From now on the use of a weight is noted, and judged when a backward has ended.
void watch_use(const Decision& decision, Unused unused) {
  const uint64_t id = find_tag(decision.tensor)->id();
  const bool is_first = expect_use(
      id, decision.tensor,
      {decision.row.fqn, decision.row.shape, unused, replacement_watch(decision)}, decision.is_new);
  if (is_first) watch_gradient(decision.tensor, id);
}

void carry_out(const std::vector<Decision>& decisions, Unused unused) {
  const bool converts = std::any_of(decisions.begin(), decisions.end(),
                                    [](const Decision& d) { return d.row.config.has_value(); });
  if (converts) install_aten_hooks();
  for (const Decision& decision : decisions) {
    if (decision.row.config) {
      set_tag(decision.tensor, *decision.row.config);
      if (decision.row.key) watch_use(decision, unused);
    } else {
      clear_tag(decision.tensor);
    }
  }
  // Autocast may hold casts of weights as they were.
  at::autocast::clear_cache();
}

ConversionReport convert(const ModelNames& names, ConversionReport resolved,
                         const QuantizeOptions& options) {
  std::vector<Decision> decisions = decisions_of(names, resolved.rows);
  for (Decision& decision : decisions) compare_with_before(decision);
  if (!options.dry_run) carry_out(decisions, options.unused);
  ConversionReport report{.rows = {}, .unmatched_keys = std::move(resolved.unmatched_keys)};
  for (Decision& decision : decisions) report.rows.push_back(std::move(decision.row));
  return report;
}

// ---- one config and a filter ------------------------------------------------
constexpr const char* kNotPassed = "no enclosing module passed the filter";

// The names of the modules that pass; those below one that passes are not asked.
std::unordered_set<std::string> passing_modules(const ModelNames& names, const FilterFn& filter) {
  std::unordered_set<std::string> passing;
  for (const auto& [fqn, module] : names.modules) {
    const std::vector<std::string> above = enclosing_modules(fqn);
    const bool below = std::any_of(above.begin(), above.end(),
                                   [&](const std::string& name) { return passing.contains(name); });
    if (!below && filter(*module, fqn)) passing.insert(fqn);
  }
  return passing;
}

// The decision on one parameter of a module that passed.
void decide(ConversionRow& row, const ParameterInfo& parameter, const std::string& module,
            const Config& config) {
  std::optional<std::string> obstacle = why_inapplicable(config, parameter);
  if (!obstacle) obstacle = why_unlikely(config, parameter);
  row.reason = obstacle.value_or(converted_reason(config, parameter));
  if (obstacle) return;
  row.config = config;
  row.key = module;
}

ConversionReport decide_by_filter(const ModelNames& names,
                                  const std::unordered_set<std::string>& passing,
                                  const Config& config) {
  ConversionReport report;
  for (const ParameterInfo& parameter : names.parameters) {
    ConversionRow row{.fqn = parameter.fqn,
                      .shape = parameter.shape,
                      .dtype = parameter.dtype,
                      .reason = kNotPassed};
    for (const std::string& module : enclosing_modules(parameter.fqn)) {
      if (passing.contains(module)) decide(row, parameter, module, config);
    }
    report.rows.push_back(std::move(row));
  }
  return report;
}

// Of the parameters that passed, the one that came closest: of the right rank, so that it is its
// dtype or its owner that is in the way.
std::string near_miss(const ConversionReport& report, const Config& config) {
  const ConversionRow* nearest = nullptr;
  for (const ConversionRow& row : report.rows) {
    if (row.reason == kNotPassed) continue;
    const bool fits = row.shape.size() == (is_grouped(config) ? 3u : 2u);
    if (!nearest || fits) nearest = &row;
    if (fits) break;
  }
  return nearest ? concat(", for example ", nearest->fqn, ": ", nearest->reason) : "";
}

void tell_nothing_converted(const ConversionReport& report, size_t passing, const Config& config,
                            Unmatched unmatched) {
  if (!report.converted().empty() || unmatched == Unmatched::IGNORE) return;
  const std::string text =
      concat("expected it to pass a module with parameters to which the config can apply (",
             is_grouped(config) ? "3-D expert weights" : "2-D weights of linears", "), got ",
             passing, " modules and no such parameter", near_miss(report, config),
             ". The default filter, is_linear, passes torch::nn::Linear only.");
  if (unmatched == Unmatched::ERROR) fail("quantize_", "filter", text);
  log_warning("[quantize_] filter: " + text);
}

}  // namespace

bool is_linear(const torch::nn::Module& module, const std::string& /*fqn*/) {
  return module.as<torch::nn::LinearImpl>() != nullptr;
}

ConversionReport quantize_(torch::nn::Module& model, const FqnToConfig& config,
                           const QuantizeOptions& options) {
  const ModelNames names = names_of(model);
  return convert(
      names,
      resolve(names.parameters, names.module_names(), config, options.unmatched, names.buffers),
      options);
}

ConversionReport quantize_(torch::nn::Module& model, const Config& config, const FilterFn& filter,
                           const QuantizeOptions& options) {
  validate(config);
  MOE8_CHECK(filter, "quantize_", "filter", "expected a function, got an empty one");
  const ModelNames names = names_of(model);
  const std::unordered_set<std::string> passing = passing_modules(names, filter);
  ConversionReport report = decide_by_filter(names, passing, config);
  tell_nothing_converted(report, passing.size(), config, options.unmatched);
  return convert(names, std::move(report), options);
}

void dequantize_(torch::nn::Module& model) {
  for (const at::Tensor& tensor : names_of(model).tensors) clear_tag(tensor);
  at::autocast::clear_cache();
}

}  // namespace moe8
