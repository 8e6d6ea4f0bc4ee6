// SPDX-License-Identifier: BSD-3-Clause
// Text files and JSON lines as documents, in batches, from any place on. No Torch.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"

namespace moe8 {

enum class DocumentFormat { TEXT, JSON_LINES };

struct DocumentOptions {
  /// By the end of a file's name where nothing is said: .jsonl, .ndjson and .json are JSON lines.
  std::optional<DocumentFormat> format{};
  std::string key = "text";  // of the text in a line of JSON
  std::string separator{};   // between the documents of a text file; empty: a file is one
  /// Lines of JSON say which part of a document a loss counts, see pieces_of().
  bool answers = false;
};

/// A part of a document's text.
struct TextPiece {
  std::string text{};
  bool counts = true;  // in a loss

  bool operator==(const TextPiece&) const = default;
};

/// As it stands in a file: a text, or a line of JSON.
struct RawDocument {
  size_t file = 0;  // number of its file
  uint64_t line = 0;
  DocumentFormat format = DocumentFormat::TEXT;
  std::string bytes{};
};

/// Where reading goes on: a file and a byte in it.
struct DocumentPlace {
  size_t file = 0;
  uint64_t byte = 0;
  uint64_t line = 1;

  bool operator==(const DocumentPlace&) const = default;
};

class DocumentReader {
 public:
  /// @throws c10::Error "[tokenize] FILE: ..." when one is missing, UTF-16, compressed, or no text.
  DocumentReader(const std::vector<std::string>& paths, DocumentOptions options);

  uint64_t total_bytes() const;
  /// Bytes before a place, for progress.
  uint64_t bytes_before(const DocumentPlace& place) const;
  const std::vector<InputFile>& files() const { return files_; }

  /// Documents from `place` on, of `bytes` together or a little more, at least one; `place` moves
  /// behind them. None: all are read. Blank lines of JSON lines and empty texts are none.
  std::vector<RawDocument> read(DocumentPlace& place, uint64_t bytes);

  /// The text of a document: one piece, or with DocumentOptions::answers several, of
  ///   {"prompt": "...", "completion": "..."}   the second counts
  ///   {"text": "...", "spans": [[7, 12], ...]} what is in spans counts: from a character to before
  ///                                            another, as Python numbers them, in rising order
  /// @throws c10::Error "[tokenize] FILE:LINE: expected ..., got ...".
  std::vector<TextPiece> pieces_of(const RawDocument& document) const;

 private:
  DocumentFormat format_of(size_t file) const;
  [[noreturn]] void refuse(const RawDocument& document, const std::string& expected,
                           const std::string& got) const;
  // The bytes from `at` to the next `separator` or the file's end; `next` is behind that.
  std::string until(const InputFile& file, uint64_t at, std::string_view separator, uint64_t& next);
  void refill(const InputFile& file, uint64_t at);

  std::vector<InputFile> files_;
  DocumentOptions options_;
  // A part of a file that was read ahead.
  const InputFile* buffered_ = nullptr;
  uint64_t buffer_at_ = 0;
  std::string buffer_;
};

}  // namespace moe8
