// SPDX-License-Identifier: BSD-3-Clause
// Rotary positions. A block has one position of one sequence: a thread keeps the cosines and sines
// of its features and walks over the heads of q, then of k.
#include "cuda/launch.cuh"
#include "cuda/nn/packets.cuh"
#include "cuda/nn/rotary.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int kMostThreads = 256;

struct Rotary {
  RotaryArgs args;
  int lanes;  // threads that share a head
};

// ---- device helpers
struct Rotated {
  float a, b;
};

__device__ Rotated rotate(float a, float b, float cos, float sin) {
  return {__fsub_rn(__fmul_rn(a, cos), __fmul_rn(b, sin)),
          __fadd_rn(__fmul_rn(a, sin), __fmul_rn(b, cos))};
}

/// The place of a block.
struct Position {
  int64_t batch, position;

  __device__ explicit Position(const RotaryArgs& a)
      : batch(blockIdx.x / a.positions), position(blockIdx.x % a.positions) {}
};

/// Head `head` of q and k, counted through.
template <typename T>
struct Head {
  const T* in;
  T* out;

  __device__ Head(const RotaryArgs& a, const Position& at, int64_t head) {
    const bool is_q = head < a.q.heads;
    const RotaryHeads& x = is_q ? a.q : a.k;
    const int64_t h = is_q ? head : head - a.q.heads;
    in = static_cast<const T*>(x.in) + at.batch * x.batch_stride + at.position * x.position_stride +
         h * x.head_stride;
    out = static_cast<T*>(x.out) + ((at.batch * a.positions + at.position) * x.heads + h) * a.width;
  }
};

/// Cosines and sines of `kPairs` pairs from `first` on.
template <int kPairs>
struct Angles {
  float cos[kPairs], sin[kPairs];

  __device__ Angles(const RotaryArgs& a, int64_t position, int64_t first) {
    const float* p = a.freqs + (position * (a.width / 2) + first) * 2;
#pragma unroll
    for (int i = 0; i < kPairs; i += 2) {
      const float4 two = reinterpret_cast<const float4*>(p)[i / 2];
      cos[i] = two.x, sin[i] = a.inverse ? -two.y : two.y;
      cos[i + 1] = two.z, sin[i + 1] = a.inverse ? -two.w : two.w;
    }
  }
};

// ---- kernels
template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    rotate_neighbours(const __grid_constant__ Rotary p) {
  follow_stream();
  const RotaryArgs& a = p.args;
  const Position at(a);
  const int64_t column = static_cast<int64_t>(threadIdx.x) % p.lanes * kPacket;
  const Angles<kPacket / 2> angles(a, at.position, column / 2);
  const int64_t heads = a.q.heads + a.k.heads;
#pragma unroll 2
  for (int64_t h = threadIdx.x / p.lanes; h < heads; h += blockDim.x / p.lanes) {
    const Head<T> head(a, at, h);
    const Packet<T> x = load_packet(head.in + column);
    float out[kPacket];
#pragma unroll
    for (int i = 0; i < kPacket; i += 2) {
      const Rotated r = rotate(x.get(i), x.get(i + 1), angles.cos[i / 2], angles.sin[i / 2]);
      out[i] = r.a, out[i + 1] = r.b;
    }
    store_packet(head.out + column, packed<T>(out));
  }
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads) rotate_halves(const __grid_constant__ Rotary p) {
  follow_stream();
  const RotaryArgs& a = p.args;
  const Position at(a);
  const int64_t column = static_cast<int64_t>(threadIdx.x) % p.lanes * kPacket;
  const Angles<kPacket> angles(a, at.position, column);
  const int64_t heads = a.q.heads + a.k.heads, half = a.width / 2;
  for (int64_t h = threadIdx.x / p.lanes; h < heads; h += blockDim.x / p.lanes) {
    const Head<T> head(a, at, h);
    const Packet<T> x = load_packet(head.in + column), y = load_packet(head.in + half + column);
    float first[kPacket], second[kPacket];
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      const Rotated r = rotate(x.get(i), y.get(i), angles.cos[i], angles.sin[i]);
      first[i] = r.a, second[i] = r.b;
    }
    store_packet(head.out + column, packed<T>(first));
    store_packet(head.out + half + column, packed<T>(second));
  }
}

// Any width, stride and address: pair by pair.
template <typename T>
__global__ void __launch_bounds__(kMostThreads) rotate_any(const __grid_constant__ Rotary p) {
  follow_stream();
  const RotaryArgs& a = p.args;
  const Position at(a);
  const int64_t half = a.width / 2, count = (a.q.heads + a.k.heads) * half;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const Head<T> head(a, at, i / half);
    const int64_t pair = i % half;
    const bool neighbours = a.pairs == RotaryPairs::NEIGHBOURS;
    const int64_t first = neighbours ? 2 * pair : pair, second = first + (neighbours ? 1 : half);
    const float* angle = a.freqs + (at.position * half + pair) * 2;
    const Rotated r = rotate(to_float(head.in[first]), to_float(head.in[second]), angle[0],
                             a.inverse ? -angle[1] : angle[1]);
    head.out[first] = rounded<T>(r.a);
    head.out[second] = rounded<T>(r.b);
  }
}

// ---- launch
bool in_whole_packets(const RotaryArgs& a, int64_t element_bytes) {
  const auto fits = [&](const RotaryHeads& x) {
    return x.heads == 0 || (is_aligned(x.in, x.batch_stride, element_bytes) &&
                            is_aligned(x.in, x.position_stride, element_bytes) &&
                            is_aligned(x.in, x.head_stride, element_bytes) &&
                            is_aligned(x.out, a.width, element_bytes));
  };
  // A thread's first pair begins at a multiple of 16 bytes of freqs as well.
  return fits(a.q) && fits(a.k) && is_aligned(a.freqs, a.width, sizeof(float));
}

template <typename T>
LaunchStatus launch(const RotaryArgs& a, cudaStream_t stream) {
  const int64_t heads = a.q.heads + a.k.heads, blocks = a.batches * a.positions;
  const int64_t lane_features = kPacket * (a.pairs == RotaryPairs::NEIGHBOURS ? 1 : 2);
  const int64_t lanes = a.width / lane_features;
  const bool aligned = a.width % lane_features == 0 && lanes <= kMostThreads;
  if (!aligned || !in_whole_packets(a, sizeof(T))) {
    return launch_early(rotate_any<T>, blocks, kMostThreads, 0, stream, Rotary{a, 1});
  }
  // As many passes over the heads as the largest block needs, and no thread more than they need.
  const int64_t passes = ceil_div(heads, kMostThreads / lanes);
  const int threads = static_cast<int>(ceil_div(heads, passes) * lanes);
  const auto kernel = a.pairs == RotaryPairs::NEIGHBOURS ? rotate_neighbours<T> : rotate_halves<T>;
  return launch_early(kernel, blocks, threads, 0, stream, Rotary{a, static_cast<int>(lanes)});
}

}  // namespace

LaunchStatus launch_rotary(const RotaryArgs& a, cudaStream_t stream) {
  if (a.width % 2 != 0) return refused("heads of an odd width");
  if (a.batches * a.positions > INT32_MAX) return refused("more positions than 31 bits count");
  if (a.batches * a.positions * a.width * (a.q.heads + a.k.heads) == 0) return {};
  return a.type == FloatType::BF16 ? launch<BFloat16>(a, stream) : launch<float>(a, stream);
}

}  // namespace moe8::cuda
