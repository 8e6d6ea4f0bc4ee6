// SPDX-License-Identifier: BSD-3-Clause
// What:  Float8 quantization, dequantization and both in one: a scale per row, column, group or
// tensor. How:   a work item is a row, or kColumns columns of a set of rows; it is read twice in
// pieces of float32
//        lanes, once for amax and once (from cache) for the codes.
// Floor: memory. Codes from bf16 read 2 and write 1 byte an element, fake-quantized bf16 2 and 2.
#include "cpu/float8.h"

#include "cpu/lanes.h"
#include "formats/float8_scale.h"

namespace moe8::cpu {
namespace {

constexpr int64_t kColumns = Float8QuantizeArgs::kColumns;
constexpr int64_t kLanes = 2048;  // a piece: 8 KiB of lanes in the first cache

struct Piece {
  alignas(64) float lanes[kLanes];
  alignas(64) uint8_t codes[kLanes];
};

/// One work item: `rows` runs of `width` elements, `stride` apart. Contiguous sets are one run.
struct Item {
  int64_t first;
  int64_t stride;
  int64_t rows;
  int64_t width;
  int64_t scale_at;
};

template <typename Args>
inline Item item_of(const Args& a, int64_t index) {
  const int64_t chunk = index % a.column_chunks();
  const int64_t set = index / a.column_chunks() % a.set_count;
  const int64_t outer = index / a.column_chunks() / a.set_count;
  const int64_t first = (outer * a.length + a.sets[set].begin) * a.inner + chunk * kColumns;
  const int64_t scale_at = (outer * a.set_count + set) * a.inner + chunk * kColumns;
  if (a.inner == 1) return {first, 0, 1, a.sets[set].size, scale_at};
  const int64_t left = a.inner - chunk * kColumns;
  return {first, a.inner, a.sets[set].size, left < kColumns ? left : kColumns, scale_at};
}

/// f(at, n) for each piece of a contiguous run.
template <typename F>
inline void for_each_piece(int64_t at, int64_t size, F f) {
  for (; size >= kLanes; at += kLanes, size -= kLanes) f(at, kLanes);
  if (size > 0) f(at, size);
}

inline uint32_t amax_of_run(const void* x, FloatType type, int64_t first, int64_t size,
                            Piece& piece) {
  uint32_t amax = 0;
  for_each_piece(first, size, [&](int64_t at, int64_t n) {
    load(x, type, at, piece.lanes, n);
    const uint32_t bits = max_magnitude(piece.lanes, n);
    amax = amax > bits ? amax : bits;
  });
  return amax;
}

/// amax[j] of each column of the item, or amax[0] of its single run.
inline void find_amax(const Float8QuantizeArgs& a, const Item& item, Piece& piece, uint32_t* amax) {
  if (a.inner == 1) {
    amax[0] = amax_of_run(a.x, a.x_type, item.first, item.width, piece);
    return;
  }
  fill(amax, kColumns, 0u);
  for (int64_t k = 0; k < item.rows; ++k) {
    load(a.x, a.x_type, item.first + k * item.stride, piece.lanes, item.width);
    update_amax(piece.lanes, amax, item.width);
  }
}

/// Writes what is wanted of n lanes that hold x; multiply(lanes, factor) applies a scale or its
/// inverse.
template <typename Factor>
inline void write_lanes(const Float8QuantizeArgs& a, Piece& piece, int64_t at, int64_t n,
                        Factor scale, Factor inverse) {
  multiply(piece.lanes, scale, n);
  if (a.data) {
    encode_lanes(a.elem, piece.lanes, piece.codes, n);
    copy_bytes(piece.codes, a.data + at, n);
  }
  if (a.dequantized) {
    round_lanes(a.elem, piece.lanes, n);
    multiply(piece.lanes, inverse, n);
    store(piece.lanes, a.dequantized, a.dequantized_type, at, n);
  }
}

inline void quantize_any(const Float8QuantizeArgs& a, int64_t begin, int64_t end) {
  Piece piece;
  uint32_t amax[kColumns];
  float inverse[kColumns];
  for (int64_t index = begin; index < end; ++index) {
    const Item item = item_of(a, index);
    const int64_t scales = a.inner == 1 ? 1 : item.width;
    float* scale = a.scale + item.scale_at;
    if (!a.scale_is_given) {
      find_amax(a, item, piece, amax);
      for (int64_t j = 0; j < scales; ++j) {
        scale[j] = float8_scale(amax[j], a.elem, a.round_scales_to_power_of_2);
      }
    }
    for (int64_t j = 0; j < scales; ++j) inverse[j] = 1.0f / scale[j];
    if (a.inner == 1) {
      for_each_piece(item.first, item.width, [&](int64_t at, int64_t n) {
        load(a.x, a.x_type, at, piece.lanes, n);
        write_lanes(a, piece, at, n, scale[0], inverse[0]);
      });
      continue;
    }
    for (int64_t k = 0; k < item.rows; ++k) {
      const int64_t at = item.first + k * item.stride;
      load(a.x, a.x_type, at, piece.lanes, item.width);
      write_lanes(a, piece, at, item.width, static_cast<const float*>(scale),
                  static_cast<const float*>(inverse));
    }
  }
}

inline void dequantize_any(const Float8DequantizeArgs& a, int64_t begin, int64_t end) {
  Piece piece;
  float inverse[kColumns];
  for (int64_t index = begin; index < end; ++index) {
    const Item item = item_of(a, index);
    const int64_t scales = a.inner == 1 ? 1 : item.width;
    for (int64_t j = 0; j < scales; ++j) inverse[j] = 1.0f / a.scale[item.scale_at + j];
    for (int64_t k = 0; k < item.rows; ++k) {
      for_each_piece(item.first + k * item.stride, item.width, [&](int64_t at, int64_t n) {
        decode_lanes(a.elem, a.data + at, piece.lanes, n);
        if (a.inner == 1) {
          multiply(piece.lanes, inverse[0], n);
        } else {
          multiply(piece.lanes, static_cast<const float*>(inverse), n);
        }
        store(piece.lanes, a.out, a.out_type, at, n);
      });
    }
  }
}

inline uint32_t amax_any(const void* x, FloatType type, int64_t at, int64_t n) {
  Piece piece;
  return amax_of_run(x, type, at, n, piece);
}

// ---- entry points, one per instruction set ----------------------------------
using QuantizeKernel = void (*)(const Float8QuantizeArgs&, int64_t, int64_t);
using DequantizeKernel = void (*)(const Float8DequantizeArgs&, int64_t, int64_t);
using AmaxKernel = uint32_t (*)(const void*, FloatType, int64_t, int64_t);

[[gnu::flatten]] void quantize_portable(const Float8QuantizeArgs& a, int64_t b, int64_t e) {
  quantize_any(a, b, e);
}
MOE8_TARGET_AVX2 void quantize_avx2(const Float8QuantizeArgs& a, int64_t b, int64_t e) {
  quantize_any(a, b, e);
}
MOE8_TARGET_AVX512 void quantize_avx512(const Float8QuantizeArgs& a, int64_t b, int64_t e) {
  quantize_any(a, b, e);
}
[[gnu::flatten]] void dequantize_portable(const Float8DequantizeArgs& a, int64_t b, int64_t e) {
  dequantize_any(a, b, e);
}
MOE8_TARGET_AVX2 void dequantize_avx2(const Float8DequantizeArgs& a, int64_t b, int64_t e) {
  dequantize_any(a, b, e);
}
MOE8_TARGET_AVX512 void dequantize_avx512(const Float8DequantizeArgs& a, int64_t b, int64_t e) {
  dequantize_any(a, b, e);
}
[[gnu::flatten]] uint32_t amax_portable(const void* x, FloatType type, int64_t at, int64_t n) {
  return amax_any(x, type, at, n);
}
MOE8_TARGET_AVX2 uint32_t amax_avx2(const void* x, FloatType type, int64_t at, int64_t n) {
  return amax_any(x, type, at, n);
}
MOE8_TARGET_AVX512 uint32_t amax_avx512(const void* x, FloatType type, int64_t at, int64_t n) {
  return amax_any(x, type, at, n);
}

constexpr QuantizeKernel kQuantize[] = {quantize_portable, quantize_avx2, quantize_avx512};
constexpr DequantizeKernel kDequantize[] = {dequantize_portable, dequantize_avx2,
                                            dequantize_avx512};
constexpr AmaxKernel kAmax[] = {amax_portable, amax_avx2, amax_avx512};

}  // namespace

void quantize_float8(const Float8QuantizeArgs& args, int64_t begin, int64_t end, Isa isa) {
  kQuantize[static_cast<int>(isa)](args, begin, end);
}

void dequantize_float8(const Float8DequantizeArgs& args, int64_t begin, int64_t end, Isa isa) {
  kDequantize[static_cast<int>(isa)](args, begin, end);
}

uint32_t float8_amax(const void* x, FloatType type, int64_t at, int64_t n, Isa isa) {
  return kAmax[static_cast<int>(isa)](x, type, at, n);
}

}  // namespace moe8::cpu
