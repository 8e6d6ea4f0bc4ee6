// SPDX-License-Identifier: BSD-3-Clause
// The metadata of groups.
#include <algorithm>
#include <cstring>

#include "cuda/quantize_check/check.h"

namespace moe8::cuda {
namespace {

std::vector<RowChunk> expected_chunks(const Problem& p, int64_t height, int64_t count) {
  std::vector<RowChunk> chunks;
  int32_t begin = 0;
  const auto cut = [&](int32_t end, int32_t group) {
    for (int32_t row = begin; row < end; row += static_cast<int32_t>(height)) {
      const auto rows = std::min<int32_t>(end - row, static_cast<int32_t>(height));
      chunks.push_back({row, rows, group, group == kNoGroup ? 0 : row - begin});
    }
    begin = end;
  };
  for (size_t g = 0; g < p.offs.size(); ++g) cut(p.offs[g], static_cast<int32_t>(g));
  cut(static_cast<int32_t>(p.rows), kNoGroup);
  chunks.resize(static_cast<size_t>(count), RowChunk{0, 0, kNoGroup, 0});
  return chunks;
}

bool same(const std::vector<RowChunk>& a, const std::vector<RowChunk>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(RowChunk)) == 0);
}

}  // namespace

void check_metadata(const Problem& p, int64_t padding) {
  const Metadata metadata(p, padding);
  const GroupMetadata& m = metadata.m;
  const std::string what = "metadata of " + p.name();
  std::vector<int32_t> begins{0}, padded{0};
  std::vector<RowChunk> tokens;
  for (size_t g = 0; g < p.offs.size(); ++g) {
    const int32_t size = p.offs[g] - begins.back();
    const auto pad = static_cast<int32_t>(padding);
    const int32_t padded_size = (size + pad - 1) / pad * pad;
    for (int32_t i = 0; i < padded_size; i += kTokenRows) {
      const int32_t rows = std::clamp<int32_t>(size - i, 0, kTokenRows);
      tokens.push_back({rows > 0 ? begins.back() + i : 0, rows, static_cast<int32_t>(g), i});
    }
    padded.push_back(padded.back() + padded_size);
    begins.push_back(p.offs[g]);
  }
  const auto count = static_cast<int64_t>(begins.size());
  tokens.resize(static_cast<size_t>(m.token_count()), RowChunk{0, 0, kNoGroup, 0});
  expect(fetch(m.begins, count) == begins, what + ": begins");
  expect(fetch(m.padded_starts, count) == padded, what + ": padded starts");
  expect(same(fetch(m.blocks, m.block_count()), expected_chunks(p, 32, m.block_count())),
         what + ": blocks");
  expect(same(fetch(m.slabs, m.slab_count()), expected_chunks(p, 64, m.slab_count())),
         what + ": slabs");
  expect(same(fetch(m.tokens, m.token_count()), tokens), what + ": tokens");
  expect(metadata.memory.is_intact(), what + ": wrote outside its memory");
}

void check_invalid_offs() {
  for (const std::vector<int32_t>& offs :
       {std::vector<int32_t>{5, 3, 9}, {-1, 3, 9}, {5, 7, 101}, {2147483647, -5, 100}}) {
    Problem p{FloatType::BF16, 1, offs, 100, Fill::NORMAL, {}};
    const Metadata metadata(p, 32);
    for (const RowChunk& c : fetch(metadata.m.blocks, metadata.m.block_count())) {
      expect(c.row >= 0 && c.rows >= 0 && c.row + c.rows <= 100, "a chunk leaves the tensor");
    }
  }
}

}  // namespace moe8::cuda
