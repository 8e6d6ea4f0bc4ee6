// SPDX-License-Identifier: BSD-3-Clause
// quantize_ and dequantize_ on live modules: names the parameters, asks resolve(), tags them.
#include "moe8/quantize_model.h"

#include <ATen/autocast_mode.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/nearest.h"
#include "convert/aten_hooks.h"
#include "convert/resolve.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

using torch::nn::Module;

// ---- naming -----------------------------------------------------------------
// A model laid out flat: every module and parameter under every name that it has.
struct Names {
  std::vector<std::pair<std::string, const Module*>> modules;  // in pre-order
  std::vector<ParameterInfo> parameters;
  std::vector<at::Tensor> tensors;  // of `parameters`
};

std::string join_name(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

OwnerKind owner_kind(const Module& module) {
  if (module.as<torch::nn::LinearImpl>()) return OwnerKind::LINEAR;
  const bool embeds =
      module.as<torch::nn::EmbeddingImpl>() || module.as<torch::nn::EmbeddingBagImpl>();
  return embeds ? OwnerKind::EMBEDDING : OwnerKind::OTHER;
}

std::string dtype_of(const at::Tensor& tensor) {
  const std::string name(c10::getDtypeNames(tensor.scalar_type()).first);
  return tensor.layout() == at::kStrided ? name : c10::str(name, " with layout ", tensor.layout());
}

void collect(const Module& module, const std::string& fqn, std::vector<const Module*>& path,
             Names& names) {
  MOE8_CHECK(std::find(path.begin(), path.end(), &module) == path.end(), "quantize_", "model",
             "expected a tree of modules, got '", fqn, "', which contains itself");
  path.push_back(&module);
  names.modules.emplace_back(fqn, &module);
  for (const auto& parameter : module.named_parameters(/*recurse=*/false)) {
    const at::Tensor& tensor = parameter.value();
    names.parameters.push_back({.fqn = join_name(fqn, parameter.key()),
                                .shape = tensor.sizes().vec(),
                                .owner = owner_kind(module),
                                .dtype = dtype_of(tensor)});
    names.tensors.push_back(tensor);
  }
  for (const auto& child : module.named_children()) {
    collect(*child.value(), join_name(fqn, child.key()), path, names);
  }
  path.pop_back();
}

Names names_of(const Module& model) {
  Names names;
  std::vector<const Module*> path;
  collect(model, "", path, names);
  return names;
}

// ---- one decision per tensor ------------------------------------------------
struct Decision {
  at::Tensor tensor;
  ConversionRow row;
};

std::string text_of(const ConversionRow& row) {
  return c10::str(row.config ? to_string(*row.config) : "to be left alone", " by key '",
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

std::vector<Decision> decisions_of(const Names& names, const std::vector<ConversionRow>& rows) {
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
    decisions.push_back({names.tensors[group.front()], merge_names(rows, group)});
  }
  return decisions;
}

// Completes the row by what the tensor was before.
void compare_with_before(Decision& decision) {
  ConversionRow& row = decision.row;
  const std::optional<Config> before = config_of(decision.tensor);
  if (!before || row.config == before) return;
  if (row.key) {
    row.replaced = before;
    row.reason += row.config ? ", replacing " + to_string(*before) : ", conversion taken back";
  } else {
    row.config = before;
    row.reason = "converted earlier, no key of this call names it";
  }
}

void carry_out(const std::vector<Decision>& decisions) {
  const bool converts = std::any_of(decisions.begin(), decisions.end(),
                                    [](const Decision& d) { return d.row.config.has_value(); });
  if (converts) install_aten_hooks();
  for (const auto& [tensor, row] : decisions) {
    if (row.config) set_tag(tensor, *row.config);
    if (!row.config) clear_tag(tensor);
  }
  // Autocast may hold casts of weights as they were.
  at::autocast::clear_cache();
}

ConversionReport convert(const Names& names, ConversionReport resolved,
                         const QuantizeOptions& options) {
  std::vector<Decision> decisions = decisions_of(names, resolved.rows);
  for (Decision& decision : decisions) compare_with_before(decision);
  if (!options.dry_run) carry_out(decisions);
  ConversionReport report{.rows = {}, .unmatched_keys = std::move(resolved.unmatched_keys)};
  for (Decision& decision : decisions) report.rows.push_back(std::move(decision.row));
  return report;
}

// ---- one config and a filter ------------------------------------------------
// The names of the modules that pass; those below one that passes are not asked.
std::unordered_set<std::string> passing_modules(const Names& names, const FilterFn& filter) {
  std::unordered_set<std::string> passing;
  for (const auto& [fqn, module] : names.modules) {
    const std::vector<std::string> above = enclosing_modules(fqn);
    const bool below = std::any_of(above.begin(), above.end(),
                                   [&](const std::string& name) { return passing.contains(name); });
    if (!below && filter(*module, fqn)) passing.insert(fqn);
  }
  return passing;
}

ConversionReport decide_by_filter(const Names& names,
                                  const std::unordered_set<std::string>& passing,
                                  const Config& config) {
  ConversionReport report;
  for (const ParameterInfo& parameter : names.parameters) {
    ConversionRow row{.fqn = parameter.fqn,
                      .shape = parameter.shape,
                      .dtype = parameter.dtype,
                      .reason = "no enclosing module passed the filter"};
    for (const std::string& module : enclosing_modules(parameter.fqn)) {
      if (!passing.contains(module)) continue;
      const std::optional<std::string> obstacle = why_inapplicable(config, parameter);
      row.reason = obstacle.value_or("converted");
      if (!obstacle) row.config = config;
      if (!obstacle) row.key = module;
    }
    report.rows.push_back(std::move(row));
  }
  return report;
}

void tell_nothing_converted(const ConversionReport& report, size_t passing, const Config& config,
                            Unmatched unmatched) {
  if (!report.converted().empty() || unmatched == Unmatched::IGNORE) return;
  const std::string text = c10::str(
      "expected it to pass a module with parameters to which the config can apply (",
      is_grouped(config) ? "3-D expert weights" : "2-D weights of linears", "), got ", passing,
      " modules and no such parameter. The default filter, is_linear, passes torch::nn::Linear "
      "only.");
  if (unmatched == Unmatched::ERROR) fail("quantize_", "filter", text);
  log_warning("[quantize_] filter: " + text);
}

std::vector<std::string> module_names(const Names& names) {
  std::vector<std::string> list;
  for (const auto& [fqn, module] : names.modules) list.push_back(fqn);
  return list;
}

}  // namespace

bool is_linear(const torch::nn::Module& module, const std::string& /*fqn*/) {
  return module.as<torch::nn::LinearImpl>() != nullptr;
}

ConversionReport quantize_(torch::nn::Module& model, const FqnToConfig& config,
                           const QuantizeOptions& options) {
  const Names names = names_of(model);
  return convert(names, resolve(names.parameters, module_names(names), config, options.unmatched),
                 options);
}

ConversionReport quantize_(torch::nn::Module& model, const Config& config, const FilterFn& filter,
                           const QuantizeOptions& options) {
  validate(config);
  MOE8_CHECK(filter, "quantize_", "filter", "expected a function, got an empty one");
  const Names names = names_of(model);
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
