// SPDX-License-Identifier: BSD-3-Clause
// Loops that the CPU quantizers are made of. Each goes once over a run of elements, from memory to
// memory, and is written so that the compiler turns it into vector code of the entry point's
// instruction set (isa.h). Small changes to src/formats can cost that silently (a bool in
// ElemLayout did, tenfold): the tests named AreVectorCode tell.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "cpu/dispatch.h"
#include "formats/float_type.h"

namespace moe8::cpu {

// ---- magnitudes -------------------------------------------------------------
/// The bits of |x| in as few bits as x has, so that twice as many bf16 numbers fit a register; they
/// compare as integers, a NaN being larger than all.
template <typename T>
using Magnitude = std::conditional_t<std::is_same_v<T, BFloat16>, uint16_t, uint32_t>;

inline uint16_t magnitude_of(BFloat16 x) {
  return x.bits & 0x7FFF;
}
inline uint32_t magnitude_of(float x) {
  return magnitude_bits(x);
}

/// As the float32 bits that scales are computed from.
inline uint32_t float_bits(uint16_t magnitude) {
  return static_cast<uint32_t>(magnitude) << 16;
}
inline uint32_t float_bits(uint32_t magnitude) {
  return magnitude;
}

template <typename T>
inline Magnitude<T> max_magnitude(const T* x, int64_t n) {
  Magnitude<T> amax = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Magnitude<T> m = magnitude_of(x[i]);
    amax = amax > m ? amax : m;
  }
  return amax;
}

/// amax[i] = max(amax[i], |x[i]|)
template <typename T>
inline void update_amax(const T* __restrict x, Magnitude<T>* __restrict amax, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const Magnitude<T> m = magnitude_of(x[i]);
    amax[i] = amax[i] > m ? amax[i] : m;
  }
}

// ---- codes and values -------------------------------------------------------
/// A factor for all of a run, or one for each of its elements.
inline float factor_at(float factor, int64_t) {
  return factor;
}
inline float factor_at(const BFloat16* factors, int64_t i) {
  return to_float(factors[i]);
}
inline float factor_at(const float* factors, int64_t i) {
  return factors[i];
}

/// bf16 by dropping bits that are zero anyway.
struct ExactBFloat16 {
  uint16_t bits;
};

template <typename Out>
inline Out rounded(float x) {
  if constexpr (std::is_same_v<Out, ExactBFloat16>) {
    return {static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16)};
  } else {
    return from_float<Out>(x);
  }
}

/// Codes as words. Written as bytes at once, g++ would narrow every part of them by itself.
template <typename T, typename Factor>
inline void encode_run(const ElemRounding& f, const T* __restrict x, Factor scale,
                       uint32_t* __restrict codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode(to_float(x[i]) * factor_at(scale, i), f);
}

inline void narrow(const uint32_t* __restrict from, uint8_t* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<uint8_t>(from[i]);
}

/// The factors of a run that starts at `at`.
inline float factors_from(float factor, int64_t) {
  return factor;
}
template <typename F>
inline const F* factors_from(const F* factors, int64_t at) {
  return factors + at;
}

template <typename T, typename Factor>
inline void encode_run(const ElemRounding& f, const T* x, Factor scale, uint8_t* codes, int64_t n) {
  constexpr int64_t kPiece = 1024;
  alignas(64) uint32_t words[kPiece];
  for (int64_t at = 0; at < n; at += kPiece) {
    const int64_t size = n - at < kPiece ? n - at : kPiece;
    encode_run(f, x + at, factors_from(scale, at), words, size);
    narrow(words, codes + at, size);
  }
}

/// out[i] = the value that the code of x[i] stands for.
template <typename T, typename Out, typename Factor>
inline void round_run(const ElemRounding& f, const T* __restrict x, Factor scale, Factor inverse,
                      Out* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = round_to_elem(to_float(x[i]) * factor_at(scale, i), f);
    out[i] = rounded<Out>(value * factor_at(inverse, i));
  }
}

inline void decode_run(ElemDtype format, const uint8_t* __restrict codes, float* __restrict values,
                       int64_t n) {
  with_elem(format, [&]<ElemDtype elem>() {
    for (int64_t i = 0; i < n; ++i) values[i] = decode(codes[i], elem);
  });
}

template <typename Out, typename Factor>
inline void scale_run(const float* __restrict values, Factor inverse, Out* __restrict out,
                      int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = rounded<Out>(values[i] * factor_at(inverse, i));
}

template <typename T>
inline void fill(T* to, int64_t n, T value) {
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}

inline void copy_bytes(const uint8_t* __restrict from, uint8_t* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

}  // namespace moe8::cpu
