// SPDX-License-Identifier: BSD-3-Clause
#include "train/text_data.h"

#include <ATen/core/PhiloxRNGEngine.h>
#include <ATen/ops/full.h>

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

TokenSource open_tokens(const std::string& path, DataTokens tokens, const char* op) {
  switch (tokens) {
    case DataTokens::UINT16:
      return TokenSource::open(path, TokenType::UINT16);
    case DataTokens::UINT32:
      return TokenSource::open(path, TokenType::UINT32);
    case DataTokens::BYTES:
      return TokenSource::open_bytes(path, op);
    case DataTokens::AUTO:
      break;
  }
  return TokenSource::says_tokens(path) ? TokenSource::open(path)
                                        : TokenSource::open_bytes(path, op);
}

ValidationBorder validation_border(int64_t size, double fraction) {
  const auto held_out = std::ceil(fraction * static_cast<double>(size));
  return {size - std::min(static_cast<int64_t>(held_out), size)};
}

ValidationBorder validation_border(const std::vector<uint64_t>& ends, int64_t size,
                                   double fraction) {
  const auto border = static_cast<uint64_t>(validation_border(size, fraction).begin);
  const auto found = std::ranges::lower_bound(ends, std::max<uint64_t>(border, 1));
  const size_t behind = static_cast<size_t>(found - ends.begin()) + 1;
  const size_t documents = std::min(behind, ends.size() - 1);
  return {documents == 0 ? 0 : static_cast<int64_t>(ends[documents - 1]), documents};
}

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
  packs_documents_ = config.windows == DataWindows::DOCUMENTS;
  parts_documents_ = !config.attention_across_documents;
  find_documents();
  split(fraction);
  set_weights(config.weights);
}

void TextData::open(const std::string& path, DataTokens tokens) {
  const TokenSource& file = files_.emplace_back(open_tokens(path, tokens, kTextData));
  if (file.is_bytes()) {
    MOE8_CHECK(file.size() > 0, kTextData, path, "expected text, got an empty file");
    check_is_text(file.file(), tokens == DataTokens::AUTO);
  }
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

// Where documents matter every file has to say where they end.
void TextData::find_documents() {
  counts_some_ = packs_documents_ || parts_documents_ ||
                 std::ranges::any_of(files_, &TokenSource::has_answers);
  if (!packs_documents_ && !parts_documents_) return;
  for (const TokenSource& file : files_) {
    MOE8_CHECK(file.documents().value_or(0) > 0, kTextData,
               packs_documents_ ? "data.windows" : "data.attention_across_documents",
               "expected files that say where documents end, as those of moe8 tokenize do, got ",
               file.path(), " (", file.format(), ")");
    ends_.push_back(file.document_ends());
  }
}

void TextData::split(double validation_fraction) {
  for (size_t i = 0; i < files_.size(); ++i) {
    const auto size = static_cast<int64_t>(files_[i].size());
    const ValidationBorder border = packs_documents_
                                        ? validation_border(ends_[i], size, validation_fraction)
                                        : validation_border(size, validation_fraction);
    const size_t documents = packs_documents_ ? ends_[i].size() : 0;
    train_.push_back({i, 0, border.begin, 0, border.documents});
    validation_.push_back({i, border.begin, size - border.begin, border.documents, documents});
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

// ---- windows ----------------------------------------------------------------
std::vector<uint32_t> TextData::read(const Window& window) const {
  std::vector<uint32_t> tokens(static_cast<size_t>(window.count));
  files_[window.file].read(static_cast<uint64_t>(window.begin), tokens,
                           static_cast<uint32_t>(vocabulary_));
  return tokens;
}

// Of each token of a window 1 where it counts as a target.
std::vector<uint8_t> TextData::counts_of(const Window& window) const {
  std::vector<uint8_t> counts(static_cast<size_t>(window.count), 1);
  if (counts.empty()) return counts;
  const TokenSource& file = files_[window.file];
  if (file.has_answers()) file.read_answers(static_cast<uint64_t>(window.begin), counts);
  counts.front() = 0;
  if (ends_.empty()) return counts;
  const std::vector<uint64_t>& ends = ends_[window.file];
  const auto begin = static_cast<uint64_t>(window.begin);
  for (auto end = std::ranges::upper_bound(ends, begin);
       end != ends.end() && *end - begin < counts.size(); ++end) {
    counts[*end - begin] = 0;  // the first of the next document
  }
  return counts;
}

// The number of each position's document; that of padding is another one.
std::vector<int64_t> TextData::documents_of(const Window& window, int64_t seq_len) const {
  std::vector<int64_t> numbers(static_cast<size_t>(seq_len), -1);
  const std::vector<uint64_t>& ends = ends_[window.file];
  auto end = std::ranges::upper_bound(ends, static_cast<uint64_t>(window.begin));
  for (int64_t i = 0; i < std::min(window.count, seq_len); ++i) {
    while (static_cast<uint64_t>(window.begin + i) >= *end) ++end;
    numbers[static_cast<size_t>(i)] = end - ends.begin();
  }
  return numbers;
}

Batch TextData::batch_of(const std::vector<Window>& windows, int64_t seq_len) const {
  const auto rows = static_cast<int64_t>(windows.size());
  const auto filled = [&](int64_t value) { return at::full({rows, seq_len}, value, at::kLong); };
  Batch batch{filled(0), filled(kNoTarget)};
  if (parts_documents_) batch.documents = filled(-1);
  const auto row_of = [&](const at::Tensor& x, size_t row) {
    return x.mutable_data_ptr<int64_t>() + static_cast<int64_t>(row) * seq_len;
  };
  int64_t counted = 0;
  for (size_t row = 0; row < windows.size(); ++row) {
    const std::vector<uint32_t> ids = read(windows[row]);
    if (ids.empty()) continue;  // an empty document at the end
    const auto seen = std::min(ids.size(), static_cast<size_t>(seq_len));
    std::copy_n(ids.begin(), seen, row_of(batch.tokens, row));
    int64_t* const targets = row_of(batch.targets, row);
    if (!counts_some_) {
      std::copy(ids.begin() + 1, ids.end(), targets);
      continue;
    }
    const std::vector<uint8_t> counts = counts_of(windows[row]);
    for (size_t i = 1; i < ids.size(); ++i) {
      if (counts[i] == 0) continue;
      targets[i - 1] = ids[i];
      ++counted;
    }
    if (parts_documents_) {
      std::ranges::copy(documents_of(windows[row], seq_len), row_of(batch.documents, row));
    }
  }
  if (!counts_some_) return batch;
  batch.counted = at::full({}, static_cast<double>(counted), at::kFloat);
  if (counted == 0) *row_of(batch.targets, 0) = 0;
  return batch;
}

// Documents from number `first` on that fit as a whole, or as much as fits of the first.
TextData::Window TextData::of_documents(const Part& part, size_t first, int64_t seq_len) const {
  const std::vector<uint64_t>& ends = ends_[part.file];
  const uint64_t begin = first == 0 ? 0 : ends[first - 1];
  const uint64_t most = begin + static_cast<uint64_t>(seq_len) + 1;
  uint64_t end = std::min(ends[first], most);
  for (size_t next = first + 1; next < part.end_document && ends[next] <= most; ++next) {
    end = ends[next];
  }
  return {part.file, static_cast<int64_t>(begin), static_cast<int64_t>(end - begin)};
}

// How many windows a part can begin, and one of them.
int64_t TextData::starts_of(const Part& part, int64_t seq_len) const {
  if (packs_documents_) return static_cast<int64_t>(part.end_document - part.first_document);
  return starts_in(part.size, seq_len);
}

TextData::Window TextData::window_at(const Part& part, int64_t start, int64_t seq_len) const {
  if (packs_documents_) {
    return of_documents(part, part.first_document + static_cast<size_t>(start), seq_len);
  }
  return {part.file, part.begin + start, seq_len + 1};
}

void TextData::check_sizes(int64_t batch_size, int64_t seq_len) const {
  check_training(batch_size, seq_len);
  check_validation(batch_size, seq_len);
}

// ---- training ---------------------------------------------------------------
void TextData::check_training(int64_t batch_size, int64_t seq_len) const {
  check_positive(batch_size, seq_len);
  if (packs_documents_) {
    for (const Part& part : train_) {
      MOE8_CHECK(part.end_document > 0, kTextData, files_[part.file].path(),
                 "expected at least two documents, of which one is for validation, got one");
    }
    return;
  }
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
  return batch_of(draw_windows(seed, index, rows, seq_len), seq_len);
}

std::vector<TextData::Window> TextData::draw_windows(uint64_t seed, int64_t index, Rows rows,
                                                     int64_t seq_len) const {
  at::Philox4_32 random(seed, static_cast<uint64_t>(index));
  std::vector<Window> windows;
  for (int64_t row = 0; row < rows.first + rows.count; ++row) {
    const Window window = draw_window(random, seq_len);
    if (row >= rows.first) windows.push_back(window);
  }
  return windows;
}

int64_t TextData::train_counted(uint64_t seed, int64_t index, int64_t batch_size,
                                int64_t seq_len) const {
  if (!counts_some_) return batch_size * seq_len;
  int64_t counted = 0;
  for (const Window& window : draw_windows(seed, index, {0, batch_size}, seq_len)) {
    const std::vector<uint8_t> counts = counts_of(window);
    counted += std::count(counts.begin(), counts.end(), uint8_t{1});
  }
  return counted;
}

TextData::Window TextData::draw_window(at::Philox4_32& random, int64_t seq_len) const {
  if (!shares_.empty()) {
    const auto share = static_cast<uint64_t>(draw_below(random, static_cast<int64_t>(kAllShares)));
    const auto file =
        static_cast<size_t>(std::ranges::upper_bound(shares_, share) - shares_.begin());
    const Part& part = train_[file];
    return window_at(part, draw_below(random, starts_of(part, seq_len)), seq_len);
  }
  int64_t starts = 0;
  for (const Part& part : train_) starts += starts_of(part, seq_len);
  int64_t start = draw_below(random, starts);
  auto part = train_.begin();
  for (; start >= starts_of(*part, seq_len); ++part) start -= starts_of(*part, seq_len);
  return window_at(*part, start, seq_len);
}

// ---- validation -------------------------------------------------------------
const std::vector<TextData::Window>& TextData::validation_documents(int64_t seq_len) const {
  auto& [length, windows] = packed_validation_;
  if (length == seq_len) return windows;
  windows.clear();
  for (const Part& part : validation_) {
    for (size_t next = part.first_document; next < part.end_document;) {
      const Window& window = windows.emplace_back(of_documents(part, next, seq_len));
      const auto end = static_cast<uint64_t>(window.begin + window.count);
      while (next < part.end_document && ends_[part.file][next] <= end) ++next;
      const bool was_cut =
          next < part.end_document && (next == 0 ? 0 : ends_[part.file][next - 1]) < end;
      if (was_cut) ++next;
    }
  }
  length = seq_len;
  return windows;
}

int64_t TextData::validation_windows(int64_t seq_len) const {
  if (packs_documents_) return static_cast<int64_t>(validation_documents(seq_len).size());
  int64_t windows = 0;
  for (const Part& part : validation_) windows += (part.size - 1) / seq_len;
  return windows;
}

void TextData::check_validation(int64_t batch_size, int64_t seq_len) const {
  check_positive(batch_size, seq_len);
  MOE8_CHECK(!packs_documents_ || validation_windows(seq_len) >= batch_size, kTextData,
             "validation text", "expected documents that fill at least one batch of ", batch_size,
             " windows of ", seq_len, ", got ", validation_windows(seq_len), " windows",
             ". Give more documents, a larger data.validation_fraction, or lower the batch size.");
  MOE8_CHECK(validation_windows(seq_len) >= batch_size, kTextData, "validation text",
             "expected at least ", batch_size * seq_len + 1, " ", unit(), " for one batch of ",
             batch_size, " windows of ", seq_len, ", got ", validation_tokens(), " in ",
             files_.size(), files_.size() == 1 ? " file" : " files (windows stay within one)",
             ". Give a longer text, or lower the batch size or the sequence length.");
}

TextData::Window TextData::validation_window(int64_t index, int64_t seq_len) const {
  if (packs_documents_) return validation_documents(seq_len)[static_cast<size_t>(index)];
  auto part = validation_.begin();
  for (; index >= (part->size - 1) / seq_len; ++part) index -= (part->size - 1) / seq_len;
  return {part->file, part->begin + index * seq_len, seq_len + 1};
}

int64_t TextData::validation_batches(int64_t batch_size, int64_t seq_len) const {
  check_validation(batch_size, seq_len);
  return validation_windows(seq_len) / batch_size;
}

Batch TextData::validation_batch(int64_t index, int64_t batch_size, int64_t seq_len) const {
  const int64_t batches = validation_batches(batch_size, seq_len);
  MOE8_CHECK(index >= 0 && index < batches, kTextData, "index", "expected 0 to ", batches - 1,
             ", got ", index);
  std::vector<Window> windows;
  for (int64_t row = 0; row < batch_size; ++row) {
    windows.push_back(validation_window(index * batch_size + row, seq_len));
  }
  return batch_of(windows, seq_len);
}

// ---- bigrams ----------------------------------------------------------------
std::vector<double> TextData::bigram_table() const {
  constexpr int64_t kPiece = int64_t{1} << 20;
  std::vector<int64_t> pairs(kByteVocabulary * kByteVocabulary, 0);
  for (const Part& part : train_) {
    // Pieces share a byte, as every byte but the first and the last belongs to two pairs.
    for (int64_t at = 0; at + 1 < part.size; at += kPiece) {
      const int64_t last = std::min(kPiece, part.size - 1 - at);
      const std::vector<uint32_t> bytes = read({part.file, part.begin + at, last + 1});
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
    const std::vector<uint32_t> window = read(validation_window(index, seq_len));
    for (size_t i = 1; i < window.size(); ++i)
      sum += table[kByteVocabulary * window[i - 1] + window[i]];
  }
  return sum / static_cast<double>(batches * batch_size * seq_len);
}

}  // namespace moe8
