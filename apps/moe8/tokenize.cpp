// SPDX-License-Identifier: BSD-3-Clause
// moe8 tokenize: text and JSON lines to token files. The work is src/text/tokenize_job.cpp's.
#include <unistd.h>

#include <chrono>
#include <iostream>
#include <memory>
#include <string>
#include <thread>

#include "base/plain_text.h"
#include "cli.h"
#include "commands.h"
#include "text/tokenize_job.h"

namespace moe8 {
namespace {

using TokenizeClock = std::chrono::steady_clock;

struct TokenizeArguments {
  TokenizeJob job;
  std::string format;
  std::string separator;
  std::string end_token;
};

// Line ends and tabs as people write them on a command line.
std::string unescaped(const std::string& text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    const char next = text[i] == '\\' && i + 1 < text.size() ? text[i + 1] : '\0';
    if (next == 'n' || next == 't' || next == '\\') {
      result += next == 'n' ? '\n' : next == 't' ? '\t' : '\\';
      ++i;
    } else {
      result += text[i];
    }
  }
  return result;
}

double megabytes(uint64_t bytes) {
  return static_cast<double>(bytes) / 1e6;
}

// One line that is written over on a terminal, a line every ten seconds elsewhere.
class ProgressLine {
 public:
  void show(const TokenizeProgress& at) {
    const auto now = TokenizeClock::now();
    const bool due = is_terminal_ || now - shown_ >= std::chrono::seconds(10);
    last_ = at;
    if (!due) return;
    shown_ = now;
    const double percent = at.total_bytes == 0 ? 100
                                               : 100.0 * static_cast<double>(at.bytes) /
                                                     static_cast<double>(at.total_bytes);
    std::cerr << (is_terminal_ ? "\r" : "")
              << concat(fixed_digits(percent, 1), " %  ", fixed_digits(megabytes(at.bytes), 1),
                        " MB  ", at.documents, " documents  ", at.tokens, " tokens  ",
                        fixed_digits(rate(), 1), " MB/s")
              << (is_terminal_ ? "  " : "\n") << std::flush;
  }
  void end() const {
    if (is_terminal_ && last_.total_bytes > 0) std::cerr << '\n';
  }
  // Of this start.
  double rate() const {
    const std::chrono::duration<double> seconds = TokenizeClock::now() - begin_;
    return megabytes(last_.bytes - last_.bytes_before) / seconds.count();
  }
  bool has_worked() const { return last_.total_bytes > 0; }

 private:
  bool is_terminal_ = ::isatty(STDERR_FILENO) != 0;
  TokenizeClock::time_point begin_ = TokenizeClock::now(), shown_ = begin_;
  TokenizeProgress last_;
};

void run_tokenize(TokenizeArguments& arguments, bool has_end_token) {
  TokenizeJob& job = arguments.job;
  if (arguments.format == "text") job.documents.format = DocumentFormat::TEXT;
  if (arguments.format == "jsonl") job.documents.format = DocumentFormat::JSON_LINES;
  job.documents.separator = unescaped(arguments.separator);
  if (has_end_token) job.end_token = arguments.end_token == "none" ? "" : arguments.end_token;
  ProgressLine line;
  const TokenIndex index = tokenize_files(job, [&](const TokenizeProgress& at) { line.show(at); });
  line.end();
  std::cout << concat(job.out, ": ", index.tokens, " tokens (", name_of(index.type), ") of ",
                      index.documents, index.documents == 1 ? " document" : " documents",
                      line.has_worked() ? concat(", ", fixed_digits(line.rate(), 1), " MB/s")
                                        : " (was done already)",
                      "\n");
  if (index.replaced > 0) {
    std::cout << concat("Bytes that are no UTF-8 were replaced by U+FFFD, ", index.replaced,
                        " times.\n");
  }
}

}  // namespace

void add_tokenize_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("tokenize", "Make token files of text, with a model's tokenizer.json.");
  const auto options = std::make_shared<TokenizeArguments>();
  TokenizeJob& job = options->job;
  job.threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  command->add_option("FILE", job.files, "Text, or JSON lines (.jsonl, .ndjson, .json)")
      ->required();
  command->add_option("--tokenizer", job.tokenizer, "tokenizer.json, or the folder that holds it")
      ->required()
      ->type_name("FILE");
  command
      ->add_option("--out", job.out, "Folder of the token files; an unfinished one is gone on with")
      ->required()
      ->type_name("DIR");
  CLI::Option* end =
      command
          ->add_option("--end-token", options->end_token,
                       "Token behind every document, or none; else that of tokenizer_config.json")
          ->type_name("NAME");
  command->add_option("--key", job.documents.key, "Key of the text in JSON lines")
      ->capture_default_str()
      ->type_name("NAME");
  command
      ->add_option(
          "--separator", options->separator,
          "What stands between the documents of a text file, as \\n\\n; else a file is one")
      ->type_name("TEXT");
  command->add_option("--format", options->format, "What the files are, whatever their names")
      ->check(CLI::IsMember({"text", "jsonl"}));
  command->add_flag(
      "--answers", job.documents.answers,
      "Lines with prompt and completion, or text and spans: training counts answers alone");
  command->add_flag("--special-tokens", job.add_special_tokens,
                    "Also the tokens that the tokenizer puts around a text");
  command->add_flag("--megatron", job.megatron, "Also tokens.idx, for Megatron's indexed datasets");
  command->add_option("--threads", job.threads, "Threads; the files are the same for any number")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
  command->footer(
      "DIR gets tokens.bin (uint16, or uint32 for larger vocabularies), documents.u64 (where documents\n"
      "end) and index.json. A job that was stopped goes on where it was. docs/text.md has the formats.\n\n" +
      examples(
          "moe8 tokenize books/*.txt --tokenizer models/gpt2 --out data/books\n"
          "moe8 tokenize web.jsonl --tokenizer tokenizer.json --end-token '<|endoftext|>' --out data/web"));
  command->callback([options, end] { run_tokenize(*options, end->count() > 0); });
}

}  // namespace moe8
