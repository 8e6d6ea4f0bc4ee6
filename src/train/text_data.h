// SPDX-License-Identifier: BSD-3-Clause
// Text files as byte-level tokens: split, training windows, validation windows, a bigram baseline.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "io/file.h"

namespace moe8 {

/// Token values are bytes, so the vocabulary has 256 of them.
inline constexpr int64_t kByteVocabulary = 256;

struct Batch {
  at::Tensor tokens;   // [batch_size, seq_len] int64
  at::Tensor targets;  // the same windows one byte later
};

/// Consecutive sequences of a batch.
struct Rows {
  int64_t first = 0;
  int64_t count = 0;

  bool operator==(const Rows&) const = default;
};

/// The text of one or several files, read as it is needed. The last `validation_fraction` of each
/// file is for validation, the rest for training; no window crosses from one file or part into
/// another. A file that others shorten meanwhile is a c10::Error that names it, from every function
/// that reads.
///
/// Nothing here has state: a training batch is a function of (seed, index, sizes), so a run resumes
/// by going on with the next index.
class TextData {
 public:
  /// @throws c10::Error when there is no path, a file is missing, unreadable, empty, a Git LFS
  /// pointer or UTF-16 (a token is a byte), or the fraction is not between 0 and 1.
  explicit TextData(const std::vector<std::string>& paths, double validation_fraction = 0.05);

  /// Of each file one text that changes when a byte does. Reads everything.
  std::vector<std::string> fingerprints() const;

  int64_t train_bytes() const;
  int64_t validation_bytes() const;

  /// @throws c10::Error that says how many bytes are missing when the text has not one training
  /// window or not one full validation batch of these sizes. Worth calling before a model is built.
  void check_sizes(int64_t batch_size, int64_t seq_len) const;

  /// Windows drawn uniformly from all positions in the training text (Philox, key `seed`, counter
  /// `index`): the same arguments give the same windows on every machine.
  /// @param rows  of the batch, to read only these; none: all
  Batch train_batch(uint64_t seed, int64_t index, int64_t batch_size, int64_t seq_len,
                    Rows rows = {}) const;

  /// Full batches of consecutive windows, in which each byte is a target once; what is left over at
  /// the end is dropped, so that all batches weigh the same in a mean.
  int64_t validation_batches(int64_t batch_size, int64_t seq_len) const;
  Batch validation_batch(int64_t index, int64_t batch_size, int64_t seq_len) const;

  /// Mean negative log-likelihood, in nats per byte, of the targets of the first `batches`
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

  void check_training(int64_t batch_size, int64_t seq_len) const;
  void check_validation(int64_t batch_size, int64_t seq_len) const;
  int64_t validation_windows(int64_t seq_len) const;
  Window validation_window(int64_t index, int64_t seq_len) const;
  std::vector<uint8_t> read(const Window& window, int64_t seq_len) const;  // seq_len + 1 bytes
  std::vector<double> bigram_table() const;

  std::vector<InputFile> files_;
  std::vector<Part> train_;  // one per file, as the next
  std::vector<Part> validation_;
};

}  // namespace moe8
