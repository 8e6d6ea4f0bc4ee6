// SPDX-License-Identifier: BSD-3-Clause
#include "train/text_data.h"

#include <ATen/core/PhiloxRNGEngine.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "train/store/checksum.h"

namespace moe8 {
namespace {

constexpr const char* kOp = "text_data";

int64_t length(std::span<const uint8_t> bytes) {
  return static_cast<int64_t>(bytes.size());
}

int64_t total(const std::vector<std::span<const uint8_t>>& parts) {
  int64_t sum = 0;
  for (const auto& part : parts) sum += length(part);
  return sum;
}

// Positions at which a window with its targets fits.
int64_t starts_in(std::span<const uint8_t> part, int64_t seq_len) {
  return std::max<int64_t>(length(part) - seq_len, 0);
}

void check_positive(int64_t batch_size, int64_t seq_len) {
  constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();  // products fit int64
  for (const auto& [name, value] : {std::pair("batch_size", batch_size), {"seq_len", seq_len}}) {
    MOE8_CHECK(value >= 1 && value <= kMaxSize, kOp, name, "expected 1 to ", kMaxSize, ", got ",
               value);
  }
}

// Uniform below `n`; the bias of one multiplication by a 64-bit fraction is at most n / 2^64.
int64_t draw_below(at::Philox4_32& random, int64_t n) {
  const uint64_t high = random();
  const uint64_t fraction = high << 32 | random();
  return static_cast<int64_t>(static_cast<unsigned __int128>(fraction) * static_cast<uint64_t>(n) >>
                              64);
}

Batch empty_batch(int64_t batch_size, int64_t seq_len) {
  return {at::empty({batch_size, seq_len}, at::kLong), at::empty({batch_size, seq_len}, at::kLong)};
}

void fill_row(const Batch& batch, int64_t row, std::span<const uint8_t> window) {
  const int64_t seq_len = length(window) - 1;
  auto* tokens = batch.tokens.mutable_data_ptr<int64_t>() + row * seq_len;
  auto* targets = batch.targets.mutable_data_ptr<int64_t>() + row * seq_len;
  std::copy(window.begin(), window.end() - 1, tokens);
  std::copy(window.begin() + 1, window.end(), targets);
}

// -log p(next | byte) with add-one smoothing. [256 * byte + next]
std::vector<double> bigram_table(const std::vector<std::span<const uint8_t>>& parts) {
  std::vector<int64_t> pairs(kByteVocabulary * kByteVocabulary, 0);
  for (const auto& part : parts) {
    for (size_t i = 1; i < part.size(); ++i) ++pairs[kByteVocabulary * part[i - 1] + part[i]];
  }
  std::vector<double> table(pairs.size());
  for (int64_t byte = 0; byte < kByteVocabulary; ++byte) {
    const auto row = std::span(pairs).subspan(kByteVocabulary * byte, kByteVocabulary);
    const int64_t from_byte = std::accumulate(row.begin(), row.end(), kByteVocabulary);
    for (int64_t next = 0; next < kByteVocabulary; ++next) {
      table[kByteVocabulary * byte + next] =
          std::log(static_cast<double>(from_byte)) - std::log(static_cast<double>(row[next] + 1));
    }
  }
  return table;
}

}  // namespace

TextData::TextData(const std::vector<std::string>& paths, double validation_fraction) {
  MOE8_CHECK(!paths.empty(), kOp, "paths", "expected at least one text file, got none");
  MOE8_CHECK(validation_fraction > 0 && validation_fraction < 1, kOp, "validation_fraction",
             "expected more than 0 and less than 1, got ", validation_fraction);
  for (const std::string& path : paths) {
    const Bytes bytes = files_.emplace_back(kOp, path).bytes();
    MOE8_CHECK(!bytes.empty(), kOp, path, "expected text, got an empty file");
    const auto held_out = std::ceil(validation_fraction * static_cast<double>(bytes.size()));
    const size_t validation = std::min(static_cast<size_t>(held_out), bytes.size());
    train_.push_back(bytes.first(bytes.size() - validation));
    validation_.push_back(bytes.last(validation));
  }
}

std::vector<std::string> TextData::fingerprints() const {
  std::vector<std::string> all;
  for (const MappedFile& file : files_) all.push_back(checksum(file.bytes()));
  return all;
}

int64_t TextData::train_bytes() const {
  return total(train_);
}
int64_t TextData::validation_bytes() const {
  return total(validation_);
}

void TextData::check_sizes(int64_t batch_size, int64_t seq_len) const {
  check_training(batch_size, seq_len);
  check_validation(batch_size, seq_len);
}

// ---- training ---------------------------------------------------------------
void TextData::check_training(int64_t batch_size, int64_t seq_len) const {
  check_positive(batch_size, seq_len);
  int64_t longest = 0;
  for (const Bytes& part : train_) longest = std::max(longest, length(part));
  MOE8_CHECK(longest > seq_len, kOp, "training text", "expected at least ", seq_len + 1,
             " bytes in one file for sequence length ", seq_len, ", got ", longest,
             ". Give a longer text or shorten the sequence.");
}

Batch TextData::train_batch(uint64_t seed, int64_t index, int64_t batch_size,
                            int64_t seq_len) const {
  check_training(batch_size, seq_len);
  MOE8_CHECK(index >= 0, kOp, "index", "expected 0 or more, got ", index);
  int64_t starts = 0;
  for (const Bytes& part : train_) starts += starts_in(part, seq_len);

  at::Philox4_32 random(seed, static_cast<uint64_t>(index));
  const Batch batch = empty_batch(batch_size, seq_len);
  for (int64_t row = 0; row < batch_size; ++row) {
    int64_t start = draw_below(random, starts);
    auto part = train_.begin();
    for (; start >= starts_in(*part, seq_len); ++part) start -= starts_in(*part, seq_len);
    fill_row(batch, row, part->subspan(start, seq_len + 1));
  }
  return batch;
}

// ---- validation -------------------------------------------------------------
int64_t TextData::validation_windows(int64_t seq_len) const {
  int64_t windows = 0;
  for (const Bytes& part : validation_) windows += (length(part) - 1) / seq_len;
  return windows;
}

void TextData::check_validation(int64_t batch_size, int64_t seq_len) const {
  check_positive(batch_size, seq_len);
  MOE8_CHECK(validation_windows(seq_len) >= batch_size, kOp, "validation text",
             "expected at least ", batch_size * seq_len + 1, " bytes for one batch of ", batch_size,
             " windows of ", seq_len, ", got ", validation_bytes(), " in ", files_.size(),
             files_.size() == 1 ? " file" : " files (windows stay within one)",
             ". Give a longer text, or lower the batch size or the sequence length.");
}

TextData::Bytes TextData::validation_window(int64_t index, int64_t seq_len) const {
  auto part = validation_.begin();
  for (; index >= (length(*part) - 1) / seq_len; ++part) index -= (length(*part) - 1) / seq_len;
  return part->subspan(index * seq_len, seq_len + 1);
}

int64_t TextData::validation_batches(int64_t batch_size, int64_t seq_len) const {
  check_validation(batch_size, seq_len);
  return validation_windows(seq_len) / batch_size;
}

Batch TextData::validation_batch(int64_t index, int64_t batch_size, int64_t seq_len) const {
  const int64_t batches = validation_batches(batch_size, seq_len);
  MOE8_CHECK(index >= 0 && index < batches, kOp, "index", "expected 0 to ", batches - 1, ", got ",
             index);
  const Batch batch = empty_batch(batch_size, seq_len);
  for (int64_t row = 0; row < batch_size; ++row) {
    fill_row(batch, row, validation_window(index * batch_size + row, seq_len));
  }
  return batch;
}

double TextData::bigram_loss(int64_t batches, int64_t batch_size, int64_t seq_len) const {
  const int64_t most = validation_batches(batch_size, seq_len);
  MOE8_CHECK(batches >= 1 && batches <= most, kOp, "batches", "expected 1 to ", most, ", got ",
             batches);
  const std::vector<double> table = bigram_table(train_);
  double sum = 0;
  for (int64_t index = 0; index < batches * batch_size; ++index) {
    const Bytes window = validation_window(index, seq_len);
    for (size_t i = 1; i < window.size(); ++i)
      sum += table[kByteVocabulary * window[i - 1] + window[i]];
  }
  return sum / static_cast<double>(batches * batch_size * seq_len);
}

}  // namespace moe8
