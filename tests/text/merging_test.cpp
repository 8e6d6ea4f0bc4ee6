// SPDX-License-Identifier: BSD-3-Clause
// The tables behind merging: of words beside a map, of pairs beside the plain rule.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "text/bpe.h"
#include "text/byte_letters.h"
#include "text/word_cache.h"

namespace moe8 {
namespace {

using Ids = std::vector<uint32_t>;

TEST(WordCacheTest, KnowsTheTokensOfWordsOrNothing) {
  constexpr int kWords = 300'000;  // more than it holds: it forgets on the way
  std::mt19937 draw(7);
  const auto below = [&](size_t end) { return draw() % end; };
  WordCache cache;
  std::map<std::string, Ids> tokens;
  int known = 0, wrong = 0;
  for (int i = 0; i < kWords; ++i) {
    // Few bytes and lengths that lie close: many words differ in one place.
    std::string word(1 + below(below(4) == 0 ? WordCache::kLongestWord : 18), 'a');
    for (char& c : word) c = "a\0\xC3"[below(3)];
    Ids found;
    const auto [expected, fresh] = tokens.try_emplace(word, below(word.size() + 1));
    for (uint32_t& id : expected->second) id = fresh ? static_cast<uint32_t>(draw()) : id;
    if (cache.append(word, found)) {
      ++known;
      wrong += fresh || found != expected->second ? 1 : 0;
    } else {
      cache.insert(word, expected->second);
      wrong += cache.append(word, found) && found == expected->second ? 0 : 1;
    }
  }
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(known, kWords / 10);
}

TEST(WordCacheTest, WhatBecomesTooManyTokensIsNotKept) {
  WordCache cache;
  cache.insert("word", Ids(65536, 1));
  Ids found;
  EXPECT_FALSE(cache.append("word", found));
  cache.insert("word", Ids(65535, 1));
  EXPECT_TRUE(cache.append("word", found));
  EXPECT_EQ(found, Ids(65535, 1));
}

// A vocabulary of all letters and of what `merges` random pairs of tokens become.
BpeParts random_merges(std::mt19937& draw, size_t merges) {
  BpeParts parts;
  std::map<std::string, uint32_t> ids;
  const auto add = [&](const std::string& token) {
    const auto id = static_cast<uint32_t>(ids.size());
    if (!ids.try_emplace(token, id).second) return false;
    parts.vocabulary.emplace_back(token, id);
    return true;
  };
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    std::string letter;
    append_as_letters(letter, std::string_view(&c, 1));
    add(letter);
  }
  while (parts.merges.size() < merges) {
    // Of the first four letters, and of what was made of these.
    const auto one = [&] {
      const size_t at = draw() % (4 + parts.merges.size());
      return parts.vocabulary[at < 4 ? 'a' + at : 252 + at].first;
    };
    const std::string left = one();
    const std::string right = one();
    if (add(left + right)) parts.merges.emplace_back(left, right);
  }
  return parts;
}

// The leftmost pair of the lowest rank, again and again, as BPE is defined.
Ids merged_plainly(const BpeParts& parts, std::string_view bytes) {
  std::map<std::string, uint32_t> ids(parts.vocabulary.begin(), parts.vocabulary.end());
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  for (size_t rank = 0; rank < parts.merges.size(); ++rank) ranks[parts.merges[rank]] = rank;
  std::vector<std::string> symbols;
  for (const char c : bytes) append_as_letters(symbols.emplace_back(), std::string_view(&c, 1));
  while (true) {
    size_t best = ranks.size(), at = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = ranks.find({symbols[i], symbols[i + 1]});
      if (found == ranks.end() || found->second >= best) continue;
      best = found->second;
      at = i;
    }
    if (best == ranks.size()) break;
    symbols[at] += symbols[at + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  Ids result;
  for (const std::string& symbol : symbols) result.push_back(ids.at(symbol));
  return result;
}

TEST(BpeTest, BytesAndLettersMergeByTheRule) {
  std::mt19937 draw(11);
  for (const size_t merges : {0, 1, 30, 400}) {
    const BpeParts parts = random_merges(draw, merges);
    const Bpe model(parts, "test");
    ASSERT_TRUE(model.takes_bytes());
    Bpe::Scratch scratch;
    // Up to 48 symbols are merged in one way, more in another.
    for (const size_t size : {1, 2, 3, 5, 17, 47, 48, 49, 200}) {
      for (int time = 0; time < 10; ++time) {
        std::string bytes(size, 'a');
        for (char& c : bytes) c = static_cast<char>(draw() % 50 == 0 ? draw() : 'a' + draw() % 4);
        std::string letters;
        append_as_letters(letters, bytes);
        const Ids expected = merged_plainly(parts, bytes);
        Ids of_bytes, of_letters;
        model.encode_bytes(bytes, scratch, of_bytes);
        model.encode_text(letters, scratch, of_letters);
        ASSERT_EQ(of_bytes, expected) << merges << " merges, " << size << " bytes";
        ASSERT_EQ(of_letters, expected) << merges << " merges, " << size << " bytes";
      }
    }
  }
}

}  // namespace
}  // namespace moe8
