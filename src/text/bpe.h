// SPDX-License-Identifier: BSD-3-Clause
// Byte-pair encoding: from a piece of text to tokens, by merging neighbours in the order of ranks.
// No Torch.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace moe8 {

/// What tokenizer.json says of the model.
struct BpeParts {
  std::vector<std::pair<std::string, uint32_t>> vocabulary;
  std::vector<std::pair<std::string, std::string>> merges;  // the first is merged first
  std::optional<std::string> unknown_token;
  std::string continuing_prefix;  // in front of every symbol of a piece but the first
  std::string end_suffix;         // behind the last
  bool fuse_unknown = false;
  bool byte_fallback =
      false;  // tokens <0x00> to <0xFF> for characters that are not in the vocabulary
  bool ignore_merges = false;  // a piece that is a token is that token
};

/// From two neighbours to what they become. A slot is eight bytes, as most look-ups of them miss the
/// caches: two ids of 22 bits and a rank of 20. Most neighbours stay two: a filter, of eight bits or
/// more a merge, says so of nine in ten of these without looking at a slot.
class MergeTable {
 public:
  static constexpr uint32_t kMaxId = (uint32_t{1} << 22) - 1;
  static constexpr uint32_t kNever =
      (uint32_t{1} << 20) - 1;  // they stay two; the others are below

  void reserve(size_t merges);
  /// Ranks are inserted in their order.
  void insert(uint32_t left, uint32_t right, uint32_t merged);
  uint32_t rank(uint32_t left, uint32_t right) const;
  uint32_t merged(uint32_t rank) const { return merged_[rank]; }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};
  static uint64_t pair_of(uint32_t left, uint32_t right) {
    return (uint64_t{left} << 22U | right) << 20U;
  }
  static uint64_t hash_of(uint64_t pair) { return pair * 0x9E3779B97F4A7C15U; }
  // The slot of the pair, or the free one that it would have.
  size_t slot_of(uint64_t pair, uint64_t hash) const;

  std::vector<uint64_t> filter_;  // bits, by the first of a hash: some pair has it
  int filter_shift_ = 0;
  std::vector<uint64_t> slots_;
  uint64_t mask_ = 0;
  std::vector<uint32_t> merged_;  // by rank
};

/// Immutable; used by several threads.
class Bpe {
 public:
  /// @throws c10::Error naming what is missing or doubled; `where` begins its message.
  Bpe(const BpeParts& parts, const std::string& where);

  size_t size() const { return ids_.size(); }
  std::optional<uint32_t> id_of(std::string_view token) const;
  /// nullptr: no token has this id.
  const std::string* token_of(uint32_t id) const;
  uint32_t end_of_ids() const { return static_cast<uint32_t>(tokens_.size()); }

  /// True when pieces may be given as the bytes that their letters (text/byte_letters.h) stand for.
  bool takes_bytes() const { return takes_bytes_; }

  /// Room for one piece at a time.
  struct Scratch {
    struct Symbol {
      uint32_t id;
      uint32_t rank;  // of its merge with the next symbol
      int32_t previous, next;
    };
    struct Candidate {
      uint32_t rank;
      uint32_t at;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> queue;
    std::string text;
  };

  /// Appends the tokens of a piece: of valid UTF-8, or of the bytes that letters stand for.
  void encode_text(std::string_view piece, Scratch& scratch, std::vector<uint32_t>& ids) const;
  void encode_bytes(std::string_view piece, Scratch& scratch, std::vector<uint32_t>& ids) const;

 private:
  static constexpr uint32_t kNoToken = ~uint32_t{0};
  struct TextHash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  using Ids = std::unordered_map<std::string, uint32_t, TextHash, std::equal_to<>>;

  void set_vocabulary(const BpeParts& parts, const std::string& where);
  void set_merges(const BpeParts& parts, const std::string& where);
  void set_bytes(const BpeParts& parts, const std::string& where);
  uint32_t id_or_none(std::string_view token) const;
  void first_symbols(std::string_view piece, Scratch& scratch) const;
  bool has_bytes_of(std::string_view symbol) const;
  void merge_all(Scratch& scratch, std::vector<uint32_t>& ids) const;
  void merge_ranked(Scratch& scratch, std::vector<uint32_t>& ids) const;
  void merge_few(Scratch& scratch, std::vector<uint32_t>& ids) const;
  void merge_many(Scratch& scratch, std::vector<uint32_t>& ids) const;

  Ids ids_;
  std::vector<const std::string*> tokens_;  // by id, into ids_
  MergeTable merges_;
  std::vector<uint32_t> id_of_character_;       // tokens of one code point
  std::array<uint32_t, 256> id_of_letter_{};    // tokens of one letter for a byte
  std::vector<uint32_t> rank_of_bytes_;         // by two bytes, of the merge of their letters
  std::array<uint32_t, 256> id_of_fallback_{};  // <0x00> to <0xFF>
  Ids ids_of_bytes_;                            // with ignore_merges: by the bytes behind letters
  uint32_t unknown_ = kNoToken;
  std::string prefix_, suffix_;
  bool has_affixes_ = false;
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
  bool takes_bytes_ = false;
};

}  // namespace moe8
