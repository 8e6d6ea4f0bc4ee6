// SPDX-License-Identifier: BSD-3-Clause
// All of it is latency: some tens of bytes per token. A thread per token, or per word of a row.
#include <algorithm>

#include "cuda/experts/exchange.h"
#include "cuda/launch.cuh"
#include "cuda/quantize/clear.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int32_t kNowhere = INT32_MAX;  // behind all ranks

__device__ int64_t expert_at(const void* experts, IndexType type, int64_t slot) {
  return type == IndexType::I64 ? static_cast<const int64_t*>(experts)[slot]
                                : static_cast<const int32_t*>(experts)[slot];
}

// ---- ranks
__device__ int32_t rank_at(const RanksOfTokensArgs& a, int64_t slot) {
  const int64_t expert = expert_at(a.experts, a.experts_type, slot);
  if (expert < 0 || expert >= a.ranks * a.own_experts) return kNowhere;
  return static_cast<int32_t>(static_cast<uint32_t>(expert) / static_cast<uint32_t>(a.own_experts));
}

__global__ void __launch_bounds__(kThreads)
    ranks_of_tokens(const __grid_constant__ RanksOfTokensArgs a, int64_t wide) {
  extern __shared__ int32_t counts[];  // [ranks], of this block
  const auto ranks = static_cast<int>(a.ranks);
  for (int r = threadIdx.x; r < ranks; r += kThreads) counts[r] = 0;
  __syncthreads();
  follow_stream();
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (token < a.tokens) {
    const int64_t first = token * a.top_k;
    for (int64_t j = 0; j < a.top_k; ++j) {
      const int32_t rank = rank_at(a, first + j);
      if (rank != kNowhere) atomicAdd(counts + rank, 1);
    }
    // The least rank above the last one, again and again: k is small.
    int32_t last = -1;
    for (int64_t i = 0; i < wide; ++i) {
      int32_t next = kNowhere;
      for (int64_t j = 0; j < a.top_k; ++j) {
        const int32_t rank = rank_at(a, first + j);
        if (rank > last) next = min(next, rank);
      }
      a.of_tokens[token * wide + i] = next == kNowhere ? -1 : next;
      last = next;
    }
  }
  __syncthreads();
  for (int r = threadIdx.x; r < ranks; r += kThreads) {
    if (counts[r] != 0) atomicAdd(a.choices + r, counts[r]);
  }
}

// ---- what goes beside
/// A word of a row.
struct Word {
  int64_t row;
  int64_t at;  // in its part of the row
  enum class Part { EXPERT, SCORE, SCALE, NONE } part;

  __device__ Word(const BesideRow& b, int64_t rows, int64_t words)
      : row((static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / words),
        at((static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) % words),
        part(Part::EXPERT) {
    if (row >= rows) {
      part = Part::NONE;
    } else if (at >= b.top_k) {
      at -= b.top_k;
      part = b.has_scores && at < b.top_k ? Part::SCORE : Part::SCALE;
      if (b.has_scores && part == Part::SCALE) at -= b.top_k;
    }
  }
};

__global__ void __launch_bounds__(kThreads)
    pack_beside(const __grid_constant__ PackBesideArgs a, int64_t words) {
  follow_stream();
  const Word w(a.row, a.rows, words);
  if (w.part == Word::Part::NONE) return;
  const int64_t token = a.slot_of_row[w.row] / a.ranks_of_token;
  const int64_t slot = token * a.row.top_k + w.at;
  uint32_t value;
  switch (w.part) {
    case Word::Part::EXPERT:
      value = static_cast<uint32_t>(expert_at(a.experts, a.experts_type, slot));
      break;
    case Word::Part::SCORE:
      value = __float_as_uint(a.scores[slot]);
      break;
    default:
      value = static_cast<const uint32_t*>(a.scale)[token * (a.row.scale_bytes / 4) + w.at];
  }
  a.out[static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x] = value;
}

__global__ void __launch_bounds__(kThreads)
    unpack_beside(const __grid_constant__ UnpackBesideArgs a, int64_t words) {
  follow_stream();
  const Word w(a.row, a.rows, words);
  if (w.part == Word::Part::NONE) return;
  const uint32_t value = a.in[static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x];
  if (w.part == Word::Part::SCALE) {
    a.scale[w.row * (a.row.scale_bytes / 4) + w.at] = value;
    return;
  }
  const int64_t slot = w.row * a.row.top_k + w.at;
  const auto expert = static_cast<int32_t>(a.in[w.row * words + w.at]);
  const int64_t local = expert - a.first_expert;
  const bool is_here = local >= 0 && local < a.own_experts;
  if (w.part == Word::Part::EXPERT) {
    a.experts[slot] = is_here ? static_cast<int32_t>(local) : -1;
  } else {
    a.scores[slot] = is_here ? __uint_as_float(value) : 0.0f;
  }
}

const char* refusal_of(const BesideRow& row, int64_t rows) {
  if (row.scale_bytes % 4 != 0) return "scales that are no whole words";
  return row.words() > 0 && rows > INT32_MAX / row.words() ? "more words than 31 bits count"
                                                           : nullptr;
}

}  // namespace

// ---- launch
LaunchStatus launch_ranks_of_tokens(const RanksOfTokensArgs& a, cudaStream_t stream) {
  if (a.ranks < 1 || a.ranks > kMostRanks) return refused("more ranks than one block counts");
  if (a.own_experts < 1 || a.ranks * a.own_experts > INT32_MAX) {
    return refused("more experts than 31 bits count");
  }
  const LaunchStatus cleared =
      launch_clear(reinterpret_cast<uint32_t*>(a.choices), a.ranks, stream);
  if (!cleared.ok() || a.tokens * a.top_k == 0) return cleared;
  return launch_early(ranks_of_tokens, ceil_div(a.tokens, int64_t{kThreads}), kThreads,
                      static_cast<size_t>(a.ranks) * sizeof(int32_t), stream, a,
                      std::min(a.top_k, a.ranks));
}

LaunchStatus launch_pack_beside(const PackBesideArgs& a, cudaStream_t stream) {
  if (const char* why = refusal_of(a.row, a.rows)) return refused(why);
  if (a.rows * a.row.words() == 0) return {};
  return launch_early(pack_beside, ceil_div(a.rows * a.row.words(), int64_t{kThreads}), kThreads, 0,
                      stream, a, a.row.words());
}

LaunchStatus launch_unpack_beside(const UnpackBesideArgs& a, cudaStream_t stream) {
  if (const char* why = refusal_of(a.row, a.rows)) return refused(why);
  if (a.rows * a.row.words() == 0) return {};
  return launch_early(unpack_beside, ceil_div(a.rows * a.row.words(), int64_t{kThreads}), kThreads,
                      0, stream, a, a.row.words());
}

}  // namespace moe8::cuda
