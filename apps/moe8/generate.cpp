// SPDX-License-Identifier: BSD-3-Clause
// moe8 generate: goes on with a prompt. The work is src/nn/generate.cpp's.
#include "moe8/generate.h"

#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>

#include "base/check.h"
#include "base/plain_text.h"
#include "cli.h"
#include "commands.h"
#include "io/file.h"
#include "model_options.h"
#include "moe8/pretrained.h"
#include "moe8/transformer.h"
#include "run_options.h"
#include "text/tokenize_job.h"
#include "train/training_device.h"

namespace moe8 {
namespace {

constexpr const char* kGenerateCommand = "generate";

struct GenerateArguments {
  std::string model;
  std::string recipe;
  ModelOptions options;
  std::string prompt;
  std::string prompt_file;
  std::vector<int64_t> prompt_tokens;
  GenerateOptions generate;
  bool ignore_end = false;
  bool without_cache = false;
  bool without_special_tokens = false;
};

// Tokens of text: by a tokenizer, or its bytes.
std::vector<int64_t> tokens_of(const std::string& text, const Tokenizer* tokenizer,
                               bool add_special_tokens) {
  std::vector<int64_t> tokens;
  if (!tokenizer) {
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    return tokens;
  }
  for (const uint32_t id : tokenizer->encode(text, {.add_special_tokens = add_special_tokens})) {
    tokens.push_back(id);
  }
  return tokens;
}

std::string prompt_of(const GenerateArguments& arguments) {
  if (arguments.prompt_file.empty()) return arguments.prompt;
  if (arguments.prompt_file != "-") return read_text_file(kGenerateCommand, arguments.prompt_file);
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

/// Prints text as its tokens come. A character of several tokens waits for the last of them.
class Printer {
 public:
  explicit Printer(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}

  void add(int64_t token) {
    if (!tokenizer_) {
      write(std::string(1, static_cast<char>(token)));
      return;
    }
    ids_.push_back(static_cast<uint32_t>(token));
    const std::string text = tokenizer_->decode(ids_, /*skip_special_tokens=*/true);
    if (!text.ends_with("\xEF\xBF\xBD")) print_until(text, text.size());
  }
  void end() {
    if (tokenizer_) {
      const std::string text = tokenizer_->decode(ids_, /*skip_special_tokens=*/true);
      print_until(text, text.size());
    }
    write("\n");
  }

 private:
  void print_until(const std::string& text, size_t end) {
    if (end <= printed_) return;
    write(text.substr(printed_, end - printed_));
    printed_ = end;
  }
  static void write(const std::string& text) { std::cout << text << std::flush; }

  const Tokenizer* tokenizer_;
  std::vector<uint32_t> ids_;
  size_t printed_ = 0;
};

std::vector<int64_t> end_tokens(const ModelSource& source, const Tokenizer* tokenizer) {
  if (!tokenizer) return source.run ? std::vector<int64_t>{} : pretrained_end_tokens(source.path);
  std::vector<int64_t> ends;
  const std::string folder = source.run ? source.run->from : source.path;
  if (!folder.empty()) ends = pretrained_end_tokens(folder);
  const std::optional<std::string> name = configured_end(source.tokenizer);
  if (const auto id = name ? tokenizer->id_of(*name) : std::nullopt) ends.push_back(*id);
  return ends;
}

void print_rate(int64_t given, size_t made, std::chrono::steady_clock::time_point start) {
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::cerr << concat(made, made == 1 ? " token" : " tokens", " after ", given, ", ",
                      fixed_digits(static_cast<double>(made) / seconds.count(), 1), " tokens/s\n");
}

void run_generate(GenerateArguments& arguments) {
  const ModelSource source = source_of(arguments.model, arguments.options);
  const std::optional<Tokenizer> tokenizer = tokenizer_of(source);
  const Tokenizer* const reads = tokenizer ? &*tokenizer : nullptr;
  const bool in_tokens = !arguments.prompt_tokens.empty();
  MOE8_CHECK(in_tokens || reads || source.reads_bytes, kGenerateCommand, "--tokenizer",
             "expected a tokenizer, as ", source.path,
             " has none. Pass its folder, or --prompt-tokens");
  const std::vector<int64_t> prompt =
      in_tokens ? arguments.prompt_tokens
                : tokens_of(prompt_of(arguments), reads, !arguments.without_special_tokens);
  MOE8_CHECK(!prompt.empty(), kGenerateCommand, "--prompt",
             "expected text to go on with, got none");
  const c10::Device device = device_of(arguments.options);
  const DeviceSettings settings(device, Deterministic::AUTO);
  const std::shared_ptr<TransformerImpl> model = load_model(
      source, dtype_of(source, arguments.options), device, rules_of(source, arguments.recipe));
  GenerateOptions& options = arguments.generate;
  options.use_cache = !arguments.without_cache;
  if (!arguments.ignore_end) options.end_tokens = end_tokens(source, reads);
  Printer printer(reads);
  bool is_first = true;
  options.on_token = [&](int64_t token) {
    if (in_tokens) {
      std::cout << (is_first ? "" : " ") << token << std::flush;
    } else {
      printer.add(token);
    }
    is_first = false;
    return static_cast<bool>(std::cout);
  };
  const auto start = std::chrono::steady_clock::now();
  const std::vector<int64_t> made = generate(*model, prompt, options);
  if (in_tokens) {
    std::cout << '\n';
  } else {
    printer.end();
  }
  print_rate(static_cast<int64_t>(prompt.size()), made.size(), start);
  const auto room = source.model.max_seq_len - static_cast<int64_t>(prompt.size());
  if (static_cast<int64_t>(made.size()) == room && room < options.max_tokens) {
    std::cerr << concat("Stopped at max_seq_len = ", source.model.max_seq_len, " positions.\n");
  }
}

}  // namespace

void add_generate_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("generate", "Go on with a prompt: text from a run or a published model");
  const auto arguments = std::make_shared<GenerateArguments>();
  GenerateOptions& options = arguments->generate;
  command
      ->add_option("MODEL", arguments->model,
                   "Folder of a run, of a checkpoint or of a published model")
      ->required()
      ->type_name("DIR");
  CLI::Option* text =
      command->add_option("--prompt", arguments->prompt, "Text to go on with")->type_name("TEXT");
  CLI::Option* file =
      command
          ->add_option("--prompt-file", arguments->prompt_file, "A file with it; -: standard input")
          ->type_name("FILE")
          ->excludes(text);
  CLI::Option* tokens =
      command
          ->add_option("--prompt-tokens", arguments->prompt_tokens,
                       "Numbers of tokens instead of text; those that follow are printed")
          ->type_name("N,...")
          ->delimiter(',')
          ->excludes(text)
          ->excludes(file);
  command->add_option("--max-tokens", options.max_tokens, "The most tokens to add")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 24))
      ->type_name("N");
  command
      ->add_option("--temperature", options.sampling.temperature,
                   "0: always the likeliest token; 1: as the model says")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 100.0))
      ->type_name("X");
  command->add_option("--top-k", options.sampling.top_k, "Only of the K likeliest; 0: of all")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 24))
      ->type_name("K");
  command
      ->add_option("--top-p", options.sampling.top_p,
                   "Only of the likeliest whose probabilities reach P together")
      ->capture_default_str()
      ->check(CLI::Range(1e-6, 1.0))
      ->type_name("P");
  command->add_option("--seed", options.sampling.seed, "Another text with temperature above 0")
      ->capture_default_str()
      ->type_name("N");
  add_recipe_option(*command, arguments->recipe,
                    "Compute in this recipe; else as the model was trained");
  add_model_options(*command, arguments->options);
  command->add_flag("--ignore-end", arguments->ignore_end, "Go on behind the end of a text");
  command->add_flag("--no-special-tokens", arguments->without_special_tokens,
                    "Without the tokens that the tokenizer puts around a text");
  command->add_flag("--no-cache", arguments->without_cache,
                    "Compute every position again for every token: slow, the same text");
  command->footer(
      "Prints what follows the prompt, as it comes, and the speed on standard error.\n\n" +
      examples(
          "moe8 generate runs/bf16 --prompt 'In the beginning'\n"
          "moe8 generate models/Qwen3-30B-A3B --prompt 'Why is the sky blue?' --temperature 0.7 "
          "--top-p 0.9 --seed 1"));
  command->callback([arguments, text, file, tokens] {
    if (text->count() + file->count() + tokens->count() == 0) throw CLI::RequiredError("--prompt");
    run_generate(*arguments);
  });
}

}  // namespace moe8
