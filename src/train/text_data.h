// SPDX-License-Identifier: BSD-3-Clause
// Text and token files as batches: split, training windows, validation windows, a bigram baseline.
#pragma once

#include <ATen/core/PhiloxRNGEngine.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "text/token_source.h"
#include "train/config/run_config.h"

namespace moe8 {

/// Where token values are bytes, the vocabulary has 256 of them.
inline constexpr int64_t kByteVocabulary = 256;

struct Batch {
  at::Tensor tokens;   // [batch_size, seq_len] int64
  at::Tensor targets;  // the same windows one token later; kNoTarget where none counts
  /// A number per document and position, undefined where attention looks across documents.
  at::Tensor documents{};
  /// How many targets count, a float32 scalar; undefined where all do. Where none does, one stands in
  /// targets all the same, so that there is a loss to multiply by 0.
  at::Tensor counted{};
};

/// Of Batch::targets, as cross_entropy passes it over.
inline constexpr int64_t kNoTarget = -100;

/// A file as `tokens` says: AUTO is a token file where it says that it is one, else bytes.
/// @param op  of errors about a file of bytes
TokenSource open_tokens(const std::string& path, DataTokens tokens, const char* op);

/// Where in a file the validation text begins. Everything before is for training.
struct ValidationBorder {
  int64_t begin;         // token
  size_t documents = 0;  // before it, where windows are documents
};
/// @param fraction  of the file's `size` tokens that are for validation, rounded up
ValidationBorder validation_border(int64_t size, double fraction);
/// Of windows of documents, whose ends these are: the document that holds the border is the last to
/// train on, or the first for validation where there is none behind it.
ValidationBorder validation_border(const std::vector<uint64_t>& ends, int64_t size,
                                   double fraction);

/// Consecutive sequences of a batch.
struct Rows {
  int64_t first = 0;
  int64_t count = 0;

  bool operator==(const Rows&) const = default;
};

/// The tokens of one or several files, read as they are needed: text, whose bytes are the tokens, or
/// token files (text/token_source.h) of one tokenizer. The last `validation_fraction` of each file is
/// for validation, the rest for training; no window crosses from one file or part into another, but
/// windows do cross from one document into the next, unless DataWindows::DOCUMENTS lets them begin
/// with one: then the parts are whole documents. Targets count where they are part of an answer, in
/// files that say so (TokenSource::has_answers); the first token of a document does not where windows
/// begin with documents or attention ends with them. A file that others shorten meanwhile is a
/// c10::Error that names it, from every function that reads.
///
/// Nothing here has state: a training batch is a function of (seed, index, sizes), so a run resumes
/// by going on with the next index.
class TextData {
 public:
  /// @throws c10::Error when there is no path, a file is missing, unreadable, empty, a Git LFS
  /// pointer or UTF-16 (a token is a byte), or the fraction is not between 0 and 1.
  explicit TextData(const std::vector<std::string>& paths, double validation_fraction = 0.05);

  /// As a run config says it. @throws c10::Error also when a token file's vocabulary has more than
  /// `vocabulary` ids, when files are of several tokenizers, or when there are not as many weights.
  TextData(const DataConfig& config, int64_t vocabulary);

  /// Of each file one text that changes when a byte does. Reads everything.
  std::vector<std::string> fingerprints() const;

  int64_t train_tokens() const;
  int64_t validation_tokens() const;

  /// For people: "bytes" or "tokens".
  const char* unit() const;

  /// @throws c10::Error that says how many tokens are missing when the text has not one training
  /// window or not one full validation batch of these sizes. Worth calling before a model is built.
  void check_sizes(int64_t batch_size, int64_t seq_len) const;

  /// Windows drawn uniformly from all positions in the training text (Philox, key `seed`, counter
  /// `index`); with weights first a file by its weight, then uniformly in it. The same arguments give
  /// the same windows on every machine.
  /// @param rows  of the batch, to read only these; none: all
  Batch train_batch(uint64_t seed, int64_t index, int64_t batch_size, int64_t seq_len,
                    Rows rows = {}) const;

  /// How many targets of a training batch count: all, or what Batch::counted of its rows adds up to.
  int64_t train_counted(uint64_t seed, int64_t index, int64_t batch_size, int64_t seq_len) const;
  /// Batches say which targets count.
  bool counts_some() const { return counts_some_; }

  /// Full batches of consecutive windows, in which each token is a target once, or of whole documents;
  /// what is left over at the end is dropped.
  int64_t validation_batches(int64_t batch_size, int64_t seq_len) const;
  Batch validation_batch(int64_t index, int64_t batch_size, int64_t seq_len) const;

  /// Of bytes only: mean negative log-likelihood, in nats per byte, of the targets of the first `batches`
  /// validation batches under p(next | byte) = (pairs + 1) / (pairs from byte + 256), counted in
  /// the training text.
  double bigram_loss(int64_t batches, int64_t batch_size, int64_t seq_len) const;

 private:
  // The training or the validation text of a file.
  struct Part {
    size_t file;
    int64_t begin;
    int64_t size;
    // Of windows of documents: the numbers of the first, and of that behind the last.
    size_t first_document = 0, end_document = 0;
  };
  struct Window {
    size_t file;
    int64_t begin;
    int64_t count;  // of tokens, the last of which is a target alone
  };

  void open(const std::string& path, DataTokens tokens);
  void split(double validation_fraction);
  void find_documents();
  void check_one_tokenizer() const;
  void set_weights(const std::vector<double>& weights);
  void check_training(int64_t batch_size, int64_t seq_len) const;
  void check_validation(int64_t batch_size, int64_t seq_len) const;
  int64_t validation_windows(int64_t seq_len) const;
  Window validation_window(int64_t index, int64_t seq_len) const;
  Window draw_window(at::Philox4_32& random, int64_t seq_len) const;
  std::vector<Window> draw_windows(uint64_t seed, int64_t index, Rows rows, int64_t seq_len) const;
  int64_t starts_of(const Part& part, int64_t seq_len) const;
  Window window_at(const Part& part, int64_t start, int64_t seq_len) const;
  Window of_documents(const Part& part, size_t first, int64_t seq_len) const;
  const std::vector<Window>& validation_documents(int64_t seq_len) const;
  std::vector<uint32_t> read(const Window& window) const;
  std::vector<uint8_t> counts_of(const Window& window) const;
  std::vector<int64_t> documents_of(const Window& window, int64_t seq_len) const;
  Batch batch_of(const std::vector<Window>& windows, int64_t seq_len) const;
  std::vector<double> bigram_table() const;

  int64_t vocabulary_ = kByteVocabulary;
  bool packs_documents_ = false;             // windows begin with documents
  bool parts_documents_ = false;             // attention ends with them
  bool counts_some_ = false;                 // not all targets
  std::vector<std::vector<uint64_t>> ends_;  // of the documents of each file, where they matter
  std::vector<TokenSource> files_;
  std::vector<Part> train_;  // one per file, as the next
  std::vector<Part> validation_;
  // Of windows of documents, of the length that was asked for last.
  mutable std::pair<int64_t, std::vector<Window>> packed_validation_;
  std::vector<uint64_t> shares_;  // with weights: where each file's part of 2^64 - 1 ends
};

}  // namespace moe8
