// SPDX-License-Identifier: BSD-3-Clause
// Stages that the CPU quantizers are made of: flat loops over float32 lanes, each of which the
// compiler turns into vector code of the entry point's instruction set (isa.h). Small changes to
// src/formats can cost that silently (a bool in ElemLayout did, tenfold): the tests named
// AreVectorCode tell.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "formats/float_type.h"

namespace moe8::cpu {

template <typename T>
inline void load(const T* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i]);
}

template <typename T>
inline void store(const float* from, T* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = from_float<T>(from[i]);
}

inline void copy_bytes(const uint8_t* from, uint8_t* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

template <typename T>
inline void fill(T* to, int64_t n, T value) {
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}

/// The largest magnitude as bits; a NaN is larger than all.
inline uint32_t max_magnitude(const float* lanes, int64_t n) {
  uint32_t amax = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = magnitude_bits(lanes[i]);
    amax = amax > bits ? amax : bits;
  }
  return amax;
}

/// amax[i] = max(amax[i], |lanes[i]|)
inline void update_amax(const float* lanes, uint32_t* amax, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = magnitude_bits(lanes[i]);
    amax[i] = amax[i] > bits ? amax[i] : bits;
  }
}

inline void multiply(float* lanes, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) lanes[i] *= factor;
}

inline void multiply(float* lanes, const float* factors, int64_t n) {
  for (int64_t i = 0; i < n; ++i) lanes[i] *= factors[i];
}

inline void encode_lanes(ElemDtype format, const float* lanes, uint8_t* codes, int64_t n) {
  with_elem(format, [&]<ElemDtype elem>() {
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(encode(lanes[i], elem));
  });
}

inline void decode_lanes(ElemDtype format, const uint8_t* codes, float* lanes, int64_t n) {
  with_elem(format, [&]<ElemDtype elem>() {
    for (int64_t i = 0; i < n; ++i) lanes[i] = decode(codes[i], elem);
  });
}

/// Each lane becomes the value of its own code.
inline void round_lanes(ElemDtype format, float* lanes, int64_t n) {
  with_elem(format, [&]<ElemDtype elem>() {
    for (int64_t i = 0; i < n; ++i) lanes[i] = decode(encode(lanes[i], elem), elem);
  });
}

/// load and store of an array whose type is known at run time; `at` counts elements.
inline void load(const void* from, FloatType type, int64_t at, float* to, int64_t n) {
  with_type(type, [&]<typename T>(T*) { load(static_cast<const T*>(from) + at, to, n); });
}

inline void store(const float* from, void* to, FloatType type, int64_t at, int64_t n) {
  with_type(type, [&]<typename T>(T*) { store(from, static_cast<T*>(to) + at, n); });
}

}  // namespace moe8::cpu
