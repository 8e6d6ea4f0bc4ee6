// SPDX-License-Identifier: BSD-3-Clause
// What:  MX quantization, dequantization and both in one, along any axis or along two at once.
// How:   tiles of strips (a strip is one block): amax of each strip, scale of each, then codes or
//        values. A tile is read from memory for its amax and again from the first or second cache.
//        Along columns a tile is a slab of up to kWidth columns, read row by row: neighbouring rows
//        often lie a power of two apart, and blocks of few columns would share a few lines of
//        cache.
// Floor: memory. Codes from bf16 read 2 and write 1 byte per element, fake-quantized bf16 2 and 2,
//        both directions 2 and 4.
#include "cpu/mx.h"

#include "cpu/float_state.h"
#include "cpu/lanes.h"
#include "formats/e8m0.h"

namespace moe8::cpu {
namespace {

constexpr int64_t kBlock = 32;                   // elements of a full strip
constexpr int64_t kRowStrips = 128;              // strips of a tile along rows: 8 KiB of bf16
constexpr int64_t kWidth = kRowStrips * kBlock;  // strips of a tile along columns: 256 KiB of bf16
constexpr int64_t kSmallExactScale = 16;  // from this byte on, bf16 holds the values of all codes

// ---- scales -----------------------------------------------------------------
inline BFloat16 top_bits(float x) {
  return {static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16)};
}

/// Scales of the strips of a tile. Factors are powers of two or NaN, so bf16 holds them.
template <typename T, int64_t strips>
struct Scales {
  alignas(64) Magnitude<T> amax[strips];
  alignas(64) uint8_t scale[strips];
  alignas(64) BFloat16 inverse[strips];  // what x is multiplied by
  alignas(64) BFloat16 value[strips];    // what codes are multiplied by

  template <ScaleCalculationMode mode>
  void set_from_amax(const ElemLayout& elem, int64_t n) {
    for (int64_t j = 0; j < n; ++j) scale[j] = mx_scale(float_bits(amax[j]), elem, mode);
  }
  void set_from_amax(ElemDtype format, ScaleCalculationMode mode, int64_t n) {
    using enum ScaleCalculationMode;
    const ElemLayout elem = layout_of(format);
    switch (mode) {
      case FLOOR:
        set_from_amax<FLOOR>(elem, n);
        break;
      case RCEIL:
        set_from_amax<RCEIL>(elem, n);
        break;
      case CEIL:
        set_from_amax<CEIL>(elem, n);
        break;
      case EVEN:
        set_from_amax<EVEN>(elem, n);
        break;
    }
    for (int64_t j = 0; j < n; ++j) inverse[j] = top_bits(mx_scale_inverse(scale[j]));
    set_values(n);
  }
  void set_values(int64_t n) {
    for (int64_t j = 0; j < n; ++j) value[j] = top_bits(mx_scale_value(scale[j]));
  }
  bool values_fit_bf16(int64_t n) const {
    uint8_t least = 255;
    for (int64_t j = 0; j < n; ++j) least = least < scale[j] ? least : scale[j];
    return least >= kSmallExactScale;
  }
};

template <typename T>
using RowScales = Scales<T, kRowStrips>;
template <typename T>
using ColumnScales = Scales<T, kWidth>;

/// f(static_cast<Out*>(out)) with the type of an output, exact bf16 where that is the same.
template <typename F>
inline void with_output(void* out, FloatType type, bool fits_bf16, F f) {
  if (type == FloatType::F32) return f(static_cast<float*>(out));
  if (fits_bf16) return f(static_cast<ExactBFloat16*>(out));
  return f(static_cast<BFloat16*>(out));
}

// ---- along rows -------------------------------------------------------------
/// from -> to over one strip; `loop` sees a full strip, its length being a constant, which makes it
/// straight-line code.
template <typename From, typename To, typename Loop>
inline void on_full_strip(const From* from, To* to, int64_t n, Loop loop) {
  From padded[kBlock] = {};
  To result[kBlock];
  if (n == kBlock) return loop(from, to);
  for (int64_t i = 0; i < n; ++i) padded[i] = from[i];
  loop(static_cast<const From*>(padded), static_cast<To*>(result));
  for (int64_t i = 0; i < n; ++i) to[i] = result[i];
}

template <typename T>
inline void scale_rows(const MxQuantizeArgs& a, const T* row, const MxBlock* blocks, int64_t strips,
                       RowScales<T>& s) {
  for (int64_t j = 0; j < strips; ++j) {
    s.amax[j] = blocks[j].size == kBlock ? max_magnitude(row + blocks[j].begin, kBlock)
                                         : max_magnitude(row + blocks[j].begin, blocks[j].size);
  }
  s.set_from_amax(a.elem, a.mode, strips);
}

/// Values of strips of one row; `out` points to the row too.
template <typename T, typename Out>
inline void round_rows(const ElemRounding& rounding, const T* row, const MxBlock* blocks,
                       int64_t strips, const RowScales<T>& s, Out* out) {
  for (int64_t j = 0; j < strips; ++j) {
    on_full_strip(
        row + blocks[j].begin, out + blocks[j].begin, blocks[j].size, [&](const T* x, Out* to) {
          round_run(rounding, x, to_float(s.inverse[j]), to_float(s.value[j]), to, kBlock);
        });
  }
}

template <typename T>
inline void encode_rows(const ElemRounding& rounding, const T* row, const MxBlock* blocks,
                        int64_t strips, const RowScales<T>& s, uint8_t* codes) {
  alignas(64) uint32_t words[kRowStrips * kBlock];
  const int64_t first = blocks[0].begin;
  for (int64_t j = 0; j < strips; ++j) {
    on_full_strip(row + blocks[j].begin, words + blocks[j].begin - first, blocks[j].size,
                  [&](const T* x, uint32_t* to) {
                    encode_run(rounding, x, to_float(s.inverse[j]), to, kBlock);
                  });
  }
  narrow(words, codes + first, blocks[strips - 1].begin + blocks[strips - 1].size - first);
}

/// f(blocks, strips, first, scale_at) for neighbouring strips of the work items [begin, end),
/// `first` being the first element of their row.
template <typename Args, typename F>
inline void for_each_row_tile(const Args& a, int64_t begin, int64_t end, F f) {
  for (int64_t item = begin; item < end;) {
    const int64_t outer = item / a.block_count;
    const int64_t block = item % a.block_count;
    const int64_t in_row = a.block_count - block < end - item ? a.block_count - block : end - item;
    const int64_t strips = in_row < kRowStrips ? in_row : kRowStrips;
    f(a.blocks + block, strips, outer * a.length, outer * a.scale_rows + block);
    item += strips;
  }
}

template <typename T>
inline void quantize_rows(const MxQuantizeArgs& a, const T* x, int64_t begin, int64_t end) {
  RowScales<T> s;
  const ElemRounding rounding(a.elem);
  for_each_row_tile(
      a, begin, end, [&](const MxBlock* blocks, int64_t strips, int64_t first, int64_t scale_at) {
        scale_rows(a, x + first, blocks, strips, s);
        if (a.scale) copy_bytes(s.scale, a.scale + scale_at, strips);
        if (a.data) encode_rows(rounding, x + first, blocks, strips, s, a.data + first);
        if (a.dequantized) {
          with_output(a.dequantized, a.dequantized_type, s.values_fit_bf16(strips),
                      [&]<typename Out>(Out* out) {
                        round_rows(rounding, x + first, blocks, strips, s, out + first);
                      });
        }
      });
}

// ---- along columns ----------------------------------------------------------
/// A block of neighbouring columns: `rows` rows of `width` elements, `stride` apart.
struct Slab {
  int64_t first;
  int64_t rows;
  int64_t width;
  int64_t stride;
  int64_t scale_at;
};

/// f(slab) for the work items [begin, end).
template <typename Args, typename F>
inline void for_each_slab(const Args& a, int64_t begin, int64_t end, F f) {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t outer = item / a.block_count;
    const int64_t block = item % a.block_count;
    const int64_t first = (outer * a.length + a.blocks[block].begin) * a.inner;
    const int64_t scale_at = (outer * a.scale_rows + block) * a.inner;
    for (int64_t column = 0; column < a.inner; column += kWidth) {
      const int64_t width = a.inner - column < kWidth ? a.inner - column : kWidth;
      f(Slab{first + column, a.blocks[block].size, width, a.inner, scale_at + column});
    }
  }
}

/// f(at) for each row of the slab, `at` being its first element.
template <typename F>
inline void for_each_row(const Slab& slab, F f) {
  for (int64_t k = 0; k < slab.rows; ++k) f(slab.first + k * slab.stride);
}

template <typename T>
inline void write_columns(const MxQuantizeArgs& a, const T* x, const Slab& slab,
                          const ColumnScales<T>& s) {
  const ElemRounding rounding(a.elem);
  const BFloat16* inverse = s.inverse;
  const BFloat16* value = s.value;
  if (a.scale) copy_bytes(s.scale, a.scale + slab.scale_at, slab.width);
  if (a.data) {
    for_each_row(
        slab, [&](int64_t at) { encode_run(rounding, x + at, inverse, a.data + at, slab.width); });
  }
  if (a.dequantized) {
    with_output(a.dequantized, a.dequantized_type, s.values_fit_bf16(slab.width),
                [&]<typename Out>(Out* out) {
                  for_each_row(slab, [&](int64_t at) {
                    round_run(rounding, x + at, inverse, value, out + at, slab.width);
                  });
                });
  }
}

template <typename T>
inline void quantize_columns(const MxQuantizeArgs& a, const T* x, int64_t begin, int64_t end) {
  ColumnScales<T> s;
  for_each_slab(a, begin, end, [&](const Slab& slab) {
    fill(s.amax, slab.width, Magnitude<T>{0});
    for_each_row(slab, [&](int64_t at) { update_amax(x + at, s.amax, slab.width); });
    s.set_from_amax(a.elem, a.mode, slab.width);
    write_columns(a, x, slab, s);
  });
}

// ---- both directions --------------------------------------------------------
template <typename T>
inline void quantize_both(const MxQuantizeBothArgs& both, const T* x, int64_t begin, int64_t end) {
  const MxQuantizeArgs& a = both.columns;
  const ElemRounding rounding(a.elem);
  RowScales<T> rows;
  ColumnScales<T> s;
  MxBlock blocks[kRowStrips];
  for_each_slab(a, begin, end, [&](const Slab& slab) {
    fill(s.amax, slab.width, Magnitude<T>{0});
    int64_t strips = 0;
    for (int64_t at = 0; at < slab.width; at += kBlock) {
      blocks[strips++] = {at, slab.width - at < kBlock ? slab.width - at : kBlock};
    }
    for_each_row(slab, [&](int64_t at) {
      update_amax(x + at, s.amax, slab.width);
      scale_rows(a, x + at, blocks, strips, rows);
      with_output(both.row_values, a.dequantized_type, rows.values_fit_bf16(strips),
                  [&]<typename Out>(Out* out) {
                    round_rows(rounding, x + at, blocks, strips, rows, out + at);
                  });
    });
    s.set_from_amax(a.elem, a.mode, slab.width);
    write_columns(a, x, slab, s);
  });
}

// ---- the way back -----------------------------------------------------------
inline void dequantize_rows(const MxDequantizeArgs& a, int64_t begin, int64_t end) {
  RowScales<float> s;
  float values[kBlock];
  for_each_row_tile(
      a, begin, end, [&](const MxBlock* blocks, int64_t strips, int64_t first, int64_t scale_at) {
        copy_bytes(a.scale + scale_at, s.scale, strips);
        s.set_values(strips);
        with_output(a.out, a.out_type, s.values_fit_bf16(strips), [&]<typename Out>(Out* out) {
          for (int64_t j = 0; j < strips; ++j) {
            const int64_t at = first + blocks[j].begin;
            on_full_strip(a.data + at, out + at, blocks[j].size,
                          [&](const uint8_t* codes, Out* to) {
                            decode_run(a.elem, codes, values, kBlock);
                            scale_run(values, to_float(s.value[j]), to, kBlock);
                          });
          }
        });
      });
}

inline void dequantize_columns(const MxDequantizeArgs& a, int64_t begin, int64_t end) {
  ColumnScales<float> s;
  alignas(64) float values[kWidth];
  for_each_slab(a, begin, end, [&](const Slab& slab) {
    copy_bytes(a.scale + slab.scale_at, s.scale, slab.width);
    s.set_values(slab.width);
    const BFloat16* value = s.value;
    with_output(a.out, a.out_type, s.values_fit_bf16(slab.width), [&]<typename Out>(Out* out) {
      for_each_row(slab, [&](int64_t at) {
        decode_run(a.elem, a.data + at, values, slab.width);
        scale_run(values, value, out + at, slab.width);
      });
    });
  });
}

// ---- entry points, one per instruction set ----------------------------------
inline void quantize_any(const MxQuantizeArgs& a, int64_t begin, int64_t end) {
  with_type(a.x_type, [&]<typename T>(T*) {
    const T* x = static_cast<const T*>(a.x);
    if (a.inner == 1) {
      quantize_rows(a, x, begin, end);
    } else {
      quantize_columns(a, x, begin, end);
    }
  });
}

inline void quantize_both_any(const MxQuantizeBothArgs& a, int64_t begin, int64_t end) {
  with_type(a.columns.x_type, [&]<typename T>(T*) {
    quantize_both(a, static_cast<const T*>(a.columns.x), begin, end);
  });
}

inline void dequantize_any(const MxDequantizeArgs& a, int64_t begin, int64_t end) {
  if (a.inner == 1) {
    dequantize_rows(a, begin, end);
  } else {
    dequantize_columns(a, begin, end);
  }
}

}  // namespace

void quantize_mx(const MxQuantizeArgs& args, int64_t begin, int64_t end, Isa isa) {
  const DefaultFloatState state;
  PerIsa<quantize_any>::run(isa, args, begin, end);
}

void quantize_mx_both(const MxQuantizeBothArgs& args, int64_t begin, int64_t end, Isa isa) {
  const DefaultFloatState state;
  PerIsa<quantize_both_any>::run(isa, args, begin, end);
}

void dequantize_mx(const MxDequantizeArgs& args, int64_t begin, int64_t end, Isa isa) {
  const DefaultFloatState state;
  PerIsa<dequantize_any>::run(isa, args, begin, end);
}

}  // namespace moe8::cpu
