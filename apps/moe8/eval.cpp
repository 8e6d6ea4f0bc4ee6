// SPDX-License-Identifier: BSD-3-Clause
// moe8 eval: the loss of models on texts, as a table or JSON. The work is src/train/evaluate.cpp's.
#include <unistd.h>

#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/plain_text.h"
#include "cli.h"
#include "commands.h"
#include "model_options.h"
#include "moe8/transformer.h"
#include "run_options.h"
#include "train/evaluate.h"
#include "train/training_device.h"

namespace moe8 {
namespace {

struct EvalArguments {
  std::vector<std::string> models;
  std::vector<std::string> recipes;
  ModelOptions model;
  EvalTextOptions texts;
  std::string tokens = "auto";
  EvaluateOptions evaluate{.seq_len = 0};
  bool json = false;
};

/// A model in a recipe, and its losses.
struct EvalRow {
  std::string model;
  int64_t step = 0;
  std::string recipe;
  std::vector<TextLoss> losses;
};

// As long as the windows of the training, or as a published model commonly gets.
int64_t window_of(const ModelSource& source, int64_t asked) {
  constexpr int64_t kCommon = 2048;
  if (asked > 0) return asked;
  return source.run ? source.run->training.seq_len : std::min(source.model.max_seq_len, kCommon);
}

EvalRow row_of(const EvalArguments& arguments, const ModelSource& source,
               const std::string& recipe) {
  const c10::Device device = device_of(arguments.model);
  const DeviceSettings settings(device, Deterministic::AUTO);
  const std::optional<Tokenizer> tokenizer = tokenizer_of(source);
  const Tokenizer* const reads = tokenizer ? &*tokenizer : nullptr;
  const std::vector<EvalText> texts = open_eval_texts(arguments.texts, source, reads);
  const std::shared_ptr<TransformerImpl> model =
      load_model(source, dtype_of(source, arguments.model), device, rules_of(source, recipe));
  EvaluateOptions options = arguments.evaluate;
  options.seq_len = window_of(source, options.seq_len);
  const bool is_terminal = ::isatty(STDERR_FILENO) != 0;
  if (is_terminal) {
    options.progress = [](double share) {
      std::cerr << "\r" << fixed_digits(100 * share, 1) << " % " << std::flush;
    };
  }
  const bool are_bytes = source.reads_bytes || arguments.texts.tokens == DataTokens::BYTES;
  EvalRow row{source.path, source.step, recipe_name(source, recipe),
              evaluate(*model, texts, options, are_bytes, reads)};
  if (is_terminal) std::cerr << "\r        \r";
  return row;
}

// ---- what a row says ------------------------------------------------------------
/// A model in a recipe on one text, or on all.
struct EvalLine {
  const EvalRow* row;
  std::string text;
  int64_t tokens = 0;
  int64_t bytes = 0;  // where bits_per_byte is there
  Estimate loss;
  std::optional<double> bits_per_byte{};
  std::optional<Estimate> difference{};  // to the first row
};

EvalLine line_of(const EvalRow& row, const std::string& text, const std::vector<TextLoss>& losses,
                 const std::vector<TextLoss>& first) {
  EvalLine line{.row = &row, .text = text, .loss = mean_loss(losses)};
  for (const TextLoss& one : losses) {
    line.tokens += one.tokens;
    line.bytes += one.bytes.value_or(0);
  }
  line.bits_per_byte = bits_per_byte(losses);
  line.difference = difference(losses, first);
  return line;
}

std::vector<EvalLine> lines_of(const std::vector<EvalRow>& rows) {
  const std::vector<TextLoss>& first = rows.front().losses;
  std::vector<EvalLine> lines;
  for (const EvalRow& row : rows) {
    for (size_t i = 0; i < row.losses.size(); ++i) {
      lines.push_back(line_of(row, row.losses[i].name, {row.losses[i]},
                              i < first.size() ? std::vector{first[i]} : std::vector<TextLoss>{}));
    }
    if (row.losses.size() > 1) lines.push_back(line_of(row, "all", row.losses, first));
  }
  return lines;
}

// ---- as a table -----------------------------------------------------------------
std::string with_error(const Estimate& estimate) {
  const std::string value = fixed_digits(estimate.value, 4);
  return estimate.error ? concat(value, " ± ", fixed_digits(*estimate.error, 4)) : value;
}

std::string signed_with_error(const Estimate& estimate) {
  return concat(estimate.value < 0 ? "" : "+", with_error(estimate));
}

std::string eval_table(const std::vector<EvalRow>& rows) {
  std::vector<std::vector<std::string>> cells{
      {"model", "recipe", "text", "tokens", "loss", "perplexity", "bits/byte", "to the first"}};
  for (const EvalLine& line : lines_of(rows)) {
    const EvalRow& row = *line.row;
    const bool compares = line.difference && &row != &rows.front();
    cells.push_back({row.step > 0 ? concat(row.model, " step ", row.step) : row.model, row.recipe,
                     line.text, std::to_string(line.tokens), with_error(line.loss),
                     general_digits(std::exp(line.loss.value), 6),
                     line.bits_per_byte ? fixed_digits(*line.bits_per_byte, 4) : "-",
                     compares ? signed_with_error(*line.difference) : "-"});
  }
  return text_table(cells, table_style());
}

// ---- as JSON --------------------------------------------------------------------
using EvalJson = nlohmann::ordered_json;

EvalJson or_nothing(const std::optional<double>& value) {
  return value ? EvalJson(*value) : EvalJson();
}

EvalJson json_of(const EvalLine& line) {
  const std::optional<Estimate>& than = line.difference;
  return {{"model", line.row->model},
          {"step", line.row->step},
          {"recipe", line.row->recipe},
          {"text", line.text},
          {"tokens", line.tokens},
          {"bytes", line.bits_per_byte ? EvalJson(line.bytes) : EvalJson()},
          {"loss", line.loss.value},
          {"loss_error", or_nothing(line.loss.error)},
          {"perplexity", std::exp(line.loss.value)},
          {"bits_per_byte", or_nothing(line.bits_per_byte)},
          {"difference", than ? EvalJson(than->value) : EvalJson()},
          {"difference_error", than ? or_nothing(than->error) : EvalJson()}};
}

EvalJson eval_json(const std::vector<EvalRow>& rows) {
  EvalJson list = EvalJson::array();
  for (const EvalLine& line : lines_of(rows)) list.push_back(json_of(line));
  return list;
}

DataTokens tokens_of(const std::string& word) {
  for (const DataTokens value : {DataTokens::BYTES, DataTokens::UINT16, DataTokens::UINT32}) {
    if (word == to_string(value)) return value;
  }
  return DataTokens::AUTO;
}

void run_eval(EvalArguments& arguments) {
  arguments.texts.tokens = tokens_of(arguments.tokens);
  if (arguments.recipes.empty()) arguments.recipes.emplace_back();  // each its own
  std::vector<EvalRow> rows;
  for (const std::string& path : arguments.models) {
    const ModelSource source = source_of(path, arguments.model);
    for (const std::string& recipe : arguments.recipes) {
      rows.push_back(row_of(arguments, source, recipe));
    }
  }
  if (arguments.json) {
    std::cout << eval_json(rows).dump(2, ' ', false, EvalJson::error_handler_t::replace) << '\n';
  } else {
    std::cout << eval_table(rows);
  }
}

}  // namespace

void add_eval_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "eval", "Loss, perplexity and bits per byte of models, in any recipe, on texts");
  const auto arguments = std::make_shared<EvalArguments>();
  command
      ->add_option("MODEL", arguments->models,
                   "Folders of runs, checkpoints or published models, the baseline first")
      ->required()
      ->type_name("DIR");
  command
      ->add_option("--data", arguments->texts.files,
                   "Texts, JSON lines or token files; else the validation text of a run")
      ->type_name("FILE");
  command
      ->add_option("--recipe", arguments->recipes,
                   "Compute in each of these; else as each model was trained")
      ->type_name("RECIPE,...")
      ->check(is_recipe())
      ->delimiter(',');
  command
      ->add_option("--seq-len", arguments->evaluate.seq_len,
                   "Tokens of a window; else that of the training, or 2048")
      ->check(CLI::Range(1, 1 << 24))
      ->type_name("N");
  command
      ->add_option("--stride", arguments->evaluate.stride,
                   "Tokens from window to window: fewer give every token more to look back at")
      ->check(CLI::Range(1, 1 << 24))
      ->type_name("N");
  command->add_option("--batch-size", arguments->evaluate.batch_size, "Windows at a time")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  command
      ->add_option("--most-tokens", arguments->texts.most_tokens,
                   "Of every file so many, from its beginning")
      ->check(CLI::Range(2, 1 << 30))
      ->type_name("N");
  command->add_option("--tokens", arguments->tokens, "What the files hold, as data.tokens")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "bytes", "uint16", "uint32"}));
  command->add_option("--key", arguments->texts.documents.key, "Key of the text in JSON lines")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_flag("--answers", arguments->texts.documents.answers,
                    "JSON lines of which answers alone count; see moe8 tokenize --answers");
  add_model_options(*command, arguments->model);
  command->add_flag("--json", arguments->json, "Print JSON instead of a table");
  command->footer(
      "Every token but a text's first is predicted once. ± is the standard error, from how blocks of\n"
      "neighbouring windows differ, or documents where each is measured by itself; that of a\n"
      "difference from how the differences do. docs/text.md has the formulas.\n\n" +
      examples("moe8 eval runs/bf16 runs/mx\n"
               "moe8 eval models/Qwen3-30B-A3B --data text.txt --recipe bf16,fp8_rowwise"));
  command->callback([arguments] { run_eval(*arguments); });
}

}  // namespace moe8
