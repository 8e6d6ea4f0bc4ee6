// SPDX-License-Identifier: BSD-3-Clause
#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <limits>

#include "base/check.h"
#include "base/nearest.h"
#include "base/printable.h"
#include "text/byte_letters.h"
#include "text/utf8.h"

namespace moe8 {
namespace {

constexpr const char* kBpeOp = "tokenizer";
constexpr size_t kFew = 48;  // symbols: below, looking at all of them beats a queue

std::string quoted_token(std::string_view token) {
  constexpr size_t kLongest = 80;
  return concat("'", printable(token.substr(0, kLongest)), token.size() > kLongest ? "...'" : "'");
}

}  // namespace

// ---- MergeTable -------------------------------------------------------------
void MergeTable::reserve(size_t merges) {
  const size_t slots = std::bit_ceil(std::max<size_t>(2 * merges, 16));
  slots_.assign(slots, kFree);
  mask_ = slots - 1;
  const size_t bits = std::bit_ceil(std::max<size_t>(8 * merges, 64));
  filter_.assign(bits / 64, 0);
  filter_shift_ = std::countl_zero(bits) + 1;
  merged_.reserve(merges);
}

size_t MergeTable::slot_of(uint64_t pair, uint64_t hash) const {
  uint64_t at = hash >> 36U & mask_;
  while (slots_[at] != kFree && (slots_[at] ^ pair) > kNever) at = (at + 1) & mask_;
  return at;
}

void MergeTable::insert(uint32_t left, uint32_t right, uint32_t merged) {
  const uint64_t pair = pair_of(left, right);
  const uint64_t hash = hash_of(pair);
  const uint64_t bit = hash >> filter_shift_;
  filter_[bit / 64] |= uint64_t{1} << bit % 64;
  slots_[slot_of(pair, hash)] = pair | merged_.size();
  merged_.push_back(merged);
}

uint32_t MergeTable::rank(uint32_t left, uint32_t right) const {
  const uint64_t pair = pair_of(left, right);
  const uint64_t hash = hash_of(pair);
  const uint64_t bit = hash >> filter_shift_;
  if ((filter_[bit / 64] >> bit % 64 & 1U) == 0) return kNever;
  return static_cast<uint32_t>(slots_[slot_of(pair, hash)]) & kNever;
}

// ---- construction -----------------------------------------------------------
Bpe::Bpe(const BpeParts& parts, const std::string& where)
    : prefix_(parts.continuing_prefix),
      suffix_(parts.end_suffix),
      has_affixes_(!prefix_.empty() || !suffix_.empty()),
      fuse_unknown_(parts.fuse_unknown),
      byte_fallback_(parts.byte_fallback),
      ignore_merges_(parts.ignore_merges) {
  set_vocabulary(parts, where);
  set_merges(parts, where);
  set_bytes(parts, where);
}

void Bpe::set_vocabulary(const BpeParts& parts, const std::string& where) {
  uint32_t last = 0;
  for (const auto& [token, id] : parts.vocabulary) {
    MOE8_CHECK(id <= MergeTable::kMaxId, kBpeOp, where, "model.vocab: expected ids up to ",
               MergeTable::kMaxId, ", got ", id, " for ", quoted_token(token));
    last = std::max(last, id);
  }
  ids_.reserve(parts.vocabulary.size());
  tokens_.assign(parts.vocabulary.empty() ? 0 : last + size_t{1}, nullptr);
  for (const auto& [token, id] : parts.vocabulary) {
    const auto [it, fresh] = ids_.emplace(token, id);
    MOE8_CHECK(fresh, kBpeOp, where, "model.vocab: expected every token once, got ",
               quoted_token(token), " twice");
    MOE8_CHECK(!tokens_[id], kBpeOp, where, "model.vocab: expected every id once, got ", id,
               " for ", quoted_token(*tokens_[id]), " and for ", quoted_token(token));
    tokens_[id] = &it->first;
  }
  for (const auto& [token, id] : ids_) {
    if (token.empty()) continue;
    const CodePoint point = code_point_at(token, 0);
    if (point.length != token.size()) continue;
    if (point.value >= id_of_character_.size()) id_of_character_.resize(point.value + 1, kNoToken);
    id_of_character_[point.value] = id;
  }
  if (parts.unknown_token) {
    // A missing one matters only where a character is unknown; the files of some models name it.
    unknown_ = id_or_none(*parts.unknown_token);
  }
}

void Bpe::set_merges(const BpeParts& parts, const std::string& where) {
  MOE8_CHECK(parts.merges.size() < MergeTable::kNever, kBpeOp, where,
             "model.merges: expected less than ", MergeTable::kNever, ", got ",
             parts.merges.size());
  merges_.reserve(parts.merges.size());
  const auto id = [&](const std::string& token, uint32_t rank) {
    const uint32_t found = id_or_none(token);
    MOE8_CHECK(found != kNoToken, kBpeOp, where,
               "model.merges: expected tokens of the vocabulary, "
               "got ",
               quoted_token(token), " in merge ", rank);
    return found;
  };
  uint32_t rank = 0;
  for (const auto& [left, right] : parts.merges) {
    const bool has_prefix = !prefix_.empty() && right.starts_with(prefix_);
    const std::string merged = left + (has_prefix ? right.substr(prefix_.size()) : right);
    const uint32_t left_id = id(left, rank);
    const uint32_t right_id = id(right, rank);
    merges_.insert(left_id, right_id, id(merged, rank));
    ++rank;
  }
}

void Bpe::set_bytes(const BpeParts& parts, const std::string& where) {
  bool has_all = true;
  for (int byte = 0; byte < 256; ++byte) {
    std::string letter;
    append_utf8(letter, kByteLetters[byte]);
    id_of_letter_[byte] = id_or_none(letter);
    has_all = has_all && id_of_letter_[byte] != kNoToken;
    id_of_fallback_[byte] = id_or_none(formatted("<0x%02X>", static_cast<unsigned>(byte)));
  }
  const bool drops = !parts.unknown_token && !byte_fallback_;
  takes_bytes_ = !has_affixes_ && (has_all || drops);
  MOE8_CHECK(!parts.unknown_token || unknown_ != kNoToken || has_all || byte_fallback_, kBpeOp,
             where, "model.unk_token: expected a token of the vocabulary, got ",
             quoted_token(*parts.unknown_token));
  if (!takes_bytes_) return;
  rank_of_bytes_.assign(size_t{256} * 256, MergeTable::kNever);
  for (size_t pair = 0; pair < rank_of_bytes_.size(); ++pair) {
    const uint32_t left = id_of_letter_[pair / 256];
    const uint32_t right = id_of_letter_[pair % 256];
    if (left != kNoToken && right != kNoToken) rank_of_bytes_[pair] = merges_.rank(left, right);
  }
  if (!ignore_merges_) return;
  for (const auto& [token, token_id] : ids_) {
    if (auto bytes = bytes_of_letters(token)) ids_of_bytes_.emplace(std::move(*bytes), token_id);
  }
}

std::optional<uint32_t> Bpe::id_of(std::string_view token) const {
  const uint32_t id = id_or_none(token);
  return id == kNoToken ? std::nullopt : std::optional(id);
}

uint32_t Bpe::id_or_none(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? kNoToken : found->second;
}

const std::string* Bpe::token_of(uint32_t id) const {
  return id < tokens_.size() ? tokens_[id] : nullptr;
}

// ---- a piece ----------------------------------------------------------------
void Bpe::encode_bytes(std::string_view piece, Scratch& scratch, std::vector<uint32_t>& ids) const {
  if (ignore_merges_) {
    const auto found = ids_of_bytes_.find(piece);
    if (found != ids_of_bytes_.end()) return ids.push_back(found->second);
  }
  auto& symbols = scratch.symbols;
  symbols.clear();
  size_t previous = 0;  // the byte of the last symbol
  for (const char c : piece) {
    const auto byte = static_cast<unsigned char>(c);
    const uint32_t id = id_of_letter_[byte];
    if (id == kNoToken) continue;
    if (!symbols.empty()) symbols.back().rank = rank_of_bytes_[256 * previous + byte];
    symbols.push_back({id, MergeTable::kNever, 0, 0});
    previous = byte;
  }
  merge_ranked(scratch, ids);
}

void Bpe::encode_text(std::string_view piece, Scratch& scratch, std::vector<uint32_t>& ids) const {
  if (ignore_merges_) {
    const uint32_t id = id_or_none(piece);
    if (id != kNoToken) return ids.push_back(id);
  }
  scratch.symbols.clear();
  first_symbols(piece, scratch);
  merge_all(scratch, ids);
}

// Whether a symbol that is no token can be spelled in tokens of bytes.
bool Bpe::has_bytes_of(std::string_view symbol) const {
  return byte_fallback_ && std::ranges::all_of(symbol, [&](char c) {
           return id_of_fallback_[static_cast<unsigned char>(c)] != kNoToken;
         });
}

// Every character as a token, by bytes, or unknown. A run of unknown ones stands before the known one
// that ends it, and, as in the library whose files these are, behind characters spelled in bytes.
void Bpe::first_symbols(std::string_view piece, Scratch& scratch) const {
  const auto add = [&](uint32_t id) { scratch.symbols.push_back({id, 0, 0, 0}); };
  bool has_unknown = false;
  for_each_code_point(piece, [&](CodePoint point, size_t at) {
    uint32_t id = kNoToken;
    std::string_view symbol = piece.substr(at, point.length);
    if (has_affixes_) {
      scratch.text.clear();
      if (at > 0) scratch.text += prefix_;
      scratch.text += symbol;
      if (at + point.length == piece.size()) scratch.text += suffix_;
      symbol = scratch.text;
      id = id_or_none(symbol);
    } else if (point.value < id_of_character_.size()) {
      id = id_of_character_[point.value];
    }
    if (id != kNoToken) {
      if (has_unknown) add(unknown_);
      has_unknown = false;
      return add(id);
    }
    if (has_bytes_of(symbol)) {
      for (const char c : symbol) add(id_of_fallback_[static_cast<unsigned char>(c)]);
      return;
    }
    if (unknown_ == kNoToken) return;
    if (has_unknown && !fuse_unknown_) add(unknown_);
    has_unknown = true;
  });
  if (has_unknown) add(unknown_);
}

// ---- merging ----------------------------------------------------------------
void Bpe::merge_all(Scratch& scratch, std::vector<uint32_t>& ids) const {
  auto& symbols = scratch.symbols;
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    symbols[i].rank = merges_.rank(symbols[i].id, symbols[i + 1].id);
  }
  if (!symbols.empty()) symbols.back().rank = MergeTable::kNever;
  merge_ranked(scratch, ids);
}

void Bpe::merge_ranked(Scratch& scratch, std::vector<uint32_t>& ids) const {
  scratch.symbols.size() <= kFew ? merge_few(scratch, ids) : merge_many(scratch, ids);
}

// The leftmost of the lowest rank, again and again.
void Bpe::merge_few(Scratch& scratch, std::vector<uint32_t>& ids) const {
  auto& symbols = scratch.symbols;
  size_t count = symbols.size();
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (symbols[i].rank < symbols[best].rank) best = i;
    }
    if (symbols[best].rank == MergeTable::kNever) break;
    symbols[best].id = merges_.merged(symbols[best].rank);
    std::copy(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 2,
              symbols.begin() + static_cast<std::ptrdiff_t>(count),
              symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    --count;
    const auto update = [&](size_t i) {
      if (i + 1 >= count) {
        symbols[i].rank = MergeTable::kNever;
        return;
      }
      symbols[i].rank = merges_.rank(symbols[i].id, symbols[i + 1].id);
    };
    update(best);
    if (best > 0) update(best - 1);
  }
  for (size_t i = 0; i < count; ++i) ids.push_back(symbols[i].id);
}

// The same by a queue and a list. An entry of the queue is out of date when its two symbols are not
// what they were.
void Bpe::merge_many(Scratch& scratch, std::vector<uint32_t>& ids) const {
  auto& symbols = scratch.symbols;
  auto& queue = scratch.queue;
  MOE8_CHECK(symbols.size() < std::numeric_limits<int32_t>::max(), kBpeOp, "text",
             "expected pieces of less than 2^31 characters, got ", symbols.size());
  const auto later = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
  };
  const auto count = static_cast<int32_t>(symbols.size());
  queue.clear();
  for (int32_t i = 0; i < count; ++i) {
    symbols[i].previous = i - 1;
    symbols[i].next = i + 1 < count ? i + 1 : -1;
    if (symbols[i].rank != MergeTable::kNever) {
      queue.push_back({symbols[i].rank, static_cast<uint32_t>(i)});
    }
  }
  std::ranges::make_heap(queue, later);
  const auto update = [&](int32_t i) {
    const int32_t next = symbols[i].next;
    symbols[i].rank = next < 0 ? MergeTable::kNever : merges_.rank(symbols[i].id, symbols[next].id);
    if (symbols[i].rank == MergeTable::kNever) return;
    queue.push_back({symbols[i].rank, static_cast<uint32_t>(i)});
    std::ranges::push_heap(queue, later);
  };
  while (!queue.empty()) {
    std::ranges::pop_heap(queue, later);
    const Scratch::Candidate top = queue.back();
    queue.pop_back();
    auto& symbol = symbols[top.at];
    if (symbol.rank != top.rank) continue;
    const int32_t gone = symbol.next;
    symbol.id = merges_.merged(symbol.rank);
    symbol.next = symbols[gone].next;
    symbols[gone].rank = MergeTable::kNever;
    if (symbol.next >= 0) symbols[symbol.next].previous = static_cast<int32_t>(top.at);
    update(static_cast<int32_t>(top.at));
    if (symbol.previous >= 0) update(symbol.previous);
  }
  for (int32_t i = 0; i >= 0 && i < count; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace moe8
