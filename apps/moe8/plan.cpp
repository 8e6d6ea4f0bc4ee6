// SPDX-License-Identifier: BSD-3-Clause
// moe8 plan: what a conversion file would do to a checkpoint, from names and shapes in its header.
#include <c10/core/ScalarType.h>

#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "cli.h"
#include "commands.h"
#include "convert/resolve.h"
#include "io/safetensors_header.h"
#include "moe8/safetensors.h"
#include "train/conversion_file.h"

namespace moe8 {
namespace {

struct Options {
  std::vector<std::string> models;
  std::string convert;
  bool json = false;
};

// torch's name where it has the type: "bfloat16" for BF16.
std::string dtype_name(const std::string& name) {
  const SafetensorsDtype* dtype = find_safetensors_dtype(name);
  if (!dtype || dtype->type == at::ScalarType::Undefined) return name;
  return c10::getDtypeNames(dtype->type).first;
}

std::vector<ParameterInfo> parameters_of(const std::vector<std::string>& paths) {
  std::vector<ParameterInfo> parameters;
  for (const std::string& path : paths) {
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

void run(const Options& options) {
  const FqnToConfig config = to_fqn_config(read_conversion_file(options.convert));
  const ConversionReport report = resolve(parameters_of(options.models), {}, config);
  std::cout << (options.json ? report.to_json() + "\n" : report.to_table());
}

}  // namespace

void add_plan_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("plan", "Show what a conversion file would do to a checkpoint.");
  const auto options = std::make_shared<Options>();
  command->add_option("--model", options->models, "Checkpoint (*.safetensors); may be repeated")
      ->required();
  command->add_option("--convert", options->convert, "Conversion file (TOML)")->required();
  command->add_flag("--json", options->json, "Print JSON instead of a table");
  command->footer(
      "Only the headers of the checkpoint are read; nothing is loaded and nothing changed.\n"
      "A checkpoint does not say which module owns a parameter. The rule: a 2-D *.weight belongs "
      "to\n"
      "a Linear, unless the name of its module speaks of embeddings (emb, wte, wpe).\n\n" +
      examples("moe8 plan --model model.safetensors --convert convert.toml\n"
               "with convert.toml:\n"
               "  [[convert]]\n"
               "  match = \"re:.*experts.*\"\n"
               "  recipe = \"mxfp8_rceil\""));
  command->callback([options] { run(*options); });
}

}  // namespace moe8
