// SPDX-License-Identifier: BSD-3-Clause
#include "train/eval_text.h"

#include <algorithm>
#include <memory>

#include "base/check.h"
#include "io/foreign_file.h"
#include "text/token_source.h"
#include "text/tokenize_job.h"
#include "train/store/checksum.h"
#include "train/text_data.h"

namespace moe8 {
namespace {

constexpr const char* kEval = "eval";

struct Tokens {
  std::vector<uint32_t> ids;
  std::vector<uint8_t> is_answer;
  std::vector<uint64_t> ends;
};

// ---- text through a tokenizer ---------------------------------------------------
Tokens encode_file(const std::string& path, const DocumentOptions& options,
                   const Tokenizer& tokenizer, const std::string& tokenizer_path) {
  DocumentReader reader({path}, options);
  TokenEncoder encoder(tokenizer);
  std::optional<uint32_t> end;
  if (const auto name = configured_end(tokenizer_path)) end = tokenizer.id_of(*name);
  Tokens tokens;
  constexpr uint64_t kBytesAtOnce = uint64_t{4} << 20U;
  for (DocumentPlace place; place.file == 0;) {
    for (const RawDocument& document : reader.read(place, kBytesAtOnce)) {
      const bool is_text = document.format == DocumentFormat::TEXT;
      const EncodedDocument encoded =
          encode_pieces(encoder, reader.pieces_of(document), is_text ? std::nullopt : end);
      tokens.ids.insert(tokens.ids.end(), encoded.ids.begin(), encoded.ids.end());
      tokens.is_answer.insert(tokens.is_answer.end(), encoded.is_answer.begin(),
                              encoded.is_answer.end());
      tokens.ends.push_back(tokens.ids.size());
    }
  }
  return tokens;
}

void check_vocabulary(const ModelSource& source, uint32_t ids, const std::string& of) {
  MOE8_CHECK(ids <= source.model.vocab_size, kEval, of, "expected ids below ",
             source.model.vocab_size, ", the vocabulary of ", source.path, ", got up to ",
             ids == 0 ? 0 : ids - 1);
}

EvalText of_text(const std::string& path, const EvalTextOptions& options, const ModelSource& source,
                 const Tokenizer& tokenizer) {
  check_vocabulary(source, tokenizer.vocabulary_size(), source.tokenizer);
  const auto tokens =
      std::make_shared<Tokens>(encode_file(path, options.documents, tokenizer, source.tokenizer));
  EvalText text{.name = path, .size = static_cast<int64_t>(tokens->ids.size())};
  text.read = [tokens](int64_t begin, std::span<uint32_t> ids) {
    std::copy_n(tokens->ids.begin() + begin, ids.size(), ids.begin());
  };
  if (options.documents.answers) {
    text.document_ends = tokens->ends;
    text.read_counts = [tokens](int64_t begin, std::span<uint8_t> counts) {
      std::copy_n(tokens->is_answer.begin() + begin, counts.size(), counts.begin());
    };
  }
  text.fingerprint = concat(checksum(InputFile(kEval, path)), " ", tokenizer.fingerprint());
  return text;
}

// ---- token files, and bytes -------------------------------------------------------
EvalText of_tokens(TokenSource opened, const ModelSource& source, const Tokenizer* tokenizer) {
  check_vocabulary(source, opened.vocabulary().value_or(0), opened.path());
  const bool other =
      tokenizer && !opened.tokenizer().empty() && opened.tokenizer() != tokenizer->fingerprint();
  MOE8_CHECK(!other, kEval, opened.path(), "expected tokens of ", source.tokenizer,
             ", the model's tokenizer, got those of another");
  const auto file = std::make_shared<TokenSource>(std::move(opened));
  EvalText text{.name = file->path(), .size = static_cast<int64_t>(file->size())};
  const auto limit = static_cast<uint32_t>(source.model.vocab_size);
  text.read = [file, limit](int64_t begin, std::span<uint32_t> ids) {
    file->read(static_cast<uint64_t>(begin), ids, limit);
  };
  if (file->has_answers()) {
    text.document_ends = file->document_ends();
    text.read_counts = [file](int64_t begin, std::span<uint8_t> counts) {
      file->read_answers(static_cast<uint64_t>(begin), counts);
    };
  }
  text.fingerprint = checksum(file->file());
  return text;
}

// Where the text of a file begins that the run did not train on.
int64_t first_held_out(const RunConfig& run, const std::string& path, int64_t size) {
  const double fraction = run.data.validation_fraction;
  if (run.data.windows != DataWindows::DOCUMENTS) return validation_border(size, fraction).begin;
  const TokenSource file = open_tokens(path, run.data.tokens, kEval);
  return validation_border(file.document_ends(), size, fraction).begin;
}

// What lies behind that.
EvalText held_out_part(const EvalText& whole, int64_t first) {
  EvalText part = whole;
  part.size = whole.size - first;
  part.name += " (validation)";
  part.read = [read = whole.read, first](int64_t begin, std::span<uint32_t> ids) {
    read(first + begin, ids);
  };
  if (!whole.read_counts) return part;
  part.read_counts = [read = whole.read_counts, first](int64_t begin, std::span<uint8_t> counts) {
    read(first + begin, counts);
  };
  part.document_ends.clear();
  const auto before = static_cast<uint64_t>(first);
  for (const uint64_t end : whole.document_ends) {
    if (end > before) part.document_ends.push_back(end - before);
  }
  return part;
}

EvalText open_eval_text(const std::string& path, const EvalTextOptions& options,
                        const ModelSource& source, const Tokenizer* tokenizer) {
  const bool is_tokens = options.tokens == DataTokens::UINT16 ||
                         options.tokens == DataTokens::UINT32 ||
                         (options.tokens == DataTokens::AUTO && TokenSource::says_tokens(path));
  const bool is_bytes = options.tokens == DataTokens::BYTES || source.reads_bytes;
  if (!is_tokens && !is_bytes) {
    MOE8_CHECK(tokenizer, kEval, path, "expected tokens, or a tokenizer to make them with, as ",
               source.path, " has none. Pass --tokenizer DIR, or --tokens bytes");
    return of_text(path, options, source, *tokenizer);
  }
  MOE8_CHECK(!options.documents.answers, kEval, "--answers",
             "expected JSON lines and a tokenizer, got ", path);
  TokenSource opened = open_tokens(path, is_tokens ? options.tokens : DataTokens::BYTES, kEval);
  std::string first(std::min<uint64_t>(opened.file().size(), 4096), '\0');
  opened.file().read(first.data(), first.size(), 0);
  MOE8_CHECK(is_tokens || !is_git_lfs_pointer(first), kEval, path, "expected text, got ",
             foreign_kind(first).value_or(""));
  return of_tokens(std::move(opened), source, is_tokens ? tokenizer : nullptr);
}

}  // namespace

std::vector<EvalText> open_eval_texts(const EvalTextOptions& options, const ModelSource& source,
                                      const Tokenizer* tokenizer) {
  const bool of_run = options.files.empty();
  MOE8_CHECK(!of_run || (source.run && !source.run->data.files.empty()), kEval, "--data",
             "expected files, as ", source.path,
             " is no run, whose validation text could be taken");
  EvalTextOptions own = options;
  if (of_run) {
    own.files = source.run->data.files;
    own.tokens = source.run->data.tokens;
  }
  std::vector<EvalText> texts;
  for (const std::string& path : own.files) {
    EvalText text = open_eval_text(path, own, source, tokenizer);
    if (of_run) text = held_out_part(text, first_held_out(*source.run, path, text.size));
    if (options.most_tokens > 0) text.size = std::min(text.size, options.most_tokens);
    MOE8_CHECK(text.size >= 2, kEval, text.name, "expected at least 2 tokens, got ", text.size);
    texts.push_back(std::move(text));
  }
  return texts;
}

int64_t text_bytes(const Tokenizer& tokenizer, std::span<const uint32_t> ids) {
  constexpr size_t kPiece = 1 << 15, kMostOfACharacter = 8;
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  int64_t bytes = 0;
  for (size_t begin = 0; begin < ids.size();) {
    size_t count = std::min(kPiece, ids.size() - begin);
    std::string text = tokenizer.decode(ids.subspan(begin, count), /*skip_special_tokens=*/true);
    for (size_t i = 0; i < kMostOfACharacter && text.ends_with(kReplacement); ++i) {
      if (begin + count == ids.size()) break;
      text = tokenizer.decode(ids.subspan(begin, ++count), /*skip_special_tokens=*/true);
    }
    bytes += static_cast<int64_t>(text.size());
    begin += count;
  }
  return bytes;
}

}  // namespace moe8
