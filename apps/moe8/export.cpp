// SPDX-License-Identifier: BSD-3-Clause
// moe8 export: the weights of a run as a folder that transformers reads.
#include "train/export.h"

#include <iostream>
#include <memory>
#include <string>

#include "base/plain_text.h"
#include "cli.h"
#include "commands.h"

namespace moe8 {
namespace {

struct ExportArguments {
  std::string from;
  std::string to;
  std::string tokenizer;
};

void run_export(const ExportArguments& arguments) {
  const ExportResult made = export_run(arguments.from, arguments.to, arguments.tokenizer);
  std::cout << concat(arguments.to, ": ", made.parameters, " parameters of ", made.source,
                      made.step > 0 ? concat(", step ", made.step) : std::string(), "\n");
}

}  // namespace

void add_export_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "export", "Write the weights of a run as a folder that Hugging Face's transformers reads.");
  const auto arguments = std::make_shared<ExportArguments>();
  command->add_option("DIR", arguments->from, "Folder of a run, or of one of its checkpoints")
      ->required()
      ->type_name("DIR");
  command->add_option("--to", arguments->to, "Folder to write, which must not exist")
      ->required()
      ->type_name("DIR");
  command
      ->add_option("--tokenizer", arguments->tokenizer,
                   "Folder whose tokenizer's files go along, instead of model.from")
      ->type_name("DIR");
  command->footer(
      "Of a run the weights at its end, or else those of its newest checkpoint, in their dtype.\n"
      "The model must be one of the families of docs/models.md: those that began with model.from "
      "are.\n\n" +
      examples("moe8 export runs/qwen --to exported\n"
               "moe8 export runs/qwen/checkpoints/best --to exported"));
  command->callback([arguments] { run_export(*arguments); });
}

}  // namespace moe8
