// SPDX-License-Identifier: BSD-3-Clause
// Texts that a loss is measured on: token files as they are, or text through a model's tokenizer.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "moe8/tokenizer.h"
#include "text/document_reader.h"
#include "train/model_source.h"

namespace moe8 {

/// The tokens of one file, and what of them counts.
struct EvalText {
  std::string name{};
  int64_t size = 0;  // tokens
  std::function<void(int64_t begin, std::span<uint32_t> ids)> read{};
  /// Where documents end that are measured each by itself; empty: the file is one text.
  std::vector<uint64_t> document_ends{};
  /// 1 of tokens that count; null: all do.
  std::function<void(int64_t begin, std::span<uint8_t> counts)> read_counts{};
  std::string fingerprint{};  // of the tokens: losses of equal ones can be compared token by token
};

struct EvalTextOptions {
  std::vector<std::string> files{};  // none: the validation text of the run
  DataTokens tokens = DataTokens::AUTO;
  DocumentOptions documents{};
  int64_t most_tokens = 0;  // of each file so many, from its beginning; 0: all
};

/// Opens the files for a model. Text becomes tokens by `tokenizer`, and is kept in memory; lines of
/// JSON are joined by its end token. Documents of which answers count are measured each by itself.
/// @param tokenizer  null: the tokens of text are its bytes
/// @throws c10::Error naming a file that is missing, no text, of another tokenizer, or has ids that the
///         model does not know; or where the model needs tokens and there is no tokenizer
std::vector<EvalText> open_eval_texts(const EvalTextOptions& options, const ModelSource& source,
                                      const Tokenizer* tokenizer);

/// The bytes of the text that tokens stand for; special tokens have none.
/// @param ids  read in pieces; where one cuts a character, a few bytes may be counted wrong
int64_t text_bytes(const Tokenizer& tokenizer, std::span<const uint32_t> ids);

}  // namespace moe8
