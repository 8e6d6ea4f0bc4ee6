// SPDX-License-Identifier: BSD-3-Clause
// Rotary positions, bit for bit: both pairings, both directions, strides, odd widths and addresses.
#include "cuda/nn/rotary.h"

#include <cmath>

#include "cuda/nn_check/check.h"
#include "reference/model.h"

namespace moe8::cuda {
namespace {

struct Shape {
  int64_t batches, positions, q_heads, k_heads, width;
  int64_t shift = 0;        // of the inputs' address, in elements
  bool transposed = false;  // [batches, heads, positions, width], as a gradient may come

  std::string name() const {
    std::string text = "rotary";
    for (const int64_t n : {batches, positions, q_heads, k_heads, width, shift}) {
      text += ' ';
      text += std::to_string(n);
    }
    return text + (transposed ? " transposed" : "");
  }
};

struct Strides {
  int64_t batch, position, head;
  static Strides of(const Shape& s, int64_t heads) {
    if (s.transposed) return {heads * s.positions * s.width, s.width, s.positions * s.width};
    return {s.positions * heads * s.width, heads * s.width, s.width};
  }
};

std::vector<float> angles_of(const Shape& s, std::mt19937& rng) {
  std::uniform_real_distribution<float> uniform(-4, 4);
  std::vector<float> freqs;
  for (int64_t i = 0; i < s.positions * s.width / 2; ++i) {
    const float angle = uniform(rng);
    freqs.push_back(std::cos(angle)), freqs.push_back(std::sin(angle));
  }
  return freqs;
}

Bytes rotated(const Shape& s, const Numbers& in, int64_t heads, const std::vector<float>& freqs,
              RotaryPairs pairs, bool inverse) {
  const Strides strides = Strides::of(s, heads);
  Bytes bytes(static_cast<size_t>(in.count()) * size_of(in.type()));
  with_numbers(in, [&](const auto* x) {
    auto* out =
        reinterpret_cast<std::remove_const_t<std::remove_pointer_t<decltype(x)>>*>(bytes.data());
    for (int64_t b = 0; b < s.batches; ++b) {
      for (int64_t p = 0; p < s.positions; ++p) {
        reference::rotate(x + b * strides.batch + p * strides.position, strides.head,
                          freqs.data() + p * s.width, heads, s.width, pairs, inverse,
                          out + (b * s.positions + p) * heads * s.width);
      }
    }
  });
  return bytes;
}

void check_shape(const Shape& s, FloatType type, RotaryPairs pairs, bool inverse,
                 std::mt19937& rng) {
  const int64_t positions = s.batches * s.positions;
  const std::vector<float> freqs = angles_of(s, rng);
  const Numbers q(type, positions * s.q_heads * s.width, rng, 2, s.shift);
  const Numbers k(type, positions * s.k_heads * s.width, rng, 2, s.shift);
  Numbers q_out(type, q.count()), k_out(type, k.count());
  const DeviceBytes angles(bytes_of(freqs));
  const auto heads = [&](const Numbers& in, const Numbers& out, int64_t count) {
    const Strides strides = Strides::of(s, count);
    return RotaryHeads{in.device(),  strides.batch, strides.position,
                       strides.head, count,         out.device()};
  };
  const RotaryArgs args{heads(q, q_out, s.q_heads),
                        heads(k, k_out, s.k_heads),
                        type,
                        s.batches,
                        s.positions,
                        s.width,
                        angles.as<float>(),
                        pairs,
                        inverse};
  const std::string what = s.name() + " " + name_of(type) + (inverse ? " inverse" : "") +
                           (pairs == RotaryPairs::HALVES ? " halves" : " neighbours");
  run_twice(what, {&q_out, &k_out}, [&] { return launch_rotary(args, nullptr); });
  expect(q_out.bytes() == rotated(s, q, s.q_heads, freqs, pairs, inverse), what + ": q");
  expect(k_out.bytes() == rotated(s, k, s.k_heads, freqs, pairs, inverse), what + ": k");
}

void check_all(const Shape& s, std::mt19937& rng) {
  for (const FloatType type : kTypes) {
    for (const RotaryPairs pairs : {RotaryPairs::NEIGHBOURS, RotaryPairs::HALVES}) {
      for (const bool inverse : {false, true}) check_shape(s, type, pairs, inverse, rng);
    }
  }
}

}  // namespace

void check_rotary(std::mt19937& rng, int random_shapes) {
  for (const Shape& s : std::vector<Shape>{{2, 17, 12, 4, 64},
                                           {1, 5, 32, 4, 128},
                                           {1, 3, 1, 0, 8},
                                           {2, 3, 0, 2, 16},
                                           {1, 2, 3, 1, 2},
                                           {1, 2, 3, 1, 24},
                                           {1, 2, 40, 40, 96},
                                           {1, 1, 2, 1, 4096},
                                           {0, 4, 2, 1, 64},
                                           {2, 9, 6, 2, 64, 1},
                                           {2, 9, 6, 2, 64, 0, true},
                                           {2, 9, 5, 1, 36, 0, true}}) {
    check_all(s, rng);
  }
  const auto pick = [&](int64_t most) { return static_cast<int64_t>(rng() % uint64_t(most + 1)); };
  for (int i = 0; i < random_shapes; ++i) {
    check_all({pick(3), 1 + pick(20), pick(20), pick(9), 2 * (1 + pick(99)), pick(1) * pick(7),
               pick(1) == 1},
              rng);
  }
  RotaryArgs odd{};
  odd.width = 3;
  expect(!launch_rotary(odd, nullptr).ok(), "rotary: an odd width is refused");
}

}  // namespace moe8::cuda
