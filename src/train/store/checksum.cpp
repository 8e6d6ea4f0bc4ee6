// SPDX-License-Identifier: BSD-3-Clause
// XXH3 of files, through libxxhash.
#include "train/store/checksum.h"

#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "base/plain_text.h"

namespace moe8 {
namespace {

constexpr uint64_t kPiece = uint64_t{1} << 20;

std::string text_of(XXH128_hash_t hash) {
  return formatted("%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                   static_cast<unsigned long long>(hash.low64));
}

}  // namespace

std::string checksum(const InputFile& file) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       &XXH3_freeState);
  XXH3_128bits_reset(state.get());
  std::vector<uint8_t> piece(std::min(kPiece, file.size()));
  for (uint64_t at = 0; at < file.size(); at += piece.size()) {
    piece.resize(std::min(kPiece, file.size() - at));
    file.read(piece.data(), piece.size(), at);
    XXH3_128bits_update(state.get(), piece.data(), piece.size());
  }
  return text_of(XXH3_128bits_digest(state.get()));
}

}  // namespace moe8
