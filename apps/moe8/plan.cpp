// SPDX-License-Identifier: BSD-3-Clause
// moe8 plan: what a conversion would do to a checkpoint, from names and shapes in its header, or to
// the model of a run config, with parameter counts and memory (plan/config_plan.h).
#include <c10/core/ScalarType.h>

#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "cli.h"
#include "commands.h"
#include "convert/conversion_rules.h"
#include "convert/report.h"
#include "convert/resolve.h"
#include "io/safetensors_header.h"
#include "models/hf_files.h"
#include "moe8/conversion_file.h"
#include "moe8/safetensors.h"
#include "plan/config_plan.h"
#include "plan/proposal.h"
#include "run_options.h"
#include "train/config/recipe_rules.h"

namespace moe8 {
namespace {

struct PlanArguments {
  std::vector<std::string> models;
  std::string config;
  std::vector<std::string> overrides;
  std::string recipe;
  std::string convert;
  std::string device;
  int64_t world = 1;
  int64_t expert = 0;  // 0: as in the config
  int64_t tensor = 0;  // likewise
  int64_t machine = ConfigPlan().machine;
  double network = ConfigPlan().network_bytes / 1e9;
  bool json = false;
};

// torch's name where it has the type: "bfloat16" for BF16.
std::string dtype_name(const std::string& name) {
  const SafetensorsDtype* dtype = find_safetensors_dtype(name);
  if (!dtype || dtype->type == at::ScalarType::Undefined) return name;
  return std::string(c10::getDtypeNames(dtype->type).first);
}

// A folder stands for its files.
std::vector<std::string> files_of(const std::vector<std::string>& models) {
  std::vector<std::string> paths;
  for (const std::string& model : models) {
    if (!std::filesystem::is_directory(model)) {
      paths.push_back(model);
      continue;
    }
    const std::vector<std::string> files = HfFiles(model).paths();
    paths.insert(paths.end(), files.begin(), files.end());
  }
  return paths;
}

std::vector<ParameterInfo> parameters_of(const std::vector<std::string>& models) {
  std::vector<ParameterInfo> parameters;
  for (const std::string& path : files_of(models)) {
    const SafetensorsReader reader(path);
    for (const SafetensorsEntry& entry : reader.entries()) {
      parameters.push_back({.fqn = entry.name,
                            .shape = entry.shape,
                            .owner = guess_owner(entry.name, entry.shape),
                            .dtype = dtype_name(entry.dtype)});
    }
  }
  return parameters;
}

void print(const PlanArguments& options, const ConversionReport& report) {
  std::cout << (options.json ? report.to_json() + "\n"
                             : fitted_table(report, table_style().columns));
}

void plan_checkpoint(const PlanArguments& options) {
  const std::vector<ParameterInfo> parameters = parameters_of(options.models);
  if (!options.convert.empty()) {
    return print(options, resolve(parameters, {}, read_conversion_file(options.convert)));
  }
  const std::vector<ConversionRule> rules = recipe_rules(options.recipe);
  if (rules.empty() || name_any(rules, parameters)) {
    return print(options, resolve(parameters, {}, to_fqn_config(rules)));
  }
  const Proposal proposal = propose_rules(parameters, options.recipe);
  print(options, resolve(parameters, {}, to_fqn_config(proposal.rules)));
  if (!options.json) std::cout << '\n' << to_text(proposal);
}

void plan_config(const PlanArguments& options) {
  ConfigPlan plan{.config = load_with_overrides(options.config, options.overrides),
                  .recipes = training_recipes(),
                  .world = options.world,
                  .machine = options.machine,
                  .network_bytes = options.network * 1e9};
  if (options.expert > 0) plan.config.parallel.expert = options.expert;
  if (options.tensor > 0) plan.config.parallel.tensor = options.tensor;
  plan.config.validate();
  if (options.device == "cuda") plan.config.training.device = TrainingDevice::CUDA;
  if (options.device == "cpu") plan.config.training.device = TrainingDevice::CPU;
  if (!options.recipe.empty()) {
    plan.config.convert.clear();
    plan.config.training.recipe = options.recipe;
    plan.recipes = {"bf16"};
  }
  if (!options.convert.empty()) {
    plan.config.convert = read_conversion_rules(options.convert);
    plan.config.training.recipe = "custom";
    plan.recipes = {"bf16"};
  }
  std::cout << (options.json ? to_json(plan) : to_table(plan));
}

// What CLI11 cannot say: --model needs one of --recipe and --convert, --set needs --config.
void check_usage(const PlanArguments& options) {
  if (options.config.empty() && options.models.empty()) {
    throw CLI::RequiredError("--config or --model");
  }
  if (!options.models.empty() && options.recipe.empty() && options.convert.empty()) {
    throw CLI::RequiredError("--convert or --recipe");
  }
}

void run_plan(const PlanArguments& options) {
  check_usage(options);
  options.models.empty() ? plan_config(options) : plan_checkpoint(options);
}

}  // namespace

void add_plan_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "plan", "Show what a conversion would do to a model, and the memory of training it.");
  const auto options = std::make_shared<PlanArguments>();
  CLI::Option* config =
      command->add_option("--config", options->config, "TOML file of a run, see configs/")
          ->type_name("FILE");
  add_set_option(*command, options->overrides)->needs(config);
  command
      ->add_option("--model", options->models,
                   "Checkpoint (*.safetensors), or the folder of a published model, instead of a "
                   "config; may be repeated")
      ->type_name("FILE")
      ->excludes(config);
  CLI::Option* recipe =
      add_recipe_option(*command, options->recipe, "What would compute in low precision");
  command->add_option("--convert", options->convert, "The same, key by key, as a TOML file")
      ->type_name("FILE")
      ->excludes(recipe);
  command
      ->add_option("--device", options->device,
                   "Whose memory to estimate, instead of the config's training.device")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->needs(config);
  CLI::Option* world =
      command
          ->add_option("--world", options->world,
                       "Also what each of so many processes holds, and sends in a step; of GPUs "
                       "an estimate of its time")
          ->check(CLI::Range(1, 1 << 20))
          ->type_name("RANKS")
          ->needs(config);
  command
      ->add_option("--expert", options->expert,
                   "Of these, over how many experts are spread, instead of parallel.expert")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("RANKS")
      ->needs(world);
  command
      ->add_option("--tensor", options->tensor,
                   "Over how many dense weights are spread, instead of parallel.tensor")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("RANKS")
      ->needs(world);
  command
      ->add_option("--gpus-per-machine", options->machine,
                   "Of --world, neighbours that NVLink joins")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->needs(world);
  command
      ->add_option("--network", options->network,
                   "What a GPU sends to other machines in a second, GB")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->needs(world);
  command->add_flag("--json", options->json, "Print JSON instead of tables");
  command->footer(
      "No weights are made or loaded: a config says all, and of a checkpoint only the headers are\n"
      "read. A checkpoint does not say which module owns a parameter. The rule: a 2-D *.weight\n"
      "belongs to a Linear, unless the name of its module speaks of embeddings (emb, wte, wpe).\n"
      "With --recipe, names of other models (Hugging Face's, say) get rules of their own, which are\n"
      "printed as a conversion file.\n"
      "What the memory counts and what not: docs/plan.md.\n\n" +
      examples("moe8 plan --config configs/qwen3_30b_a3b.toml --recipe mxfp8_rceil\n"
               "moe8 plan --config configs/qwen3_30b_a3b.toml --device cuda\n"
               "moe8 plan --config configs/4b_bench.toml --device cuda --world 8 --set "
               "training.accumulation=8\n"
               "moe8 plan --model model.safetensors --recipe fp8_rowwise\n"
               "moe8 plan --model model.safetensors --convert convert.toml\n"
               "with convert.toml:\n"
               "  [[convert]]\n"
               "  match = \"re:.*experts.*\"\n"
               "  recipe = \"mxfp8_rceil\""));
  command->callback([options] { run_plan(*options); });
}

}  // namespace moe8
