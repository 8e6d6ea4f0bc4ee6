// SPDX-License-Identifier: BSD-3-Clause
// Pieces of text that were encoded before, and their tokens: most words of a text come again.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moe8 {

/// Forgets everything when it is full. For one thread.
class WordCache {
 public:
  static constexpr size_t kLongestWord = 64;  // bytes; longer pieces seldom come again

  WordCache();

  /// Appends the tokens of `word`, which is not empty, when they are known.
  bool append(std::string_view word, std::vector<uint32_t>& ids) const {
    const Key key = key_of(word);
    const Slot& slot = slots_[slot_of(word, key)];
    if (slot.size == 0) return false;
    const auto tokens = tokens_of(slot);
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    return true;
  }
  void insert(std::string_view word, std::span<const uint32_t> ids);

 private:
  static constexpr size_t kInline = 16;  // bytes; a word up to here is its key
  static constexpr size_t kFew = 2;      // tokens; so many stand in the slot

  struct Key {
    uint64_t low = 0, high = 0;  // the first and the last bytes; of a longer word its hash
  };
  // Half a line of the processor's caches: as a rule a look-up costs one miss.
  struct alignas(32) Slot {
    Key key;
    std::array<uint32_t, kFew> tokens{};  // of more than a few: where they begin in tokens_
    uint32_t word = 0;                    // where a longer word's bytes begin in words_
    uint16_t size = 0;                    // of the word; 0: a free slot
    uint16_t count = 0;                   // of tokens
  };

  template <typename T>
  static T load(const char* at) {
    T value{};
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  static Key key_of(std::string_view word) {
    const char* at = word.data();
    const size_t size = word.size();
    if (size > kInline) return long_key_of(word);
    Key key;
    if (size >= 8) {
      key.low = load<uint64_t>(at);
      key.high = load<uint64_t>(at + size - 8);
    } else if (size >= 4) {
      key.low = load<uint32_t>(at);
      key.high = load<uint32_t>(at + size - 4);
    } else {
      const auto byte = [&](size_t i) {
        return static_cast<uint64_t>(static_cast<uint8_t>(at[i]));
      };
      key.low = byte(0) | byte(size / 2) << 8U | byte(size - 1) << 16U;
    }
    return key;
  }
  static Key long_key_of(std::string_view word);

  // Where the search for a word begins.
  size_t home_of(const Key& key, size_t size) const {
    __extension__ using Wide = unsigned __int128;
    const Wide product =
        static_cast<Wide>(key.low ^ 0x9E3779B97F4A7C15U) * (key.high ^ size ^ 0xD1B54A32D192ED03U);
    return (static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64U)) &
           (slots_.size() - 1);
  }
  // The slot of the word, or the free one that it would have.
  size_t slot_of(std::string_view word, const Key& key) const {
    size_t at = home_of(key, word.size());
    while (slots_[at].size != 0 && !is_word(slots_[at], word, key)) at = after(at);
    return at;
  }
  size_t after(size_t at) const { return (at + 1) & (slots_.size() - 1); }
  // The bytes of a short word are its key.
  bool is_word(const Slot& slot, std::string_view word, const Key& key) const {
    if (slot.key.low != key.low || slot.key.high != key.high || slot.size != word.size()) {
      return false;
    }
    return slot.size <= kInline || std::string_view(words_).substr(slot.word, slot.size) == word;
  }
  std::span<const uint32_t> tokens_of(const Slot& slot) const {
    if (slot.count <= kFew) return std::span(slot.tokens).first(slot.count);
    return std::span(tokens_).subspan(slot.tokens.front(), slot.count);
  }
  void grow();

  std::vector<Slot> slots_;
  size_t used_ = 0;
  std::string words_;  // the longer ones
  std::vector<uint32_t> tokens_;
};

}  // namespace moe8
