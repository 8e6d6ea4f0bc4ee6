// SPDX-License-Identifier: BSD-3-Clause
#include "reference/float8.h"

#include <algorithm>

#include "formats/float8_scale.h"
#include "reference/element.h"
#include "reference/strip.h"

namespace moe8::reference {
namespace {

// Calls f(strip) for every reduced set of the work items [begin, end): an item is one set of the
// axis, for a chunk of the `inner` positions.
template <typename Args, typename F>
void for_each_strip(const Args& a, int64_t begin, int64_t end, F f) {
  constexpr int64_t kColumns = Float8QuantizeArgs::kColumns;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first_column = item % a.column_chunks() * kColumns;
    const int64_t set = item / a.column_chunks() % a.set_count;
    const int64_t outer = item / a.column_chunks() / a.set_count;
    for (int64_t i = first_column; i < std::min(first_column + kColumns, a.inner); ++i) {
      f(strip_of(a, outer, a.sets[set], i, a.set_count, set));
    }
  }
}

}  // namespace

void quantize_float8(const Float8QuantizeArgs& a, int64_t begin, int64_t end) {
  for_each_strip(a, begin, end, [&](const Strip& strip) {
    if (!a.scale_is_given) {
      uint32_t amax_bits = 0;  // magnitudes compare as integers; a NaN is larger than all
      for (int64_t k = 0; k < strip.size; ++k) {
        amax_bits = std::max(amax_bits, magnitude_bits(load(a.x, a.x_type, strip.element(k))));
      }
      a.scale[strip.scale_at] = float8_scale(amax_bits, a.elem, a.round_scales_to_power_of_2);
    }
    const float scale = a.scale[strip.scale_at];
    for (int64_t k = 0; k < strip.size; ++k) {
      const int64_t at = strip.element(k);
      const uint32_t code = encode(load(a.x, a.x_type, at) * scale, a.elem);
      if (a.data) a.data[at] = static_cast<uint8_t>(code);
      if (a.dequantized) {
        store(a.dequantized, a.dequantized_type, at, decode(code, a.elem) * (1.0f / scale));
      }
    }
  });
}

void dequantize_float8(const Float8DequantizeArgs& a, int64_t begin, int64_t end) {
  for_each_strip(a, begin, end, [&](const Strip& strip) {
    const float inverse = 1.0f / a.scale[strip.scale_at];
    for (int64_t k = 0; k < strip.size; ++k) {
      const int64_t at = strip.element(k);
      store(a.out, a.out_type, at, decode(a.data[at], a.elem) * inverse);
    }
  });
}

}  // namespace moe8::reference
