// SPDX-License-Identifier: BSD-3-Clause
// moe8 export: the weights of a run as a folder that transformers, vLLM or PEFT read.
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
  std::string weights = "plain";
  ExportOptions options;
};

ExportedWeights weights_of(const std::string& word) {
  if (word == "fp8_rowwise") return ExportedWeights::FP8_ROWWISE;
  if (word == "mxfp8_rceil") return ExportedWeights::MXFP8_RCEIL;
  if (word == "mxfp8_floor") return ExportedWeights::MXFP8_FLOOR;
  return ExportedWeights::PLAIN;
}

void run_export(ExportArguments& arguments) {
  arguments.options.weights = weights_of(arguments.weights);
  const ExportResult made = export_run(arguments.from, arguments.to, arguments.options);
  const char* of_what =
      arguments.options.adapter ? " parameters of the adapters of " : " parameters of ";
  std::cout << concat(arguments.to, ": ", made.parameters, of_what, made.source,
                      made.step > 0 ? concat(", step ", made.step) : std::string(), "\n");
}

}  // namespace

void add_export_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "export", "Write the weights of a run as a folder that transformers, vLLM or PEFT read.");
  const auto arguments = std::make_shared<ExportArguments>();
  command->add_option("DIR", arguments->from, "Folder of a run, or of one of its checkpoints")
      ->required()
      ->type_name("DIR");
  command->add_option("--to", arguments->to, "Folder to write, which must not exist")
      ->required()
      ->type_name("DIR");
  command
      ->add_option("--tokenizer", arguments->options.tokenizer,
                   "Folder whose tokenizer's files go along, instead of model.from")
      ->type_name("DIR");
  CLI::Option* const weights =
      command
          ->add_option("--weights", arguments->weights,
                       "Matrices of attention, feed-forward and experts: as they are, or codes and "
                       "scales as the library compressed-tensors and vLLM read them")
          ->capture_default_str()
          ->check(CLI::IsMember({"plain", "fp8_rowwise", "mxfp8_rceil", "mxfp8_floor"}));
  command
      ->add_flag("--adapter", arguments->options.adapter,
                 "Of a run with [lora] the adapters alone, as PEFT keeps them")
      ->excludes(weights);
  command->footer(
      "Of a run the weights at its end, or else those of its newest checkpoint, in their dtype.\n"
      "The model must be one of the families of docs/models.md: those that began with model.from "
      "are.\n\n" +
      examples("moe8 export runs/qwen --to exported\n"
               "moe8 export runs/qwen/checkpoints/best --to exported --weights fp8_rowwise\n"
               "moe8 export runs/lora --to adapter --adapter"));
  command->callback([arguments] { run_export(*arguments); });
}

}  // namespace moe8
