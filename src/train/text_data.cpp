// SPDX-License-Identifier: BSD-3-Clause
#include "train/text_data.h"

#include <ATen/core/PhiloxRNGEngine.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <span>

#include "base/check.h"
#include "io/foreign_file.h"
#include "train/store/checksum.h"

namespace moe8 {
namespace {

constexpr const char* kTextData = "text_data";

// Positions at which a window with its targets fits.
int64_t starts_in(int64_t tokens, int64_t seq_len) {
  return std::max<int64_t>(tokens - seq_len, 0);
}

// Training or validation text.
int64_t total(const auto& parts) {
  int64_t sum = 0;
  for (const auto& part : parts) sum += part.size;
  return sum;
}

// One token is one byte, so a text of two bytes per character would train every second one on NUL.
void check_is_text(const InputFile& file, bool may_hold_tokens) {
  std::string first(std::min<uint64_t>(file.size(), 4096), '\0');
  file.read(first.data(), first.size(), 0);
  const std::optional<std::string> wide = wide_encoding(first);
  MOE8_CHECK(!wide, kTextData, file.path(),
             "expected text of one byte per letter or in UTF-8, got ", *wide,
             ". Convert it: iconv -f ", *wide, " -t UTF-8 FILE > NEW-FILE");
  MOE8_CHECK(!is_git_lfs_pointer(first), kTextData, file.path(), "expected text, got ",
             *foreign_kind(first));
  const bool looks_flat =
      may_hold_tokens && file.path().ends_with(".bin") && first.find('\0') != std::string::npos;
  MOE8_CHECK(!looks_flat, kTextData, file.path(),
             "expected text, or a file that says that it holds "
             "tokens, got a .bin that says nothing. Say data.tokens = \"uint16\" or \"uint32\", or "
             "\"bytes\"");
}

void check_positive(int64_t batch_size, int64_t seq_len) {
  constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();  // products fit int64
  for (const auto& [name, value] : {std::pair("batch_size", batch_size), {"seq_len", seq_len}}) {
    MOE8_CHECK(value >= 1 && value <= kMaxSize, kTextData, name, "expected 1 to ", kMaxSize,
               ", got ", value);
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

void fill_row(const Batch& batch, int64_t row, const std::vector<uint32_t>& window) {
  const auto seq_len = static_cast<int64_t>(window.size()) - 1;
  auto* tokens = batch.tokens.mutable_data_ptr<int64_t>() + row * seq_len;
  auto* targets = batch.targets.mutable_data_ptr<int64_t>() + row * seq_len;
  std::copy(window.begin(), window.end() - 1, tokens);
  std::copy(window.begin() + 1, window.end(), targets);
}

// Shares of files are counted in as many parts as a double counts exactly.
constexpr uint64_t kAllShares = uint64_t{1} << 53U;

// -log p(next | byte) with add-one smoothing, of counted pairs. [256 * byte + next]
std::vector<double> negative_logarithms(const std::vector<int64_t>& pairs) {
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

TextData::TextData(const std::vector<std::string>& paths, double validation_fraction)
    : TextData(DataConfig{.files = paths, .validation_fraction = validation_fraction},
               kByteVocabulary) {}

TextData::TextData(const DataConfig& config, int64_t vocabulary) : vocabulary_(vocabulary) {
  MOE8_CHECK(!config.files.empty(), kTextData, "paths",
             "expected at least one text file, got none");
  const double fraction = config.validation_fraction;
  MOE8_CHECK(fraction > 0 && fraction < 1, kTextData, "validation_fraction",
             "expected more than 0 and less than 1, got ", fraction);
  for (const std::string& path : config.files) open(path, config.tokens);
  check_one_tokenizer();
  split(fraction);
  set_weights(config.weights);
}

void TextData::open(const std::string& path, DataTokens tokens) {
  const bool is_flat = tokens == DataTokens::UINT16 || tokens == DataTokens::UINT32;
  if (is_flat) {
    const auto type = tokens == DataTokens::UINT16 ? TokenType::UINT16 : TokenType::UINT32;
    files_.push_back(TokenSource::open(path, type));
  } else if (tokens == DataTokens::AUTO && TokenSource::says_tokens(path)) {
    files_.push_back(TokenSource::open(path));
  } else {
    const TokenSource& text = files_.emplace_back(TokenSource::open_bytes(path, kTextData));
    MOE8_CHECK(text.size() > 0, kTextData, path, "expected text, got an empty file");
    check_is_text(text.file(), tokens == DataTokens::AUTO);
  }
  const TokenSource& file = files_.back();
  MOE8_CHECK(file.size() > 0, kTextData, path, "expected tokens, got none");
  MOE8_CHECK(!file.vocabulary() || *file.vocabulary() <= vocabulary_, kTextData, "model.vocab_size",
             "expected at least ", file.vocabulary().value_or(0), ", as the tokenizer of ", path,
             " has, got ", vocabulary_);
}

// Files of one tokenizer, or of which nothing is known. Bytes are a tokenizer of their own.
void TextData::check_one_tokenizer() const {
  const TokenSource& first = files_.front();
  for (const TokenSource& file : files_) {
    const bool both_known = !file.tokenizer().empty() && !first.tokenizer().empty();
    const bool same = file.is_bytes() == first.is_bytes() &&
                      (!both_known || file.tokenizer() == first.tokenizer());
    MOE8_CHECK(same, kTextData, file.path(), "expected tokens of the same tokenizer as those of ",
               first.path(), ", got those of another. Make them with one: moe8 tokenize");
  }
}

void TextData::split(double validation_fraction) {
  for (size_t i = 0; i < files_.size(); ++i) {
    const auto size = static_cast<int64_t>(files_[i].size());
    const auto held_out = std::ceil(validation_fraction * static_cast<double>(size));
    const int64_t validation = std::min(static_cast<int64_t>(held_out), size);
    train_.push_back({i, 0, size - validation});
    validation_.push_back({i, size - validation, validation});
  }
}

void TextData::set_weights(const std::vector<double>& weights) {
  if (weights.empty()) return;
  MOE8_CHECK(weights.size() == files_.size(), kTextData, "data.weights",
             "expected as many as files, ", files_.size(), ", or none, got ", weights.size());
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  MOE8_CHECK(sum > 0, kTextData, "data.weights", "expected one above 0, got none");
  double until = 0;
  for (const double weight : weights) {
    until += weight;
    shares_.push_back(
        static_cast<uint64_t>(std::floor(until / sum * static_cast<double>(kAllShares))));
  }
  // The last that has one gets the rest, whatever was rounded.
  const auto last =
      std::ranges::find_if(weights.rbegin(), weights.rend(), [](double w) { return w > 0; });
  std::fill(shares_.end() - (last - weights.rbegin()) - 1, shares_.end(), kAllShares);
}

std::vector<std::string> TextData::fingerprints() const {
  std::vector<std::string> all;
  for (const TokenSource& file : files_) {
    const std::string hash = checksum(file.file());
    all.push_back(file.is_bytes() ? hash : concat(hash, " ", name_of(file.type())));
  }
  return all;
}

int64_t TextData::train_tokens() const {
  return total(train_);
}
int64_t TextData::validation_tokens() const {
  return total(validation_);
}

const char* TextData::unit() const {
  return files_.front().is_bytes() ? "bytes" : "tokens";
}

std::vector<uint32_t> TextData::read(const Window& window, int64_t seq_len) const {
  std::vector<uint32_t> tokens(static_cast<size_t>(seq_len) + 1);
  files_[window.file].read(static_cast<uint64_t>(window.begin), tokens,
                           static_cast<uint32_t>(vocabulary_));
  return tokens;
}

void TextData::check_sizes(int64_t batch_size, int64_t seq_len) const {
  check_training(batch_size, seq_len);
  check_validation(batch_size, seq_len);
}

// ---- training ---------------------------------------------------------------
void TextData::check_training(int64_t batch_size, int64_t seq_len) const {
  check_positive(batch_size, seq_len);
  int64_t longest = 0;
  for (const Part& part : train_) longest = std::max(longest, part.size);
  MOE8_CHECK(longest > seq_len, kTextData, "training text", "expected at least ", seq_len + 1, " ",
             unit(), " in one file for sequence length ", seq_len, ", got ", longest,
             ". Give a longer text or shorten the sequence.");
  for (size_t i = 0; i < shares_.size(); ++i) {
    const bool drawn = shares_[i] > (i == 0 ? 0 : shares_[i - 1]);
    MOE8_CHECK(!drawn || train_[i].size > seq_len, kTextData, files_[i].path(),
               "expected at least ", seq_len + 1, " ", unit(), " for sequence length ", seq_len,
               " in a file with a weight, got ", train_[i].size);
  }
}

Batch TextData::train_batch(uint64_t seed, int64_t index, int64_t batch_size, int64_t seq_len,
                            Rows rows) const {
  check_training(batch_size, seq_len);
  MOE8_CHECK(index >= 0, kTextData, "index", "expected 0 or more, got ", index);
  if (rows.count == 0) rows = {0, batch_size};
  MOE8_CHECK(rows.first >= 0 && rows.count >= 1 && rows.first + rows.count <= batch_size, kTextData,
             "rows", "expected some of ", batch_size, ", got ", rows.count, " from ", rows.first,
             " on");
  at::Philox4_32 random(seed, static_cast<uint64_t>(index));
  const Batch batch = empty_batch(rows.count, seq_len);
  for (int64_t row = 0; row < rows.first + rows.count; ++row) {
    const Window window = draw_window(random, seq_len);
    if (row >= rows.first) fill_row(batch, row - rows.first, read(window, seq_len));
  }
  return batch;
}

TextData::Window TextData::draw_window(at::Philox4_32& random, int64_t seq_len) const {
  if (!shares_.empty()) {
    const auto share = static_cast<uint64_t>(draw_below(random, static_cast<int64_t>(kAllShares)));
    const auto file =
        static_cast<size_t>(std::ranges::upper_bound(shares_, share) - shares_.begin());
    const Part& part = train_[file];
    return {part.file, part.begin + draw_below(random, starts_in(part.size, seq_len))};
  }
  int64_t starts = 0;
  for (const Part& part : train_) starts += starts_in(part.size, seq_len);
  int64_t start = draw_below(random, starts);
  auto part = train_.begin();
  for (; start >= starts_in(part->size, seq_len); ++part) start -= starts_in(part->size, seq_len);
  return {part->file, part->begin + start};
}

// ---- validation -------------------------------------------------------------
int64_t TextData::validation_windows(int64_t seq_len) const {
  int64_t windows = 0;
  for (const Part& part : validation_) windows += (part.size - 1) / seq_len;
  return windows;
}

void TextData::check_validation(int64_t batch_size, int64_t seq_len) const {
  check_positive(batch_size, seq_len);
  MOE8_CHECK(validation_windows(seq_len) >= batch_size, kTextData, "validation text",
             "expected at least ", batch_size * seq_len + 1, " ", unit(), " for one batch of ",
             batch_size, " windows of ", seq_len, ", got ", validation_tokens(), " in ",
             files_.size(), files_.size() == 1 ? " file" : " files (windows stay within one)",
             ". Give a longer text, or lower the batch size or the sequence length.");
}

TextData::Window TextData::validation_window(int64_t index, int64_t seq_len) const {
  auto part = validation_.begin();
  for (; index >= (part->size - 1) / seq_len; ++part) index -= (part->size - 1) / seq_len;
  return {part->file, part->begin + index * seq_len};
}

int64_t TextData::validation_batches(int64_t batch_size, int64_t seq_len) const {
  check_validation(batch_size, seq_len);
  return validation_windows(seq_len) / batch_size;
}

Batch TextData::validation_batch(int64_t index, int64_t batch_size, int64_t seq_len) const {
  const int64_t batches = validation_batches(batch_size, seq_len);
  MOE8_CHECK(index >= 0 && index < batches, kTextData, "index", "expected 0 to ", batches - 1,
             ", got ", index);
  const Batch batch = empty_batch(batch_size, seq_len);
  for (int64_t row = 0; row < batch_size; ++row) {
    fill_row(batch, row, read(validation_window(index * batch_size + row, seq_len), seq_len));
  }
  return batch;
}

// ---- bigrams ----------------------------------------------------------------
std::vector<double> TextData::bigram_table() const {
  constexpr int64_t kPiece = int64_t{1} << 20;
  std::vector<int64_t> pairs(kByteVocabulary * kByteVocabulary, 0);
  for (const Part& part : train_) {
    // Pieces share a byte, as every byte but the first and the last belongs to two pairs.
    for (int64_t at = 0; at + 1 < part.size; at += kPiece) {
      const int64_t last = std::min(kPiece, part.size - 1 - at);
      const std::vector<uint32_t> bytes = read({part.file, part.begin + at}, last);
      for (size_t i = 1; i < bytes.size(); ++i) ++pairs[kByteVocabulary * bytes[i - 1] + bytes[i]];
    }
  }
  return negative_logarithms(pairs);
}

double TextData::bigram_loss(int64_t batches, int64_t batch_size, int64_t seq_len) const {
  const int64_t most = validation_batches(batch_size, seq_len);
  MOE8_CHECK(batches >= 1 && batches <= most, kTextData, "batches", "expected 1 to ", most,
             ", got ", batches);
  const std::vector<double> table = bigram_table();
  double sum = 0;
  for (int64_t index = 0; index < batches * batch_size; ++index) {
    const std::vector<uint32_t> window = read(validation_window(index, seq_len), seq_len);
    for (size_t i = 1; i < window.size(); ++i)
      sum += table[kByteVocabulary * window[i - 1] + window[i]];
  }
  return sum / static_cast<double>(batches * batch_size * seq_len);
}

}  // namespace moe8
