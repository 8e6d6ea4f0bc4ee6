// SPDX-License-Identifier: BSD-3-Clause
#include "convert/resolve.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/nearest.h"
#include "convert/pattern.h"

namespace moe8 {
namespace {

constexpr std::string_view kPatternPrefix = "re:";
constexpr std::string_view kDefault = "_default";

bool is_pattern(std::string_view key) {
  return key.starts_with(kPatternPrefix);
}

std::string_view parent_of(std::string_view fqn) {
  const size_t dot = fqn.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : fqn.substr(0, dot);
}

std::string_view local_name(std::string_view fqn) {
  const size_t dot = fqn.rfind('.');
  return dot == std::string_view::npos ? fqn : fqn.substr(dot + 1);
}

std::string type_of(const Config& config) {
  const std::string text = to_string(config);
  return text.substr(0, text.find('('));
}

std::string key_name(const std::string& key) {
  return c10::str("key '", key, "'");
}

// One entry of a FqnToConfig and what became of it.
struct Key {
  std::string text;
  std::optional<Config> config;
  std::optional<Pattern> pattern{};
  bool counted = false;     // it can decide at least one parameter
  std::string near_miss{};  // a name that it matches, and why its config cannot apply there
};

class Resolver {
 public:
  Resolver(const std::vector<ParameterInfo>& parameters, const std::vector<std::string>& modules,
           const FqnToConfig& config)
      : parameters_(parameters) {
    collect_names(modules);
    for (const auto& [text, value] : config) add_key(text, value);
  }

  ConversionReport run(Unmatched unmatched) {
    ConversionReport report;
    for (const ParameterInfo& parameter : parameters_) report.rows.push_back(decide(parameter));
    count_modules_without_parameters();
    for (const Key& key : keys_) {
      if (!key.counted) report.unmatched_keys.push_back(key.text);
    }
    tell_unmatched(unmatched);
    return report;
  }

 private:
  void collect_names(const std::vector<std::string>& modules) {
    const auto add_module = [this](const std::string& name) {
      if (module_names_.insert(name).second) modules_.push_back(name);
    };
    for (const std::string& module : modules) add_module(module);
    for (const ParameterInfo& parameter : parameters_) {
      parameter_names_.insert(parameter.fqn);
      for (const std::string& module : enclosing_modules(parameter.fqn)) add_module(module);
    }
  }

  bool is_name(const std::string& text) const {
    return parameter_names_.contains(text) || module_names_.contains(text);
  }

  void add_key(const std::string& text, const std::optional<Config>& config) {
    MOE8_CHECK(!index_.contains(text), "FqnToConfig", key_name(text),
               "expected every key once, got it twice");
    MOE8_CHECK(!(is_pattern(text) || text == kDefault) || !is_name(text), "FqnToConfig",
               key_name(text), "expected a pattern or the default, got the name of a parameter or ",
               "module of this model. Rename that, or match it by another pattern.");
    MOE8_CHECK(is_pattern(text) || is_name(text) || text.find(kPatternPrefix) == std::string::npos,
               "FqnToConfig", key_name(text),
               "expected 're:' at the very start of a pattern, got it ", "inside a name");
    if (config) validate(*config);
    Key key{.text = text, .config = config};
    if (is_pattern(text)) key.pattern.emplace(std::string_view(text).substr(kPatternPrefix.size()));
    index_.emplace(text, keys_.size());
    keys_.push_back(std::move(key));
  }

  // The keys that name a parameter, in order of precedence; the first that counts decides.
  std::vector<Key*> candidates(const ParameterInfo& parameter) {
    std::vector<Key*> list;
    const auto add_exact = [&](const std::string& name) {
      if (is_pattern(name) || name == kDefault) return;
      if (const auto found = index_.find(name); found != index_.end()) {
        list.push_back(&keys_[found->second]);
      }
    };
    const std::vector<std::string> modules = enclosing_modules(parameter.fqn);
    add_exact(parameter.fqn);
    for (const std::string& module : modules) add_exact(module);
    for (Key& key : keys_) {
      if (key.pattern && key.pattern->matches(parameter.fqn)) list.push_back(&key);
    }
    for (const std::string& module : modules) {
      for (const size_t key : patterns_of_module(module)) list.push_back(&keys_[key]);
    }
    if (const auto found = index_.find(std::string(kDefault));
        found != index_.end() && is_linear_weight(parameter)) {
      list.push_back(&keys_[found->second]);
    }
    return list;
  }

  // Thousands of parameters share few modules: each is matched once.
  const std::vector<size_t>& patterns_of_module(const std::string& module) {
    const auto [entry, is_new] = patterns_of_module_.try_emplace(module);
    if (is_new) {
      for (size_t i = 0; i < keys_.size(); ++i) {
        if (keys_[i].pattern && keys_[i].pattern->matches(module)) entry->second.push_back(i);
      }
    }
    return entry->second;
  }

  ConversionRow decide(const ParameterInfo& parameter) {
    ConversionRow row{.fqn = parameter.fqn, .shape = parameter.shape, .dtype = parameter.dtype};
    for (Key* key : candidates(parameter)) {
      const std::optional<std::string> obstacle =
          key->config ? why_inapplicable(*key->config, parameter) : std::nullopt;
      MOE8_CHECK(!obstacle || key->text != parameter.fqn, "FqnToConfig", key_name(key->text),
                 *obstacle, ". ", type_of(*key->config), " cannot apply to this parameter.");
      if (obstacle) {
        note_obstacle(*key, row, *obstacle);
        continue;
      }
      key->counted = true;
      if (!row.key) take(*key, row);
    }
    if (row.reason.empty()) row.reason = "no key names it";
    return row;
  }

  static void note_obstacle(Key& key, ConversionRow& row, const std::string& obstacle) {
    if (key.near_miss.empty()) key.near_miss = c10::str(row.fqn, ": ", obstacle);
    if (row.reason.empty()) row.reason = c10::str(key_name(key.text), ": ", obstacle);
  }

  static void take(const Key& key, ConversionRow& row) {
    row.key = key.text;
    row.config = key.config;
    row.reason = key.config ? "converted" : "left alone by its key";
  }

  // A key that says "leave alone" is right even about a module without parameters.
  void count_modules_without_parameters() {
    for (Key& key : keys_) {
      if (key.config || key.counted) continue;
      key.counted =
          key.text == kDefault || std::any_of(modules_.begin(), modules_.end(), [&](auto& m) {
            return key.pattern ? key.pattern->matches(m) : key.text == m;
          });
    }
  }

  std::string why_unmatched(const Key& key) const {
    if (!key.near_miss.empty()) {
      return c10::str("can apply to nothing that it names, for example ", key.near_miss);
    }
    if (key.text == kDefault) return "found no weight of a Linear";
    if (module_names_.contains(key.text)) return "names a module without parameters";
    std::vector<std::string> names;
    for (const ParameterInfo& parameter : parameters_) names.push_back(parameter.fqn);
    names.insert(names.end(), modules_.begin(), modules_.end());
    std::erase(names, "");
    if (names.empty()) return "matches no name: the model has no parameters";
    const std::string_view word = std::string_view(key.text).substr(key.pattern ? 3 : 0);
    return c10::str("matches no name; nearest: ", join(nearest(word, names)));
  }

  void tell_unmatched(Unmatched unmatched) const {
    if (unmatched == Unmatched::IGNORE) return;
    std::vector<std::string> complaints;
    for (const Key& key : keys_) {
      if (!key.counted) complaints.push_back(c10::str("'", key.text, "' ", why_unmatched(key)));
    }
    if (complaints.empty()) return;
    const std::string text =
        c10::str("expected every key to decide something, got ", join(complaints, "; and "), ". ",
                 "A whole name must match, so 'x' inside a name is 're:.*x.*'.");
    if (unmatched == Unmatched::ERROR) fail("FqnToConfig", "keys", text);
    log_warning("[FqnToConfig] keys: " + text);
  }

  const std::vector<ParameterInfo>& parameters_;
  std::vector<std::string> modules_;  // in order; "" is the root
  std::unordered_set<std::string> module_names_;
  std::unordered_set<std::string> parameter_names_;
  std::vector<Key> keys_;
  std::unordered_map<std::string, size_t> index_;  // text -> position in keys_
  std::unordered_map<std::string, std::vector<size_t>> patterns_of_module_;
};

}  // namespace

std::vector<std::string> enclosing_modules(std::string_view fqn) {
  std::vector<std::string> modules;
  while (!fqn.empty()) {
    fqn = parent_of(fqn);
    modules.emplace_back(fqn);
  }
  return modules;
}

bool is_linear_weight(const ParameterInfo& parameter) {
  return parameter.owner == OwnerKind::LINEAR && local_name(parameter.fqn) == "weight";
}

std::optional<std::string> why_inapplicable(const Config& config, const ParameterInfo& parameter) {
  const size_t rank = parameter.shape.size();
  if (is_grouped(config) && rank != 3) {
    return c10::str("expected 3-D expert weights (E, N, K), got ", rank, "-D");
  }
  if (!is_grouped(config) && rank != 2) {
    return c10::str("expected a 2-D weight (N, K), got ", rank, "-D");
  }
  if (!is_grouped(config) && parameter.owner == OwnerKind::EMBEDDING) {
    return "expected the weight of a linear, got an Embedding's";
  }
  if (parameter.dtype != "bfloat16" && parameter.dtype != "float32") {
    return c10::str("expected bfloat16 or float32, got ", parameter.dtype);
  }
  return std::nullopt;
}

OwnerKind guess_owner(const std::string& fqn, const std::vector<int64_t>& shape) {
  if (shape.size() != 2 || local_name(fqn) != "weight") return OwnerKind::OTHER;
  const std::string_view module = local_name(parent_of(fqn));
  for (const std::string_view word : {"emb", "wte", "wpe"}) {
    if (module.find(word) != std::string_view::npos) return OwnerKind::EMBEDDING;
  }
  return OwnerKind::LINEAR;
}

ConversionReport resolve(const std::vector<ParameterInfo>& parameters,
                         const std::vector<std::string>& modules, const FqnToConfig& config,
                         Unmatched unmatched) {
  return Resolver(parameters, modules, config).run(unmatched);
}

}  // namespace moe8
