// SPDX-License-Identifier: BSD-3-Clause
// The same bits from the CPU's kernels whatever the floating-point state of the threads they run
// on: subnormals flushed (as by libraries compiled with -ffast-math), another rounding, traps.
#include "cpu/float_state.h"

#include <torch/torch.h>

#include "device/parallel.h"
#include "moe8/moe8.h"
#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

#if defined(__x86_64__)

constexpr unsigned kFlush = 0x8040;             // FTZ and DAZ
constexpr unsigned kRoundUp = 0x4000;           // toward +infinity
constexpr unsigned kDefault = 0x1F80;           // all traps masked
constexpr unsigned kTraps = 0x1F80 & ~0x0680u;  // a trap on invalid, division by zero, overflow

void set_state_everywhere(unsigned state) {
  parallel_ranges(64, 1, [&](int64_t, int64_t) { _mm_setcsr(state); });
  _mm_setcsr(state);
}

struct State {
  explicit State(unsigned state) { set_state_everywhere(state); }
  ~State() { set_state_everywhere(kDefault); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

// Everything that a float can be, subnormals among it, and large enough for every thread.
std::vector<at::Tensor> quantized(const at::Tensor& x) {
  std::vector<at::Tensor> results;
  const at::Tensor offs = testing::offs_of({100, 0, x.size(0) - 107});
  for (const int64_t axis : {0, 1}) {
    for (const auto mode : {ScaleCalculationMode::FLOOR, ScaleCalculationMode::RCEIL}) {
      const MXTensor mx = quantize_mx(x, ElemDtype::E4M3, mode, axis);
      results.insert(results.end(), {mx.data, mx.scale, dequantize(mx),
                                     fake_quantize_mx(x, ElemDtype::E2M1, mode, axis)});
    }
    for (const bool pow2 : {false, true}) {
      const auto granularity = Float8Granularity::axiswise(axis);
      const Float8Tensor q = quantize_float8(x, granularity, ElemDtype::E5M2, pow2);
      results.insert(results.end(), {q.data, q.scale, dequantize(q),
                                     fake_quantize_float8(x, granularity, ElemDtype::E4M3, pow2)});
    }
  }
  const MXTensor groups = quantize_mx(x, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 0, offs);
  const Float8Tensor whole = quantize_float8(x, Float8Granularity::tensorwise());
  results.insert(results.end(), {groups.data, groups.scale, whole.data, whole.scale,
                                 dequantize(whole, at::kFloat)});
  return results;
}

TEST(FloatState, ChangesNoBitOfAQuantizer) {
  const at::Tensor tiny = testing::wide_normal({512, 160}, at::kFloat, 1, 8) * 0x1p-126f;
  const at::Tensor hard = testing::hard_values({512, 160}, at::kBFloat16, 2);
  const at::Tensor inf = testing::hard_values({512, 160}, at::kFloat, 3, /*with_nonfinite=*/true);
  for (const at::Tensor& x : {tiny, hard, inf}) {
    const std::vector<at::Tensor> expected = quantized(x);
    for (const unsigned state : {kDefault | kFlush, kDefault | kRoundUp, kTraps}) {
      std::vector<at::Tensor> got;
      {
        const State other(state);
        got = quantized(x);
        EXPECT_EQ(_mm_getcsr() & 0xFFC0u, state) << "as it was before the call";
      }
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_TRUE(testing::same_values(expected[i], got[i])) << "result " << i << ", " << state;
      }
    }
  }
}

#endif

}  // namespace
}  // namespace moe8
