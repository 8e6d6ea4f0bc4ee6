// SPDX-License-Identifier: BSD-3-Clause
// Text and token files as batches: split, training windows, validation windows, a bigram baseline.
#pragma once

#include <ATen/core/PhiloxRNGEngine.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "text/token_source.h"
#include "train/config/run_config.h"

namespace moe8 {

/// Where token values are bytes, the vocabulary has 256 of them.
inline constexpr int64_t kByteVocabulary = 256;

struct Batch {
  at::Tensor tokens;   // [batch_size, seq_len] int64
  at::Tensor targets;  // the same windows one token later
};

/// Consecutive sequences of a batch.
struct Rows {
  int64_t first = 0;
  int64_t count = 0;

  bool operator==(const Rows&) const = default;
};

/// The tokens of one or several files, read as they are needed: text, whose bytes are the tokens, or
/// token files (text/token_source.h) of one tokenizer. The last `validation_fraction` of each file is
/// for validation, the rest for training; no window crosses from one file or part into another, but
/// windows do cross from one document into the next. A file that others shorten meanwhile is a
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

  /// Full batches of consecutive windows, in which each token is a target once; what is left over at
  /// the end is dropped, so that all batches weigh the same in a mean.
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
  };
  struct Window {
    size_t file;
    int64_t begin;
  };

  void open(const std::string& path, DataTokens tokens);
  void split(double validation_fraction);
  void check_one_tokenizer() const;
  void set_weights(const std::vector<double>& weights);
  void check_training(int64_t batch_size, int64_t seq_len) const;
  void check_validation(int64_t batch_size, int64_t seq_len) const;
  int64_t validation_windows(int64_t seq_len) const;
  Window validation_window(int64_t index, int64_t seq_len) const;
  Window draw_window(at::Philox4_32& random, int64_t seq_len) const;
  std::vector<uint32_t> read(const Window& window, int64_t seq_len) const;  // seq_len + 1 tokens
  std::vector<double> bigram_table() const;

  int64_t vocabulary_ = kByteVocabulary;
  std::vector<TokenSource> files_;
  std::vector<Part> train_;  // one per file, as the next
  std::vector<Part> validation_;
  std::vector<uint64_t> shares_;  // with weights: where each file's part of 2^64 - 1 ends
};

}  // namespace moe8
