// SPDX-License-Identifier: BSD-3-Clause
#include "text/word_cache.h"

#include <xxhash.h>

#include <utility>

namespace moe8 {
namespace {

constexpr size_t kFirstSlots = size_t{1} << 10;
constexpr size_t kMostSlots = size_t{1} << 18;  // 10 MiB, for half as many words

}  // namespace

WordCache::WordCache() : slots_(kFirstSlots) {}

WordCache::Key WordCache::long_key_of(std::string_view word) {
  const uint64_t hash = XXH3_64bits(word.data(), word.size());
  return {.low = hash, .high = ~hash, .size = static_cast<uint32_t>(word.size())};
}

void WordCache::grow() {
  std::vector<Slot> old(slots_.size() < kMostSlots ? 4 * slots_.size() : slots_.size());
  std::swap(old, slots_);
  used_ = 0;
  if (old.size() == slots_.size()) {  // full
    words_.clear();
    tokens_.clear();
    return;
  }
  for (const Slot& slot : old) {
    if (slot.key.size == 0) continue;
    const std::string_view word =
        slot.key.size > kInline ? std::string_view(words_).substr(slot.word, slot.key.size) : "";
    slots_[slot_of(word, slot.key)] = slot;
    ++used_;
  }
}

void WordCache::insert(std::string_view word, std::span<const uint32_t> ids) {
  if (2 * used_ >= slots_.size()) grow();
  Slot slot{.key = key_of(word),
            .first = static_cast<uint32_t>(tokens_.size()),
            .count = static_cast<uint32_t>(ids.size()),
            .word = static_cast<uint32_t>(words_.size())};
  if (ids.size() == 1) {
    slot.first = ids.front();
  } else {
    tokens_.insert(tokens_.end(), ids.begin(), ids.end());
  }
  if (word.size() > kInline) words_ += word;
  slots_[slot_of(word, slot.key)] = slot;
  ++used_;
}

}  // namespace moe8
