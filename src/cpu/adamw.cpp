// SPDX-License-Identifier: BSD-3-Clause
// Plain loops that the compiler turns into vector code, once per instruction set (cpu/isa.h). This
// file is compiled without errno for sqrtf, which has no vector code otherwise.
#include "cpu/adamw.h"

#include "cpu/dispatch.h"
#include "cpu/float_state.h"

namespace moe8::cpu {
namespace {

// Moments that are float32 need no random bits, weights without a copy no rounding.
template <typename G, typename W, typename M, bool kCopies>
inline void step_piece(const AdamWRule& rule, const StepScalars& s, const G* __restrict grad,
                       W* __restrict weight, BFloat16* __restrict copy, M* __restrict first,
                       M* __restrict second, int64_t at, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const AdamWElement old{to_float(weight[i]), to_float(first[i]), to_float(second[i])};
    const AdamWElement next = moe8::adamw(old, to_float(grad[i]), rule, s);
    uint32_t random = 0;
    if constexpr (sizeof(M) == 2) {
      random = scramble(static_cast<uint32_t>(at + i) * 0x9E3779B9u + s.key);
    }
    weight[i] = from_float<W>(next.weight);
    first[i] = stored_moment<M>(next.first, random & 0xFFFFu);
    second[i] = stored_moment<M>(next.second, random >> 16);
    if constexpr (kCopies) copy[i] = from_float<BFloat16>(next.weight);
  }
}

template <typename G, typename W, typename M>
inline void step_run(const AdamWArgs& a, int64_t begin, int64_t end) {
  const auto* grad = static_cast<const G*>(a.grad);
  auto* weight = static_cast<W*>(a.weight);
  auto *first = static_cast<M*>(a.first), *second = static_cast<M*>(a.second);
  const int64_t n = end - begin;
  if (a.copy != nullptr) {
    step_piece<G, W, M, true>(a.rule, a.scalars, grad + begin, weight + begin, a.copy + begin,
                              first + begin, second + begin, begin, n);
  } else {
    step_piece<G, W, M, false>(a.rule, a.scalars, grad + begin, weight + begin, nullptr,
                               first + begin, second + begin, begin, n);
  }
}

inline void step_any(const AdamWArgs& a, int64_t begin, int64_t end) {
  with_type(a.grad_type, [&]<typename G>(G*) {
    with_type(a.weight_type, [&]<typename W>(W*) {
      with_type(a.moment_type, [&]<typename M>(M*) { step_run<G, W, M>(a, begin, end); });
    });
  });
}

template <typename T>
inline float sum_run(const T* __restrict x, int64_t n) {
  alignas(64) float lanes[kNormLanes] = {};
  int64_t at = 0;
  for (; at + kNormLanes <= n; at += kNormLanes) {
    for (int64_t i = 0; i < kNormLanes; ++i) {
      const float value = to_float(x[at + i]);
      lanes[i] = fmaf(value, value, lanes[i]);
    }
  }
  for (int64_t i = 0; i < n - at; ++i) {
    const float value = to_float(x[at + i]);
    lanes[i] = fmaf(value, value, lanes[i]);
  }
  alignas(64) float sums[kNormLanes / 2];
  for (int64_t width = kNormLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) sums[i] = lanes[2 * i] + lanes[2 * i + 1];
    for (int64_t i = 0; i < width; ++i) lanes[i] = sums[i];
  }
  return lanes[0];
}

inline float sum_any(const void* x, FloatType type, int64_t n) {
  float sum = 0;
  with_type(type, [&]<typename T>(T*) { sum = sum_run(static_cast<const T*>(x), n); });
  return sum;
}

// Operands of an addition.
struct Addition {
  const void *a, *b;
  FloatType a_type, b_type;
  float* out;
};

inline void add_any(const Addition& p, int64_t begin, int64_t end) {
  with_type(p.a_type, [&]<typename A>(A*) {
    with_type(p.b_type, [&]<typename B>(B*) {
      const auto* a = static_cast<const A*>(p.a);
      const auto* b = static_cast<const B*>(p.b);
      for (int64_t i = begin; i < end; ++i) p.out[i] = to_float(a[i]) + to_float(b[i]);
    });
  });
}

}  // namespace

void adamw(const AdamWArgs& args, int64_t begin, int64_t end, Isa isa) {
  if (args.scalars.go == 0) return;
  const DefaultFloatState state;
  PerIsa<step_any>::run(isa, args, begin, end);
}

float sum_of_squares(const void* x, FloatType type, int64_t n, Isa isa) {
  const DefaultFloatState state;
  return PerIsa<sum_any>::run(isa, x, type, n);
}

void add_gradients(const void* a, FloatType a_type, const void* b, FloatType b_type, float* out,
                   int64_t begin, int64_t end, Isa isa) {
  const DefaultFloatState state;
  PerIsa<add_any>::run(isa, {a, b, a_type, b_type, out}, begin, end);
}

}  // namespace moe8::cpu
