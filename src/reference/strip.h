// SPDX-License-Identifier: BSD-3-Clause
// What the reference quantizers walk over: elements that share a scale, as they lie in a tensor
// seen as [outer, length, inner].
#pragma once

#include <cstdint>

namespace moe8::reference {

/// `size` elements that lie `stride` apart, the first at `first`; their scale is at `scale_at`.
struct Strip {
  int64_t first;
  int64_t stride;
  int64_t size;
  int64_t scale_at;

  int64_t element(int64_t k) const { return first + k * stride; }
};

/// The strip at [outer, `range` of the axis, inner], range being an MxBlock or a Float8Set. The
/// scales are those of [outer, scale_rows, inner], and this one's is in row `scale_row`.
template <typename Args, typename Range>
Strip strip_of(const Args& a, int64_t outer, const Range& range, int64_t inner, int64_t scale_rows,
               int64_t scale_row) {
  return {.first = (outer * a.length + range.begin) * a.inner + inner,
          .stride = a.inner,
          .size = range.size,
          .scale_at = (outer * scale_rows + scale_row) * a.inner + inner};
}

}  // namespace moe8::reference
