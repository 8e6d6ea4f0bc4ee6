// SPDX-License-Identifier: BSD-3-Clause
// Adapters as PEFT keeps them. Linears of attention are its target_modules. What transformers 5 has as
// parameters, the stacks of experts, are its target_parameters; so are the Linears of feed-forward, as
// PEFT takes their names among target_modules for those of experts.
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>

#include <filesystem>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "base/check.h"
#include "io/file.h"
#include "models/families.h"
#include "moe8/pretrained.h"
#include "moe8/safetensors.h"
#include "nn/lora_names.h"

namespace moe8 {
namespace {

constexpr const char* kSaveAdapter = "save_adapter";
constexpr std::string_view kWeight = ".weight";

using ReadTensor = std::function<at::Tensor(const std::string& name)>;

/// One that PEFT adapts: a module, or a parameter of one.
struct Target {
  std::string name;    // "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts.down_proj"
  std::string module;  // what its tensors are named after
  bool is_parameter = false;
  std::vector<std::string> ours{};  // our weights in it: one, or w1 and w3
  bool interleaves = false;         // rows of w1 and w3 in turn, not one after the other

  int64_t rank(const LoraOptions& lora) const {
    return lora.rank * static_cast<int64_t>(ours.size());
  }
};

bool is_of_experts(const std::string& ours) {
  return ours.find(".moe.experts.") != std::string::npos;
}

// Of "model.layers.3.mlp.experts.down_proj" what every layer has: "mlp.experts.down_proj".
std::string in_layer(const std::string& name) {
  constexpr std::string_view kLayers = "model.layers.";
  return name.substr(name.find('.', kLayers.size()) + 1);
}

// The weights of the model that can have adapters, as PEFT sees them, by name.
std::map<std::string, Target> targets_of(const Family& family,
                                         const std::vector<std::string>& ours) {
  std::map<std::string, Target> targets;
  for (const std::string& name : ours) {
    const TensorPlace place = place_of(family, name);
    Target made;
    if (is_of_experts(name)) {
      const size_t layer_end = name.find('.', std::string_view("layers.").size());
      made.module = concat("model.", name.substr(0, layer_end), ".mlp.experts");
      made.name = made.module + (name.ends_with("w2") ? ".down_proj" : ".gate_up_proj");
      made.is_parameter = true;
      made.interleaves = place.layout != TensorLayout::EXPERTS;
    } else {
      made.module = place.name.substr(0, place.name.size() - kWeight.size());
      made.is_parameter = name.find(".attention.") == std::string::npos;
      made.name = made.is_parameter ? place.name : made.module;
    }
    targets.emplace(made.name, std::move(made)).first->second.ours.push_back(name);
  }
  return targets;
}

// The outer one of the two wrappers that PEFT puts around experts is that of down_proj.
void name_inner_wrappers(std::map<std::string, Target>& targets) {
  for (auto& [name, target] : targets) {
    if (name.ends_with(".gate_up_proj") && targets.contains(target.module + ".down_proj")) {
      target.module += ".base_layer";
    }
  }
}

// ---- adapter_config.json ------------------------------------------------------
// Names of layers, or short what they all end with where none of the model's is left out.
std::vector<std::string> shortened(const std::set<std::string>& names,
                                   const std::map<std::string, Target>& of_model) {
  std::map<std::string, int64_t> left;
  for (const auto& [name, target] : of_model) {
    if (!names.contains(name)) ++left[in_layer(name)];
  }
  std::set<std::string> result;
  for (const std::string& name : names) {
    result.insert(left.contains(in_layer(name)) ? name : in_layer(name));
  }
  return {result.begin(), result.end()};
}

// A pattern that PEFT compares with the ends of names.
std::string escaped(const std::string& name) {
  std::string pattern;
  for (const char letter : name) {
    if (letter == '.') pattern += '\\';
    pattern += letter;
  }
  return pattern;
}

OrderedJson adapter_config(const std::map<std::string, Target>& targets,
                           const std::map<std::string, Target>& of_model,
                           const SaveAdapterOptions& options) {
  std::set<std::string> modules, parameters;
  OrderedJson ranks = OrderedJson::object(), alphas = OrderedJson::object();
  for (const auto& [name, target] : targets) {
    (target.is_parameter ? parameters : modules).insert(name);
    const int64_t rank = target.rank(options.lora);
    if (rank == options.lora.rank) continue;
    const auto joined = static_cast<double>(target.ours.size());
    ranks[escaped(name)] = rank;
    alphas[escaped(name)] = options.lora.alpha * joined;
  }
  return {
      {"peft_type", "LORA"},
      {"task_type", "CAUSAL_LM"},
      {"base_model_name_or_path", options.base.empty() ? OrderedJson() : OrderedJson(options.base)},
      {"r", options.lora.rank},
      {"lora_alpha", options.lora.alpha},
      {"target_modules", shortened(modules, of_model)},
      {"target_parameters", shortened(parameters, of_model)},
      {"rank_pattern", ranks},
      {"alpha_pattern", alphas},
      {"lora_dropout", 0.0},
      {"bias", "none"},
      {"fan_in_fan_out", false},
      {"use_rslora", false},
      {"use_dora", false},
      {"init_lora_weights", true},
      {"inference_mode", true}};
}

// ---- adapter_model.safetensors ------------------------------------------------
// B of w1 and w3 as one: each has its own columns, [E, out, rank] x 2 -> [E, 2 out, 2 rank].
at::Tensor joined_b(const std::vector<at::Tensor>& parts, bool interleaves) {
  std::vector<at::Tensor> rows;
  for (size_t i = 0; i < parts.size(); ++i) {
    std::vector<at::Tensor> columns(parts.size(), at::zeros_like(parts[i]));
    columns[i] = parts[i];
    rows.push_back(at::cat(columns, 2));
  }
  return interleaves ? at::stack(rows, 2).flatten(1, 2) : at::cat(rows, 1);
}

// Where w1 or w3 alone has an adapter, the other's rows are zeros.
at::Tensor among_both(const at::Tensor& b, bool is_first, bool interleaves) {
  const at::Tensor none = at::zeros_like(b), &first = is_first ? b : none;
  const at::Tensor& second = is_first ? none : b;
  return interleaves ? at::stack({first, second}, 2).flatten(1, 2) : at::cat({first, second}, 1);
}

// [E, rank, in] and [E, out, rank] -> [E rank, in] and [out, rank E]: of columns those of all experts
// at the same place of their ranks lie together.
std::pair<at::Tensor, at::Tensor> flat(const at::Tensor& a, const at::Tensor& b) {
  return {a.flatten(0, 1), b.permute({1, 2, 0}).flatten(1, 2)};
}

std::pair<at::Tensor, at::Tensor> adapter_of(const Target& target, const ReadTensor& read) {
  std::vector<at::Tensor> a, b;
  for (const std::string& ours : target.ours) {
    const std::string begin = lora_beginning(ours);
    a.push_back(read(begin + kLoraA));
    b.push_back(read(begin + kLoraB));
  }
  const std::string& first = target.ours.front();
  if (!is_of_experts(first)) return {a[0], b[0]};
  if (first.ends_with("w2")) return flat(a[0], b[0]);
  if (a.size() == 1) return flat(a[0], among_both(b[0], first.ends_with("w1"), target.interleaves));
  return flat(at::cat(a, 1), joined_b(b, target.interleaves));
}

std::vector<std::string> names_of(const std::vector<ParameterShape>& shapes) {
  std::vector<std::string> names;
  for (const ParameterShape& shape : shapes) {
    if (!lora_beginning(shape.name).empty()) names.push_back(shape.name);
  }
  return names;
}

}  // namespace

void save_adapter(const std::string& folder, const TransformerConfig& config,
                  const ReadTensor& tensor, const SaveAdapterOptions& options) {
  MOE8_CHECK(!std::filesystem::exists(folder), kSaveAdapter, folder,
             "expected a folder that does not exist");
  MOE8_CHECK(config.n_experts > 1, kSaveAdapter, "n_experts",
             "expected more than 1, got 1: PEFT has no adapters of a single stacked expert. "
             "Export the merged model.");
  const WrittenConfig written = write_config(config);
  const auto of_model = targets_of(*written.family, names_of(parameter_shapes(config)));
  auto targets = targets_of(*written.family, names_of(lora_targets(config, options.lora)));
  const OrderedJson json = adapter_config(targets, of_model, options);
  name_inner_wrappers(targets);
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& [name, target] : targets) {
    const std::string begin = concat("base_model.model.", target.module, ".lora_");
    const auto [a, b] = adapter_of(target, tensor);
    tensors.emplace_back(begin + "A.weight", a);
    tensors.emplace_back(begin + "B.weight", b);
  }
  AtomicFolder made(kSaveAdapter, folder);
  write_file(kSaveAdapter, made.partial() + "/adapter_config.json", json.dump(2) + "\n");
  save_safetensors(made.partial() + "/adapter_model.safetensors", tensors, {{"format", "pt"}});
  made.commit();
}

}  // namespace moe8
