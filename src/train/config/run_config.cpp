// SPDX-License-Identifier: BSD-3-Clause
// Run configs: one table of settings that reading, checking and writing all use.
#include "train/config/run_config.h"

#include <array>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"
#include "convert/conversion_rules.h"
#include "convert/conversion_toml.h"
#include "io/file.h"
#include "models/hf_config.h"
#include "nn/model_settings.h"
#include "train/config/recipe_rules.h"
#include "train/config/trained_parameters.h"

namespace moe8 {
namespace {

constexpr const char* kRunConfig = "config";

// The words of a setting that is one of a few, in the order of its values.
template <typename Enum>
constexpr void* kWords = nullptr;  // a setting without words does not compile
template <>
constexpr std::array<std::string_view, 3> kWords<Weights>{"master", "bf16", "float32"};
template <>
constexpr std::array<std::string_view, 4> kWords<DataTokens>{"auto", "bytes", "uint16", "uint32"};
template <>
constexpr std::array<std::string_view, 2> kWords<DataWindows>{"anywhere", "documents"};
template <>
constexpr std::array<std::string_view, 3> kWords<TrainingDevice>{"auto", "cpu", "cuda"};
template <>
constexpr std::array<std::string_view, 2> kWords<GradientSums>{"rounded", "products"};
template <>
constexpr std::array<std::string_view, 2> kWords<SmallLinears>{"convert", "bf16"};
template <>
constexpr std::array<std::string_view, 2> kWords<LoraBase>{"weights", "codes"};
template <>
constexpr std::array<std::string_view, 3> kWords<CudaGraphs>{"auto", "on", "off"};
template <>
constexpr std::array<std::string_view, 2> kWords<OptimizerKind>{"adamw", "muon"};
template <>
constexpr std::array<std::string_view, 3> kWords<MomentDtype>{"auto", "float32", "bf16"};
template <>
constexpr std::array<std::string_view, 4> kWords<Schedule>{"cosine", "linear", "constant", "wsd"};

constexpr double kMaxCount = 1e9;  // more than any count that makes sense

struct Range {
  double lowest;
  double highest;
  bool lowest_allowed = true;
};

// ---- per type: from TOML, to TOML, range ------------------------------------
[[noreturn]] void wrong(const std::string& name, const std::string& expected,
                        const std::string& got, const std::string& position) {
  fail(kRunConfig, name,
       concat("expected ", expected, ", got ", got, position.empty() ? "" : " at ", position));
}

template <typename T>
void read(const toml::node& node, T& value, const char* expected, const std::string& name,
          const std::string& position) {
  const std::optional<T> found = node.value_exact<T>();
  if (!found) wrong(name, expected, describe(node), position);
  value = *found;
}

void assign(const toml::node& node, int64_t& value, const std::string& name,
            const std::string& at) {
  read(node, value, "an integer", name, at);
}
void assign(const toml::node& node, bool& value, const std::string& name, const std::string& at) {
  read(node, value, "true or false", name, at);
}
void assign(const toml::node& node, std::string& value, const std::string& name,
            const std::string& at) {
  read(node, value, "a string", name, at);
}
void assign(const toml::node& node, double& value, const std::string& name, const std::string& at) {
  if (const auto* integer = node.as_integer()) {
    value = static_cast<double>(integer->get());
  } else {
    read(node, value, "a number", name, at);
  }
}
void assign(const toml::node& node, std::vector<std::string>& value, const std::string& name,
            const std::string& at) {
  value.clear();
  if (node.is_string()) {
    value.push_back(node.as_string()->get());
    return;
  }
  if (!node.is_array()) wrong(name, "an array of strings", describe(node), at);
  for (const toml::node& item : *node.as_array()) {
    if (!item.is_string()) wrong(name, "an array of strings", describe(item) + " in it", at);
    value.push_back(item.as_string()->get());
  }
}
void assign(const toml::node& node, std::vector<double>& value, const std::string& name,
            const std::string& at) {
  value.clear();
  if (!node.is_array()) wrong(name, "an array of numbers", describe(node), at);
  for (const toml::node& item : *node.as_array()) assign(item, value.emplace_back(), name, at);
}
void assign(const toml::node& node, std::map<std::string, double>& value, const std::string& name,
            const std::string& at) {
  value.clear();
  if (!node.is_table()) wrong(name, "a table of numbers", describe(node), at);
  for (const auto& [key, item] : *node.as_table()) {
    assign(item, value[std::string(key.str())], name, at);
  }
}
using Words = std::span<const std::string_view>;
template <typename Enum>
Words words_of(Enum) {
  return kWords<Enum>;
}
// These two have their words where the model is.
Words words_of(ScoreFunction) {
  using enum ScoreFunction;
  static const std::array words{to_string(SOFTMAX), to_string(SIGMOID)};
  return words;
}
Words words_of(QkNorm) {
  using enum QkNorm;
  static const std::array words{to_string(NONE), to_string(HEAD), to_string(WIDTH)};
  return words;
}
Words words_of(RotaryPairs) {
  using enum RotaryPairs;
  static const std::array words{to_string(NEIGHBOURS), to_string(HALVES)};
  return words;
}
Words words_of(RopeScaling) {
  using enum RopeScaling;
  static const std::array words{to_string(NONE), to_string(LINEAR), to_string(YARN),
                                to_string(LLAMA3)};
  return words;
}
Words words_of(Activation) {
  using enum Activation;
  static const std::array words{to_string(SWIGLU), to_string(CLAMPED_SWIGLU)};
  return words;
}
Words words_of(Recompute) {
  using enum Recompute;
  static const std::array words{to_string(NONE), to_string(SELECTIVE), to_string(FULL)};
  return words;
}

// "none, selective or full"
std::string one_of(Words words) {
  const std::vector<std::string> but_last(words.begin(), std::prev(words.end()));
  return concat(join(but_last), " or ", words.back());
}

template <typename Enum>
requires std::is_enum_v<Enum>
void assign(const toml::node& node, Enum& value, const std::string& name, const std::string& at) {
  const Words words = words_of(value);
  const std::string expected = one_of(words);
  std::string text;
  read(node, text, expected.c_str(), name, at);
  const auto found = std::find(words.begin(), words.end(), text);
  if (found == words.end()) wrong(name, expected, describe(node), at);
  value = static_cast<Enum>(found - words.begin());
}
void assign(const toml::node& node, Deterministic& value, const std::string& name,
            const std::string& at) {
  if (const auto* flag = node.as_boolean()) {
    value = flag->get() ? Deterministic::ON : Deterministic::OFF;
    return;
  }
  std::string text;
  read(node, text, "\"auto\", true or false", name, at);
  if (text != "auto") wrong(name, "\"auto\", true or false", describe(node), at);
  value = Deterministic::AUTO;
}

// As TOML. toml++ 3.3 writes 17 digits of a number, 0.050000000000000003 for 0.05.
std::string toml_of(double value) {
  const std::string text = shortest(value);
  const bool is_integer = text.find_first_not_of("-0123456789") == std::string::npos;
  return is_integer ? text + ".0" : text;
}
std::string toml_of(int64_t value) {
  return std::to_string(value);
}
std::string toml_of(bool value) {
  return value ? "true" : "false";
}
std::string toml_of(Deterministic value) {
  return value == Deterministic::AUTO ? "\"auto\"" : toml_of(value == Deterministic::ON);
}
std::string toml_of(const std::string& value) {
  return toml_string(value);
}
std::string toml_of(const std::vector<std::string>& value) {
  std::vector<std::string> items;
  items.reserve(value.size());
  for (const std::string& item : value) items.push_back(toml_string(item));
  return items.empty() ? "[]" : concat("[ ", join(items), " ]");
}
std::string toml_of(const std::vector<double>& value) {
  std::vector<std::string> items;
  items.reserve(value.size());
  for (const double item : value) items.push_back(toml_of(item));
  return items.empty() ? "[]" : concat("[ ", join(items), " ]");
}
std::string toml_of(const std::map<std::string, double>& value) {
  std::vector<std::string> items;
  items.reserve(value.size());
  for (const auto& [key, item] : value) items.push_back(concat(toml_of(key), " = ", toml_of(item)));
  return items.empty() ? "{}" : concat("{ ", join(items), " }");
}
template <typename Enum>
requires std::is_enum_v<Enum> std::string toml_of(Enum value) {
  return toml_of(std::string(to_string(value)));
}

// The config is written as TOML, which holds nothing else.
void check_utf8(const std::string& text, const std::string& name, const std::string& position) {
  try {
    static_cast<void>(nlohmann::json(text).dump());
  } catch (const nlohmann::json::exception&) {
    wrong(name, "UTF-8", "'" + text + "'", position);
  }
}

template <typename T>
void check_range(const T& value, const Range& range, const std::string& name,
                 const std::string& position) {
  if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, double>) {
    const double number = static_cast<double>(value);
    const bool above = range.lowest_allowed ? number >= range.lowest : number > range.lowest;
    if (above && number <= range.highest) return;  // false for NaN
    wrong(name,
          concat(range.lowest_allowed ? "" : "more than ", static_cast<T>(range.lowest), " to ",
                 static_cast<T>(range.highest)),
          concat(value), position);
  } else if constexpr (std::is_same_v<T, std::string>) {
    check_utf8(value, name, position);
  } else if constexpr (std::is_same_v<T, std::vector<double>>) {
    for (const double item : value) check_range(item, range, name, position);
  } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
    for (const std::string& item : value) check_utf8(item, name, position);
  } else if constexpr (std::is_same_v<T, std::map<std::string, double>>) {
    for (const auto& [key, item] : value) {
      check_utf8(key, name, position);
      check_range(item, range, name, position);
    }
  }
}

// In one line, for a message.
std::string rules_text(const std::vector<ConversionRule>& rules) {
  std::vector<std::string> parts;
  for (const ConversionRule& rule : rules) {
    std::string part = concat("'", rule.match, "' ", rule.recipe);
    for (const auto& [field, value] : rule.fields) part += concat(" ", field, "=", value);
    parts.push_back(part);
  }
  return parts.empty() ? "no rules" : join(parts);
}

// ---- the table --------------------------------------------------------------
constexpr Range kAny{-kMaxCount, kMaxCount};
constexpr Range kCount{1, kMaxCount};
constexpr Range kCountOrZero{0, kMaxCount};
constexpr Range kPositive{0, kMaxCount, false};
constexpr Range kNotNegative{0, kMaxCount};
constexpr Range kBelowOne{0, 0.999999};

Range range_of(SettingRange range) {
  switch (range) {
    case SettingRange::ANY:
      return kAny;
    case SettingRange::COUNT:
      return kCount;
    case SettingRange::COUNT_OR_ZERO:
      return kCountOrZero;
    case SettingRange::POSITIVE:
      return kPositive;
    case SettingRange::NOT_NEGATIVE:
      return kNotNegative;
  }
  return kAny;
}

// Visits every setting: visit(section, key, member, range). Ranges of the model that depend on
// other fields are TransformerConfig::validate's.
template <typename C, typename Visit>
void for_each_setting(C& c, Visit&& visit) {
  visit("model", "from", c.from, kAny);
  for_each_model_setting(c.model, [&](const char* key, auto& member, SettingRange range) {
    visit("model", key, member, range_of(range));
  });
  visit("data", "files", c.data.files, kAny);
  visit("data", "tokens", c.data.tokens, kAny);
  visit("data", "weights", c.data.weights, kNotNegative);
  visit("data", "validation_fraction", c.data.validation_fraction, Range{0, 0.9, false});
  visit("data", "windows", c.data.windows, kAny);
  visit("data", "attention_across_documents", c.data.attention_across_documents, kAny);
  visit("optimizer", "kind", c.optimizer.kind, kAny);
  visit("optimizer", "learning_rate", c.optimizer.learning_rate, kPositive);
  visit("optimizer", "min_learning_rate", c.optimizer.min_learning_rate, kNotNegative);
  visit("optimizer", "schedule", c.optimizer.schedule, kAny);
  visit("optimizer", "warmup_steps", c.optimizer.warmup_steps, kCountOrZero);
  visit("optimizer", "decay_steps", c.optimizer.decay_steps, kCountOrZero);
  visit("optimizer", "beta1", c.optimizer.beta1, kBelowOne);
  visit("optimizer", "beta2", c.optimizer.beta2, kBelowOne);
  visit("optimizer", "eps", c.optimizer.eps, kPositive);
  visit("optimizer", "momentum", c.optimizer.momentum, kBelowOne);
  visit("optimizer", "weight_decay", c.optimizer.weight_decay, kNotNegative);
  visit("optimizer", "max_grad_norm", c.optimizer.max_grad_norm, kNotNegative);
  visit("optimizer", "moments", c.optimizer.moments, kAny);
  visit("optimizer", "frozen", c.optimizer.frozen, kAny);
  visit("optimizer", "rates", c.optimizer.rates, kPositive);
  visit("lora", "rank", c.lora.rank, kCountOrZero);
  visit("lora", "alpha", c.lora.alpha, kAny);
  visit("lora", "targets", c.lora.targets, kAny);
  visit("lora", "base", c.lora.base, kAny);
  visit("training", "steps", c.training.steps, kCount);
  visit("training", "batch_size", c.training.batch_size, Range{1, 1 << 20});
  visit("training", "seq_len", c.training.seq_len, Range{1, 1 << 24});
  visit("training", "accumulation", c.training.accumulation, Range{1, 1 << 20});
  visit("training", "gradient_sums", c.training.gradient_sums, kAny);
  visit("training", "seed", c.training.seed, Range{0, 9e18});
  visit("training", "weights", c.training.weights, kAny);
  visit("training", "recipe", c.training.recipe, kAny);
  visit("training", "small_linears", c.training.small_linears, kAny);
  visit("training", "validation_interval", c.training.validation_interval, kCountOrZero);
  visit("training", "validation_batches", c.training.validation_batches, kCount);
  visit("training", "threads", c.training.threads, Range{0, 4096});
  visit("training", "device", c.training.device, kAny);
  visit("training", "cuda_graph", c.training.cuda_graph, kAny);
  visit("training", "activation_checkpointing", c.training.activation_checkpointing, kAny);
  visit("training", "deterministic", c.training.deterministic, kAny);
  visit("parallel", "expert", c.parallel.expert, Range{1, 1 << 20});
  visit("parallel", "tensor", c.parallel.tensor, Range{1, 1 << 20});
  visit("parallel", "timeout_s", c.parallel.timeout_s, Range{1, 1 << 20});
  visit("checkpoint", "interval", c.checkpoint.interval, kCountOrZero);
  visit("checkpoint", "keep", c.checkpoint.keep, kCount);
  visit("numerics", "interval", c.numerics.interval, kCountOrZero);
  visit("output", "folder", c.output.folder, kAny);
  visit("output", "checkpoint", c.output.checkpoint, kAny);
  visit("output", "tensorboard", c.output.tensorboard, kAny);
}

// A setting of one config, its type hidden: what reading needs.
struct Setting {
  std::string section, key;
  std::function<void(const toml::node&, const std::string& position)> set;
};

std::vector<Setting> settings_of(RunConfig& config) {
  std::vector<Setting> settings;
  for_each_setting(config, [&](const char* section, const char* key, auto& member, Range range) {
    const std::string name = concat(section, ".", key);
    settings.push_back(
        {section, key, [&member, range, name](const toml::node& node, const std::string& at) {
           assign(node, member, name, at);
           check_range(member, range, name, at);
         }});
  });
  return settings;
}

std::vector<std::string> sections_of(const std::vector<Setting>& settings) {
  std::vector<std::string> names;
  for (const Setting& setting : settings) {
    if (names.empty() || names.back() != setting.section) names.push_back(setting.section);
  }
  return names;
}

void set(const std::vector<Setting>& settings, std::string_view section, std::string_view key,
         const toml::node& value, const std::string& position) {
  std::vector<std::string> keys;
  for (const Setting& setting : settings) {
    if (setting.section == section) keys.push_back(setting.key);
  }
  check_known(kRunConfig, key, keys, concat("key in [", section, "]"), position);
  for (const Setting& setting : settings) {
    if (setting.section == section && setting.key == key) setting.set(value, position);
  }
}

// ---- documents and overrides ------------------------------------------------
void apply_document(RunConfig& config, const toml::table& document, const std::string& source) {
  const std::vector<Setting> settings = settings_of(config);
  std::vector<std::string> sections = sections_of(settings);
  sections.emplace_back("convert");
  for (const auto& [section, node] : document) {
    const std::string position = position_of(node, source);
    check_known(kRunConfig, section.str(), sections, "section", position);
    if (section == "convert") {
      config.convert = rules_from(node, source);
      continue;
    }
    if (!node.is_table()) wrong(std::string(section.str()), "a table", describe(node), position);
    for (const auto& [key, value] : *node.as_table()) {
      set(settings, section.str(), key.str(), value, position_of(value, source));
    }
  }
}

// The value of an override: TOML, or a string as it stands (weights=bf16 needs no quotes).
toml::table value_of(const std::string& text) {
  try {
    toml::table table = parse_toml(kRunConfig, "value = " + text, "--set");
    if (table.size() == 1) return table;
  } catch (const c10::Error&) {
  }
  return toml::table{{"value", text}};
}

// The keys of [model] that a folder of a published model does not decide.
constexpr std::array<std::string_view, 4> kOfTraining{"max_seq_len", "load_balance_coeff",
                                                      "aux_loss_coeff", "z_loss_coeff"};

// What `config.from` says of the keys that were not given. A config that gives dim was completed
// before, such as the run.toml of a run: the folder may be gone by now.
void complete_model(RunConfig& config, const std::set<std::string>& given) {
  if (config.from.empty() || given.contains("dim")) return;
  const TransformerConfig own = config.model;
  config.model = read_hf_config(config.from);
  const auto here = model_settings(own), there = model_settings(config.model);
  for (size_t i = 0; i < here.size(); ++i) {
    const std::string& key = here[i].first;
    const bool decides = std::ranges::find(kOfTraining, key) != kOfTraining.end();
    MOE8_CHECK(!given.contains(key) || decides || here[i] == there[i], kRunConfig, "model." + key,
               "expected ", there[i].second, ", as in ", config.from, ", got ", here[i].second,
               ". Leave it out.");
  }
  if (given.contains("max_seq_len")) config.model.max_seq_len = own.max_seq_len;
  if (given.contains("load_balance_coeff"))
    config.model.load_balance_coeff = own.load_balance_coeff;
  if (given.contains("aux_loss_coeff")) config.model.aux_loss_coeff = own.aux_loss_coeff;
  if (given.contains("z_loss_coeff")) config.model.z_loss_coeff = own.z_loss_coeff;
}

// The keys of [model] that a document and overrides give.
std::set<std::string> model_keys(const toml::table& document,
                                 const std::vector<std::string>& overrides) {
  constexpr std::string_view kModel = "model.";
  std::set<std::string> keys;
  if (const toml::table* const model = document["model"].as_table()) {
    for (const auto& [key, value] : *model) keys.emplace(key.str());
  }
  for (const std::string& text : overrides) {
    if (text.starts_with(kModel)) {
      keys.insert(text.substr(kModel.size(), text.find('=') - kModel.size()));
    }
  }
  return keys;
}

void apply_override(RunConfig& config, const std::string& text) {
  const size_t equals = text.find('=');
  const size_t dot = text.find('.');
  MOE8_CHECK(equals != std::string::npos && dot < equals, kRunConfig, "--set",
             "expected section.key=value, got '", text, "'");
  const std::string section = text.substr(0, dot);
  const std::string key = text.substr(dot + 1, equals - dot - 1);
  const std::vector<Setting> settings = settings_of(config);
  const std::string position = "--set " + text;
  check_known(kRunConfig, section, sections_of(settings), "section", position);
  const toml::table value = value_of(text.substr(equals + 1));
  set(settings, section, key, *value.get("value"), position);
}

}  // namespace

std::string_view to_string(Weights value) {
  return kWords<Weights>.at(static_cast<size_t>(value));
}

std::string_view to_string(DataTokens value) {
  return kWords<DataTokens>.at(static_cast<size_t>(value));
}

std::string_view to_string(DataWindows value) {
  return kWords<DataWindows>.at(static_cast<size_t>(value));
}

std::string_view to_string(TrainingDevice value) {
  return kWords<TrainingDevice>.at(static_cast<size_t>(value));
}

std::string_view to_string(CudaGraphs value) {
  return kWords<CudaGraphs>.at(static_cast<size_t>(value));
}

std::string_view to_string(GradientSums value) {
  return kWords<GradientSums>.at(static_cast<size_t>(value));
}

std::string_view to_string(LoraBase value) {
  return kWords<LoraBase>.at(static_cast<size_t>(value));
}

std::string_view to_string(SmallLinears value) {
  return kWords<SmallLinears>.at(static_cast<size_t>(value));
}

std::string_view to_string(OptimizerKind value) {
  return kWords<OptimizerKind>.at(static_cast<size_t>(value));
}

std::string_view to_string(MomentDtype value) {
  return kWords<MomentDtype>.at(static_cast<size_t>(value));
}

std::string_view to_string(Schedule value) {
  return kWords<Schedule>.at(static_cast<size_t>(value));
}

bool TrainingConfig::sums_in_products() const {
  return weights == Weights::MASTER && accumulation > 1 && gradient_sums == GradientSums::PRODUCTS;
}

bool RunConfig::trains_in_part() const {
  return lora.rank > 0 || !optimizer.frozen.empty() || !optimizer.rates.empty();
}

std::vector<ConversionRule> RunConfig::conversion() const {
  if (!convert.empty()) return convert;
  std::vector<ConversionRule> rules = recipe_rules(training.recipe);
  if (training.small_linears == SmallLinears::CONVERT || rules.empty()) return rules;
  return without_small_linears(rules, model);
}

namespace {

// Heads and positions go to ranks as wholes, hidden widths in multiples of 16 bytes.
void check_tensor_parallel(const RunConfig& config) {
  const TransformerConfig& m = config.model;
  const int64_t ranks = config.parallel.tensor;
  if (ranks == 1) return;
  const auto check = [&](const char* what, int64_t size) {
    MOE8_CHECK(size % ranks == 0, kRunConfig, "parallel.tensor", "expected a divisor of ", what,
               " = ", size, ", got ", ranks);
  };
  MOE8_CHECK(!m.attention_is_whole(), kRunConfig, "parallel.tensor",
             "expected 1 beside model.attention_bias, attention_sinks or kv_rank, got ", ranks,
             ". Such attention is whole on every rank.");
  constexpr int64_t kWidth = 8;
  check("model.n_kv_heads", m.n_kv_heads);
  if (m.n_dense_layers > 0) check("model.dense_hidden_dim / 8", m.dense_hidden_dim / kWidth);
  if (m.n_shared_experts > 0) {
    check("model.hidden_dim x n_shared_experts / 8", m.hidden_dim * m.n_shared_experts / kWidth);
  }
  check("training.seq_len", config.training.seq_len);
  MOE8_CHECK(config.optimizer.kind == OptimizerKind::ADAMW, kRunConfig, "optimizer.kind",
             "expected adamw beside parallel.tensor = ", ranks,
             ", got muon. Muon steps whole matrices; parallel.expert spreads stacks of them.");
}

void check_fine_tuning(const RunConfig& config) {
  MOE8_CHECK(config.lora.rank == 0 || config.parallel.tensor == 1, kRunConfig, "parallel.tensor",
             "expected 1 beside lora, whose adapters are whole on every rank, got ",
             config.parallel.tensor);
  const bool as_codes = config.lora.base == LoraBase::CODES;
  MOE8_CHECK(!as_codes || config.lora.rank > 0, kRunConfig, "lora.base",
             "expected \"weights\" without lora.rank, got \"codes\": weights that are trained are "
             "kept as they are");
  MOE8_CHECK(!as_codes || config.training.activation_checkpointing == Recompute::FULL, kRunConfig,
             "training.activation_checkpointing",
             "expected full beside lora.base = \"codes\", got ",
             to_string(config.training.activation_checkpointing),
             ". What is made of codes would be kept from forward to backward.");
  MOE8_CHECK(config.lora.rank == 0 || config.optimizer.frozen.empty(), kRunConfig,
             "optimizer.frozen", "expected none beside lora, which freezes the whole model");
  MOE8_CHECK(config.data.attention_across_documents || config.parallel.tensor == 1, kRunConfig,
             "data.attention_across_documents",
             "expected true beside parallel.tensor = ", config.parallel.tensor, ", got false");
  if (config.trains_in_part()) trained_parameters(config);  // that every key names one
}

}  // namespace

void RunConfig::validate() const {
  for_each_setting(*this,
                   [](const char* section, const char* key, const auto& member, Range range) {
                     check_range(member, range, concat(section, ".", key), "");
                   });
  model.validate();
  constexpr int64_t kBytes = 256;  // a token is a byte
  MOE8_CHECK(model.vocab_size >= kBytes || !from.empty(), kRunConfig, "model.vocab_size",
             "expected at least ", kBytes, " (tokens are bytes), got ", model.vocab_size);
  MOE8_CHECK(training.seq_len <= model.max_seq_len, kRunConfig, "training.seq_len",
             "expected at most model.max_seq_len = ", model.max_seq_len, ", got ",
             training.seq_len);
  MOE8_CHECK(optimizer.min_learning_rate <= optimizer.learning_rate, kRunConfig,
             "optimizer.min_learning_rate",
             "expected at most optimizer.learning_rate = ", optimizer.learning_rate, ", got ",
             optimizer.min_learning_rate);
  MOE8_CHECK((optimizer.schedule == Schedule::WSD) == (optimizer.decay_steps > 0), kRunConfig,
             "optimizer.decay_steps", "expected ",
             optimizer.schedule == Schedule::WSD
                 ? "the number of the last steps in which the rate falls"
                 : "none beside schedule = \"" + std::string(to_string(optimizer.schedule)) + "\"",
             ", got ", optimizer.decay_steps, ". It goes with schedule = \"wsd\".");
  check_tensor_parallel(*this);
  check_fine_tuning(*this);
  MOE8_CHECK(model.n_experts % parallel.expert == 0, kRunConfig, "parallel.expert",
             "expected a divisor of model.n_experts = ", model.n_experts, ", got ",
             parallel.expert);
  MOE8_CHECK(!output.folder.empty(), kRunConfig, "output.folder",
             "expected a folder, got an empty string");
  MOE8_CHECK(convert.empty() || training.recipe == "bf16" || training.recipe == "custom",
             kRunConfig, "training.recipe", "expected none beside [[convert]] tables, got '",
             training.recipe, "'");
  MOE8_CHECK(!convert.empty() || training.recipe != "custom", kRunConfig, "training.recipe",
             "expected [[convert]] tables beside recipe = \"custom\", got none");
  to_fqn_config(conversion());
}

RunConfig parse_run_config(const std::string& text, const std::string& source,
                           const std::vector<std::string>& overrides) {
  RunConfig config;
  const toml::table document = parse_toml(kRunConfig, text, source);
  apply_document(config, document, source);
  for (const std::string& override_text : overrides) apply_override(config, override_text);
  complete_model(config, model_keys(document, overrides));
  config.validate();
  return config;
}

RunConfig load_run_config(const std::string& path, const std::vector<std::string>& overrides) {
  return parse_run_config(read_text_file(kRunConfig, path), path, overrides);
}

std::string to_toml(const RunConfig& config) {
  std::string text;
  std::string open;
  for_each_setting(config, [&](const char* section, const char* key, const auto& member, Range) {
    if (open != section) {
      text += concat(open.empty() ? "" : "\n", '[', section, "]\n");
      open = section;
    }
    text += concat(key, " = ", toml_of(member), '\n');
  });
  return text + to_toml(config.convert);
}

std::vector<std::pair<std::string, std::string>> settings_text(const RunConfig& config) {
  std::vector<std::pair<std::string, std::string>> all;
  for_each_setting(config, [&](const char* section, const char* key, const auto& member, Range) {
    all.emplace_back(concat(section, ".", key), toml_of(member));
  });
  all.emplace_back("convert", rules_text(config.convert));
  return all;
}

std::vector<SettingDifference> differences(const RunConfig& first, const RunConfig& second) {
  const auto a = settings_text(first), b = settings_text(second);
  std::vector<SettingDifference> found;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].second != b[i].second) found.push_back({a[i].first, a[i].second, b[i].second});
  }
  return found;
}

}  // namespace moe8
