// SPDX-License-Identifier: BSD-3-Clause
#include "text/word_cache.h"

#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace moe8 {
namespace {

constexpr size_t kFirstSlots = size_t{1} << 10;
constexpr size_t kMostSlots = size_t{1} << 18;  // 8 MiB, for half as many words

}  // namespace

WordCache::WordCache() : slots_(kFirstSlots) {}

WordCache::Key WordCache::long_key_of(std::string_view word) {
  const uint64_t hash = XXH3_64bits(word.data(), word.size());
  return {.low = hash, .high = ~hash};
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
    if (slot.size == 0) continue;
    size_t at = home_of(slot.key, slot.size);
    while (slots_[at].size != 0) at = after(at);
    slots_[at] = slot;
    ++used_;
  }
}

void WordCache::insert(std::string_view word, std::span<const uint32_t> ids) {
  if (ids.size() > std::numeric_limits<uint16_t>::max()) return;  // affixes spelled in bytes
  if (2 * used_ >= slots_.size()) grow();
  Slot slot{.key = key_of(word),
            .word = static_cast<uint32_t>(words_.size()),
            .size = static_cast<uint16_t>(word.size()),
            .count = static_cast<uint16_t>(ids.size())};
  if (ids.size() <= kFew) {
    std::ranges::copy(ids, slot.tokens.begin());
  } else {
    slot.tokens.front() = static_cast<uint32_t>(tokens_.size());
    tokens_.insert(tokens_.end(), ids.begin(), ids.end());
  }
  if (word.size() > kInline) words_ += word;
  slots_[slot_of(word, slot.key)] = slot;
  ++used_;
}

}  // namespace moe8
