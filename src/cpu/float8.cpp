// SPDX-License-Identifier: BSD-3-Clause
// What:  Float8 quantization, dequantization and both in one: a scale per row, column, group or
//        tensor.
// How:   a work item is a row, or kColumns columns of a set of rows; it is read twice, from memory
//        for its amax and from cache for its codes or values.
// Floor: memory. Codes from bf16 read 2 and write 1 byte per element, fake-quantized bf16 2 and 2.
#include "cpu/float8.h"

#include "cpu/float_state.h"
#include "cpu/lanes.h"
#include "formats/float8_scale.h"

namespace moe8::cpu {
namespace {

constexpr int64_t kColumns = Float8QuantizeArgs::kColumns;

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

/// f(at) for each run of the item, `at` being its first element.
template <typename F>
inline void for_each_run(const Item& item, F f) {
  for (int64_t k = 0; k < item.rows; ++k) f(item.first + k * item.stride);
}

/// What codes are multiplied by. A scale of 0 has no inverse (its set holds an Inf): NaN, as 0
/// times Inf would be.
inline float inverse_of(float scale) {
  return scale == 0.0f ? std::bit_cast<float>(0x7FC00000u) : 1.0f / scale;
}

/// f(static_cast<Out*>(out)); the values of power-of-two scales are exact in bf16.
template <typename F>
inline void with_output(void* out, FloatType type, bool pow2, F f) {
  if (type == FloatType::F32) return f(static_cast<float*>(out));
  if (pow2) return f(static_cast<ExactBFloat16*>(out));
  return f(static_cast<BFloat16*>(out));
}

/// Sets the scales of the item: one of a run, or one of each column.
template <typename T>
inline void find_scales(const Float8QuantizeArgs& a, const T* x, const Item& item, float* scale) {
  if (a.inner == 1) {
    *scale = float8_scale(float_bits(max_magnitude(x + item.first, item.width)), a.elem,
                          a.round_scales_to_power_of_2);
    return;
  }
  alignas(64) Magnitude<T> amax[kColumns];
  fill(amax, kColumns, Magnitude<T>{0});
  for_each_run(item, [&](int64_t at) { update_amax(x + at, amax, item.width); });
  for (int64_t j = 0; j < item.width; ++j) {
    scale[j] = float8_scale(float_bits(amax[j]), a.elem, a.round_scales_to_power_of_2);
  }
}

/// Scale and inverse are those of the whole item, or arrays with one for each column.
template <typename T, typename Factor>
inline void write(const Float8QuantizeArgs& a, const T* x, const Item& item, Factor scale,
                  Factor inverse) {
  const ElemRounding rounding(a.elem);
  if (a.data) {
    for_each_run(item,
                 [&](int64_t at) { encode_run(rounding, x + at, scale, a.data + at, item.width); });
  }
  if (a.dequantized) {
    with_output(a.dequantized, a.dequantized_type, a.round_scales_to_power_of_2,
                [&]<typename Out>(Out* out) {
                  for_each_run(item, [&](int64_t at) {
                    round_run(rounding, x + at, scale, inverse, out + at, item.width);
                  });
                });
  }
}

template <typename T>
inline void quantize(const Float8QuantizeArgs& a, const T* x, int64_t begin, int64_t end) {
  alignas(64) float inverse[kColumns];
  for (int64_t index = begin; index < end; ++index) {
    const Item item = item_of(a, index);
    float* scale = a.scale + item.scale_at;
    if (!a.scale_is_given) find_scales(a, x, item, scale);
    if (a.inner == 1) {
      write(a, x, item, *scale, inverse_of(*scale));
    } else {
      for (int64_t j = 0; j < item.width; ++j) inverse[j] = inverse_of(scale[j]);
      write<T, const float*>(a, x, item, scale, inverse);
    }
  }
}

inline void quantize_any(const Float8QuantizeArgs& a, int64_t begin, int64_t end) {
  with_type(a.x_type, [&]<typename T>(T*) { quantize(a, static_cast<const T*>(a.x), begin, end); });
}

/// f(at, n) for the pieces of a run.
template <typename F>
inline void for_each_piece(int64_t at, int64_t size, F f) {
  for (int64_t left = size; left > 0; at += kColumns, left -= kColumns) {
    f(at, left < kColumns ? left : kColumns);
  }
}

inline void dequantize_any(const Float8DequantizeArgs& a, int64_t begin, int64_t end) {
  alignas(64) float inverses[kColumns];
  alignas(64) float values[kColumns];
  const float* inverse = inverses;
  for (int64_t index = begin; index < end; ++index) {
    const Item item = item_of(a, index);
    const int64_t scales = a.inner == 1 ? 1 : item.width;
    for (int64_t j = 0; j < scales; ++j) inverses[j] = inverse_of(a.scale[item.scale_at + j]);
    with_output(a.out, a.out_type, false, [&]<typename Out>(Out* out) {
      for_each_run(item, [&](int64_t first) {
        for_each_piece(first, item.width, [&](int64_t at, int64_t n) {
          decode_run(a.elem, a.data + at, values, n);
          if (a.inner == 1) {
            scale_run(values, inverse[0], out + at, n);
          } else {
            scale_run(values, inverse, out + at, n);
          }
        });
      });
    });
  }
}

inline uint32_t amax_any(const void* x, FloatType type, int64_t at, int64_t n) {
  uint32_t amax = 0;
  with_type(type, [&]<typename T>(T*) {
    amax = float_bits(max_magnitude(static_cast<const T*>(x) + at, n));
  });
  return amax;
}

}  // namespace

void quantize_float8(const Float8QuantizeArgs& args, int64_t begin, int64_t end, Isa isa) {
  const DefaultFloatState state;
  PerIsa<quantize_any>::run(isa, args, begin, end);
}

void dequantize_float8(const Float8DequantizeArgs& args, int64_t begin, int64_t end, Isa isa) {
  const DefaultFloatState state;
  PerIsa<dequantize_any>::run(isa, args, begin, end);
}

uint32_t float8_amax(const void* x, FloatType type, int64_t at, int64_t n, Isa isa) {
  return PerIsa<amax_any>::run(isa, x, type, at, n);
}

float float8_scale_of(uint32_t amax_bits, ElemDtype elem, bool round_to_power_of_2) {
  const DefaultFloatState state;
  asm volatile("" : "+r"(amax_bits));  // the division does not move to before this,
  float scale = float8_scale(amax_bits, elem, round_to_power_of_2);
  asm volatile("" : "+m"(scale));  // nor to behind this
  return scale;
}

}  // namespace moe8::cpu
