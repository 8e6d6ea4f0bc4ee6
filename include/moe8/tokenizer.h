// SPDX-License-Identifier: BSD-3-Clause
// Tokenizers of published models: tokenizer.json, as the `tokenizers` library writes it, with
// byte-pair encoding. Text to tokens and back, equal to that library's. No Torch.
// docs/text.md says what is read and what is refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moe8 {

/// What encode() does besides cutting a text into tokens.
struct EncodeOptions {
  /// Put around the text what the file's post-processor puts there (beginning, end).
  bool add_special_tokens = false;
};

/// A tokenizer. Immutable: it may be used from several threads, and copies share what is in it.
/// Special and added tokens are found in a text, as that library does. `truncation` and `padding` of
/// the file are for batches and do nothing here.
class Tokenizer {
 public:
  /// Reads tokenizer.json: the file, or the folder that holds it.
  /// @throws c10::Error "[tokenizer] FILE: KEY: expected ..., got ..." when it is missing, damaged,
  /// or asks for something that moe8 does not know.
  explicit Tokenizer(const std::string& path);

  /// The same from text; `where` stands for the file in messages.
  static Tokenizer parse(std::string_view json, const std::string& where = "tokenizer.json");

  /// The tokens of a text. Bytes that are no UTF-8 become U+FFFD, as Python's errors="replace" does
  /// it. Deterministic. @throws c10::Error when a pattern of the file takes too long.
  std::vector<uint32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;

  /// The text of some tokens, always UTF-8: bytes that are none become U+FFFD, which a text ends in
  /// when its last character is cut. @throws c10::Error when an id is no token's.
  std::string decode(std::span<const uint32_t> ids, bool skip_special_tokens = false) const;

  /// One more than the largest id: what a model's vocabulary must have at least.
  uint32_t vocabulary_size() const;

  /// The id of a token by its name in the file, for example "<|endoftext|>".
  std::optional<uint32_t> id_of(std::string_view token) const;

  /// The name of a token in the file; nothing when there is none of this id.
  std::optional<std::string> token_of(uint32_t id) const;

  /// True when the file calls the token special.
  bool is_special(uint32_t id) const;

  /// XXH3-128 of the file's bytes, 32 hexadecimal digits, as xxh128sum prints it.
  const std::string& fingerprint() const;

 private:
  friend class TokenEncoder;
  struct Parts;
  explicit Tokenizer(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}
  std::shared_ptr<const Parts> parts_;
};

/// Encodes many texts: it remembers words. For one thread.
class TokenEncoder {
 public:
  /// The tokenizer may go; what the encoder needs of it stays.
  explicit TokenEncoder(const Tokenizer& tokenizer);
  /// Ends the encoder.
  ~TokenEncoder();
  /// Neither copied nor moved.
  TokenEncoder(const TokenEncoder&) = delete;
  /// Neither copied nor moved.
  TokenEncoder& operator=(const TokenEncoder&) = delete;

  /// Appends the tokens of a text, as Tokenizer::encode() makes them.
  void encode(std::string_view text, std::vector<uint32_t>& ids, const EncodeOptions& options = {});

  /// How often U+FFFD was put in place of bytes that are no UTF-8, in all texts until now.
  uint64_t replaced() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moe8
