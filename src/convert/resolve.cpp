// SPDX-License-Identifier: BSD-3-Clause
#include "convert/resolve.h"

#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cctype>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/nearest.h"
#include "base/plain_text.h"
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
  return concat("key '", key, "'");
}

// ---- what a pattern that matched nothing may have meant ----------------------
// The parts of names between dots, each once, the most frequent first: short lists of candidates.
std::vector<std::string> parts_of(const std::vector<std::string>& names) {
  std::vector<std::string> parts;
  std::unordered_set<std::string_view> seen;
  for (const std::string& name : names) {
    for (size_t begin = 0; begin <= name.size();) {
      const size_t end = std::min(name.find('.', begin), name.size());
      const std::string_view part = std::string_view(name).substr(begin, end - begin);
      if (!part.empty() && seen.insert(part).second) parts.emplace_back(part);
      begin = end + 1;
    }
  }
  return parts;
}

// The names that hold most of the words, at most three.
std::vector<std::string> names_with(const std::vector<std::string>& words,
                                    const std::vector<std::string>& names) {
  const auto count_in = [&](const std::string& name) {
    return std::count_if(words.begin(), words.end(), [&](const std::string& word) {
      return name.find(word) != std::string::npos;
    });
  };
  std::vector<std::string> sorted = names;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](const auto& a, const auto& b) { return count_in(a) > count_in(b); });
  sorted.resize(std::min<size_t>(sorted.size(), 3));
  return sorted;
}

// Words of the pattern that stand in no name are its likely mistakes.
std::string near_pattern(const Pattern& pattern, const std::vector<std::string>& names) {
  const std::vector<std::string> words = pattern.words();
  const std::vector<std::string> parts = parts_of(names);
  std::vector<std::string> guesses;
  for (const std::string& word : words) {
    const bool is_known = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return name.find(word) != std::string::npos;
    });
    if (is_known) continue;
    guesses.push_back(
        concat("no name has '", word, "', nearest parts: ", join(nearest(word, parts))));
  }
  if (!guesses.empty()) return join(guesses, "; ");
  return concat("nearest: ", join(names_with(words, names)));
}

// One entry of a FqnToConfig and what became of it.
struct Key {
  std::string text;
  std::optional<Config> config;
  std::optional<Pattern> pattern{};
  std::unordered_set<std::string> modules_inside{};  // that hold a parameter which `pattern` names
  bool counted = false;                              // it can decide at least one parameter
  std::string near_miss{};  // a name that it matches, and why its config cannot apply there
};

// ---- what a name says of its parameter ---------------------------------------
std::string lower_case(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

// A word in a parameter's name by which it is no weight of a product; empty when there is none.
std::string telling_word(std::string_view fqn) {
  static const std::unordered_set<std::string_view> kWords = {
      "bias", "biases", "log",    "pos",       "position", "positions", "positional", "pe",
      "emb",  "embed",  "embeds", "embedding", "wpe",      "wte",       "embeddings", "table",
      "norm", "norms",  "scale",  "scales",    "gain",     "gamma",     "beta"};
  const std::string name = lower_case(local_name(fqn));
  const std::string module = lower_case(local_name(parent_of(fqn)));
  for (const std::string_view layer : {"conv", "bilinear", "lstm", "gru"}) {
    if (module.find(layer) != std::string::npos) return module;
    if (name.find(layer) != std::string::npos) return name;
  }
  if (name.starts_with("weight_ih") || name.starts_with("weight_hh")) return name;
  const bool is_b =
      name.starts_with('b') && name.find_first_not_of("0123456789", 1) == std::string::npos;
  if (is_b) return name;  // b, b1, b2
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find_first_of("_-", begin), name.size());
    const std::string word = name.substr(begin, end - begin);
    if (kWords.contains(word)) return word;
    begin = end + 1;
  }
  return "";
}

class Resolver {
 public:
  Resolver(const std::vector<ParameterInfo>& parameters, const std::vector<std::string>& modules,
           const FqnToConfig& config, const std::vector<std::string>& buffers)
      : parameters_(parameters), buffers_(buffers) {
    collect_names(modules);
    for (const auto& [text, value] : config) add_key(text, value);
    match_parameters();
  }

  ConversionReport run(Unmatched unmatched) {
    ConversionReport report;
    for (size_t i = 0; i < parameters_.size(); ++i) report.rows.push_back(decide(i));
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

  // Which patterns name which parameters.
  void match_parameters() {
    patterns_of_parameter_.resize(parameters_.size());
    for (size_t i = 0; i < parameters_.size(); ++i) {
      const std::string& fqn = parameters_[i].fqn;
      for (Key& key : keys_) {
        if (!key.pattern || !key.pattern->matches(fqn)) continue;
        patterns_of_parameter_[i].push_back(&key);
        for (std::string& module : enclosing_modules(fqn)) {
          key.modules_inside.insert(std::move(module));
        }
      }
    }
  }

  // The keys that name a parameter, in order of precedence; the first that counts decides.
  std::vector<Key*> candidates(size_t index) {
    const ParameterInfo& parameter = parameters_[index];
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
    const std::vector<Key*>& by_name = patterns_of_parameter_[index];
    list.insert(list.end(), by_name.begin(), by_name.end());
    for (const std::string& module : modules) {
      for (const size_t key : patterns_of_module(module)) list.push_back(&keys_[key]);
    }
    if (const auto found = index_.find(std::string(kDefault));
        found != index_.end() && is_linear_weight(parameter)) {
      list.push_back(&keys_[found->second]);
    }
    return list;
  }

  // Thousands of parameters share few modules: each is matched once. A pattern that names
  // parameters inside a module means those: matching the module's own name does not add the others,
  // which would undo a negative look-ahead.
  const std::vector<size_t>& patterns_of_module(const std::string& module) {
    const auto [entry, is_new] = patterns_of_module_.try_emplace(module);
    if (is_new) {
      for (size_t i = 0; i < keys_.size(); ++i) {
        const Key& key = keys_[i];
        if (!key.pattern || key.modules_inside.contains(module)) continue;
        if (key.pattern->matches(module)) entry->second.push_back(i);
      }
    }
    return entry->second;
  }

  ConversionRow decide(size_t index) {
    const ParameterInfo& parameter = parameters_[index];
    ConversionRow row{.fqn = parameter.fqn, .shape = parameter.shape, .dtype = parameter.dtype};
    for (Key* key : candidates(index)) {
      if (const auto obstacle = obstacle_of(*key, parameter)) {
        note_obstacle(*key, row, *obstacle);
        continue;
      }
      key->counted = true;
      if (!row.key) take(*key, parameter, row);
    }
    if (row.reason.empty()) row.reason = "no key names it";
    return row;
  }

  // Why a key that names the parameter does not count for it.
  static std::optional<std::string> obstacle_of(const Key& key, const ParameterInfo& parameter) {
    if (!key.config) return std::nullopt;
    const bool is_exact = key.text == parameter.fqn;
    const std::optional<std::string> obstacle = why_inapplicable(*key.config, parameter);
    MOE8_CHECK(!obstacle || !is_exact, "FqnToConfig", key_name(key.text), *obstacle, ". ",
               type_of(*key.config), " cannot apply to this parameter.");
    return obstacle || is_exact ? obstacle : why_unlikely(*key.config, parameter);
  }

  static void note_obstacle(Key& key, ConversionRow& row, const std::string& obstacle) {
    if (key.near_miss.empty()) key.near_miss = concat(row.fqn, ": ", obstacle);
    if (row.reason.empty()) row.reason = concat(key_name(key.text), ": ", obstacle);
  }

  static void take(const Key& key, const ParameterInfo& parameter, ConversionRow& row) {
    row.key = key.text;
    row.config = key.config;
    row.reason = key.config ? converted_reason(*key.config, parameter) : "left alone by its key";
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
      return concat("can apply to nothing that it names, for example ", key.near_miss);
    }
    if (key.text == kDefault) return "found no weight of a Linear";
    if (module_names_.contains(key.text)) return "names a module without parameters";
    for (const std::string& buffer : buffers_) {
      const bool is_named = key.pattern ? key.pattern->matches(buffer) : key.text == buffer;
      if (is_named) {
        return concat("names the buffer '", buffer, "', and only parameters can be converted");
      }
    }
    const std::vector<std::string> names = all_names();
    if (names.empty()) return "matches no name: the model has no parameters";
    if (key.pattern) return concat("matches no name; ", near_pattern(*key.pattern, names));
    return concat("matches no name; nearest: ", join(nearest(key.text, names)));
  }

  std::vector<std::string> all_names() const {
    std::vector<std::string> names;
    names.reserve(parameters_.size() + modules_.size());
    for (const ParameterInfo& parameter : parameters_) names.push_back(parameter.fqn);
    names.insert(names.end(), modules_.begin(), modules_.end());
    std::erase(names, "");
    return names;
  }

  void tell_unmatched(Unmatched unmatched) const {
    if (unmatched == Unmatched::IGNORE) return;
    std::vector<std::string> complaints;
    for (const Key& key : keys_) {
      if (!key.counted) complaints.push_back(concat("'", key.text, "' ", why_unmatched(key)));
    }
    if (complaints.empty()) return;
    const std::string text =
        concat("expected every key to decide something, got ", join(complaints, "; and "), ". ",
               "A whole name must match, so 'x' inside a name is 're:.*x.*'.");
    if (unmatched == Unmatched::ERROR) fail("FqnToConfig", "keys", text);
    log_warning("[FqnToConfig] keys: " + text);
  }

  const std::vector<ParameterInfo>& parameters_;
  const std::vector<std::string>& buffers_;
  std::vector<std::string> modules_;  // in order; "" is the root
  std::unordered_set<std::string> module_names_;
  std::unordered_set<std::string> parameter_names_;
  std::vector<Key> keys_;
  std::vector<std::vector<Key*>> patterns_of_parameter_;
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
    return concat("expected 3-D expert weights (E, N, K), got ", rank, "-D");
  }
  if (!is_grouped(config) && rank != 2) {
    return concat("expected a 2-D weight (N, K), got ", rank, "-D");
  }
  if (!is_grouped(config) && parameter.owner == OwnerKind::EMBEDDING) {
    return "expected the weight of a linear, got an Embedding's";
  }
  if (parameter.owner == OwnerKind::WITHOUT_PRODUCTS) {
    return concat("expected ", is_grouped(config) ? "3-D expert weights" : "the weight of a linear",
                  ", got a parameter of ", parameter.owner_type);
  }
  if (parameter.is_replaced) {
    return "expected the tensor that its Linear computes with, got one that was replaced by "
           "assigning another to linear->weight. Assign by set_data(), or register the new one";
  }
  if (parameter.dtype != "bfloat16" && parameter.dtype != "float32") {
    return concat("expected bfloat16 or float32, got ", parameter.dtype);
  }
  return std::nullopt;
}

std::optional<std::string> why_unlikely(const Config& config, const ParameterInfo& parameter) {
  if (parameter.owner != OwnerKind::OTHER) return std::nullopt;
  constexpr const char* kAnyway = ". A key that is exactly its name converts it all the same";
  if (const std::string word = telling_word(parameter.fqn); !word.empty()) {
    return concat("expected the weight of a product, got what '", word,
                  "' in its name says is none", kAnyway);
  }
  const std::vector<int64_t>& shape = parameter.shape;
  const bool is_narrow = shape.back() == 1 || shape[shape.size() - 2] == 1;
  const bool is_single = is_grouped(config) && shape.front() == 1 &&
                         lower_case(parameter.fqn).find("expert") == std::string::npos;
  if (!is_narrow && !is_single) return std::nullopt;
  return concat("expected ", is_grouped(config) ? "matrices of experts" : "a matrix", ", got ",
                c10::IntArrayRef(shape), ", as of biases or a table of positions", kAnyway);
}

std::string converted_reason(const Config& config, const ParameterInfo& parameter) {
  if (parameter.has_known_use) return "converted";
  return is_grouped(config) ? "converted if used through at::_grouped_mm, bmm or matmul"
                            : "converted if used through at::linear, mm, addmm or matmul";
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
                         Unmatched unmatched, const std::vector<std::string>& buffers) {
  return Resolver(parameters, modules, config, buffers).run(unmatched);
}

}  // namespace moe8
