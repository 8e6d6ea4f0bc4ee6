// SPDX-License-Identifier: BSD-3-Clause
// Token files, opened for reading: those of `moe8 tokenize`, flat ones as nanoGPT writes them, llm.c's,
// Megatron's .bin with .idx, and text, whose tokens are its bytes. No Torch.
//
// They are read where they are needed, not mapped into memory: a file that others shorten under a
// mapping ends the process, here it is an error that names it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"

namespace moe8 {

/// How a token lies in a file, little-endian.
enum class TokenType { UINT8, UINT16, UINT32 };

int64_t width_of(TokenType type);     // bytes
const char* name_of(TokenType type);  // "uint16"
std::optional<TokenType> token_type_of(std::string_view name);

/// Tokens one after the other, and where documents end. Reads may come from several threads.
class TokenSource {
 public:
  /// Opens what `path` is: a folder or index.json of `moe8 tokenize`; the .bin, the .idx or the common
  /// beginning of Megatron's names; a file with llm.c's header; or a flat file, which does not say
  /// what it is: `flat` says it, uint16 where nothing is said.
  /// @throws c10::Error "[tokens] FILE: expected ..., got ..." when it is missing, cut, or no such file.
  static TokenSource open(const std::string& path, std::optional<TokenType> flat = std::nullopt);

  /// A file whose bytes are the tokens. Errors begin with `op`, a literal.
  static TokenSource open_bytes(const std::string& path, const char* op = "tokens");

  /// True when a file says of itself that it holds tokens: index.json, Megatron's .idx, llm.c's header.
  static bool says_tokens(const std::string& path);

  uint64_t size() const { return size_; }  // in tokens
  TokenType type() const { return type_; }
  bool is_bytes() const { return format_ == kBytes; }
  const std::string& path() const { return file_.path(); }  // of the file with the tokens
  const InputFile& file() const { return file_; }
  /// "flat uint16", "Megatron", ..., for people.
  const std::string& format() const { return format_; }

  /// Fills `ids` from token `begin` on. @throws c10::Error when the file became shorter, or, naming
  /// file and place, when an id is `limit` or more.
  void read(uint64_t begin, std::span<uint32_t> ids, uint32_t limit) const;

  /// What the index says, where there is one: ids are below it; the tokenizer's fingerprint.
  std::optional<uint32_t> vocabulary() const { return vocabulary_; }
  const std::string& tokenizer() const { return tokenizer_; }

  /// How many documents there are; nothing when the files do not say.
  std::optional<uint64_t> documents() const { return documents_; }
  /// Where each of them ends, in tokens, rising, the last one at size(). Reads all of them.
  /// @throws c10::Error naming the file when they do not rise or end elsewhere.
  std::vector<uint64_t> document_ends() const;

  /// True where the files say which tokens are answers: those that a loss counts.
  bool has_answers() const { return answers_.has_value(); }
  /// Of each token from `begin` on 1 where it is part of an answer, else 0.
  void read_answers(uint64_t begin, std::span<uint8_t> is_answer) const;

 private:
  static constexpr const char* kBytes = "bytes";
  TokenSource(InputFile file, TokenType type, std::string format);
  static TokenSource open_index(const std::string& path);
  static TokenSource open_megatron(const std::string& start);
  static TokenSource open_llm_c(InputFile file, int32_t magic);
  static TokenSource open_flat(InputFile file, std::optional<TokenType> type);

  InputFile file_;
  TokenType type_;
  std::string format_;
  uint64_t first_ = 0;  // where tokens begin, in bytes
  uint64_t size_ = 0;
  std::optional<uint32_t> vocabulary_;
  std::string tokenizer_;
  std::optional<uint64_t> documents_;
  // Ends, eight bytes each, or Megatron's lengths, four bytes each, and which of these begin documents.
  std::optional<InputFile> ends_;
  std::optional<InputFile> answers_;  // a byte per token
  bool is_megatron_ = false;
  uint64_t sequences_ = 0;
};

/// The files of `moe8 tokenize` in their folder.
inline constexpr const char* kIndexFile = "index.json";
inline constexpr const char* kTokensFile = "tokens.bin";
inline constexpr const char* kDocumentsFile = "documents.u64";
inline constexpr const char* kAnswersFile = "answers.u8";
inline constexpr const char* kMegatronFile = "tokens.idx";

/// What index.json holds.
struct TokenIndex {
  TokenType type = TokenType::UINT16;
  uint64_t tokens = 0;
  uint64_t documents = 0;
  uint32_t vocabulary = 0;
  std::string tokenizer;                   // fingerprint
  std::optional<std::string> end_token{};  // behind every document
  uint64_t replaced = 0;                   // bytes that were no UTF-8: how many U+FFFD they became
  bool answers = false;                    // there is a byte per token: 1 of answers, else 0
  std::string job{};                       // what the files were made of, as text (tokenize_job.h)
};

std::string to_json(const TokenIndex& index);
/// @throws c10::Error naming `where`.
TokenIndex parse_token_index(std::string_view text, const std::string& where);

/// Megatron's .idx for a file of such tokens: each document is one sequence.
/// @throws c10::Error when a document is longer than its format allows.
void write_megatron_index(const std::string& path, TokenType type,
                          std::span<const uint64_t> document_ends);

}  // namespace moe8
