// SPDX-License-Identifier: BSD-3-Clause
#include "reference/mx.h"

#include <algorithm>

#include "formats/e8m0.h"
#include "reference/element.h"
#include "reference/strip.h"

namespace moe8::reference {
namespace {

// Calls f(strip) for every block of the work items [begin, end): an item is one block of the axis,
// for each of the `inner` positions.
template <typename Args, typename F>
void for_each_strip(const Args& a, int64_t begin, int64_t end, F f) {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t outer = item / a.block_count;
    const int64_t block = item % a.block_count;
    for (int64_t i = 0; i < a.inner; ++i) {
      f(strip_of(a, outer, a.blocks[block], i, a.scale_rows, block));
    }
  }
}

}  // namespace

void quantize_mx(const MxQuantizeArgs& a, int64_t begin, int64_t end) {
  for_each_strip(a, begin, end, [&](const Strip& strip) {
    uint32_t amax_bits = 0;  // magnitudes compare as integers; a NaN is larger than all
    for (int64_t k = 0; k < strip.size; ++k) {
      const float x = load(a.x, a.x_type, strip.element(k));
      amax_bits = std::max(amax_bits, magnitude_bits(x));
    }
    const uint8_t s = mx_scale(amax_bits, a.elem, a.mode);
    if (a.scale) a.scale[strip.scale_at] = s;

    for (int64_t k = 0; k < strip.size; ++k) {
      const int64_t at = strip.element(k);
      const uint32_t code = encode(load(a.x, a.x_type, at) * mx_scale_inverse(s), a.elem);
      if (a.data) a.data[at] = static_cast<uint8_t>(code);
      if (a.dequantized) {
        store(a.dequantized, a.dequantized_type, at, decode(code, a.elem) * mx_scale_value(s));
      }
    }
  });
}

void dequantize_mx(const MxDequantizeArgs& a, int64_t begin, int64_t end) {
  for_each_strip(a, begin, end, [&](const Strip& strip) {
    const float scale = mx_scale_value(a.scale[strip.scale_at]);
    for (int64_t k = 0; k < strip.size; ++k) {
      const int64_t at = strip.element(k);
      store(a.out, a.out_type, at, decode(a.data[at], a.elem) * scale);
    }
  });
}

}  // namespace moe8::reference
