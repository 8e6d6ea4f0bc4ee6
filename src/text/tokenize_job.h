// SPDX-License-Identifier: BSD-3-Clause
// What `moe8 tokenize` does: documents to a folder of token files, on several threads. No Torch.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "moe8/tokenizer.h"
#include "text/document_reader.h"
#include "text/token_source.h"

namespace moe8 {

struct TokenizeJob {
  std::vector<std::string> files;
  std::string tokenizer;  // file or folder
  std::string out;        // folder; made where it is missing
  DocumentOptions documents;
  /// Behind every document; the tokenizer's own (tokenizer_config.json) where nothing is said, and
  /// none where the text is empty.
  std::optional<std::string> end_token;
  bool add_special_tokens = false;
  bool megatron = false;  // also tokens.idx
  int threads = 1;
};

struct TokenizeProgress {
  uint64_t bytes = 0, total_bytes = 0;
  uint64_t tokens = 0, documents = 0;
  uint64_t bytes_before = 0;  // done by an earlier start
};

/// "eos_token" of the tokenizer_config.json beside a tokenizer, a file or folder; nothing where it
/// says none.
std::optional<std::string> configured_end(const std::string& tokenizer);

/// The tokens of a document, of which 1 stands beside those that a loss counts: each piece is encoded
/// by itself, as a prompt is that a model is asked to go on with.
struct EncodedDocument {
  std::vector<uint32_t> ids;
  std::vector<uint8_t> is_answer;
};
/// @param end  a token behind the text, which counts where the last piece does
EncodedDocument encode_pieces(TokenEncoder& encoder, const std::vector<TextPiece>& pieces,
                              std::optional<uint32_t> end, const EncodeOptions& options = {});

/// Runs to the end, or goes on where an earlier start of the same job was stopped: everything up to a
/// place is on the disk before the place is written down. The files are the same bytes for any
/// number of threads and of starts. `progress` is called now and then, from the caller's thread.
/// @throws c10::Error naming file and line of a document that is none, and when the folder holds
/// another job's files.
TokenIndex tokenize_files(const TokenizeJob& job,
                          const std::function<void(const TokenizeProgress&)>& progress = {});

}  // namespace moe8
