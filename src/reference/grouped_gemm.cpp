// SPDX-License-Identifier: BSD-3-Clause
#include "reference/grouped_gemm.h"

#include <algorithm>

namespace moe8::reference {
namespace {

// f(group, row) for every row that belongs to a group.
template <typename F>
void for_each_row(const GroupedGemmArgs& a, F f) {
  int64_t row = 0;
  for (int64_t e = 0; e < a.E; ++e) {
    for (; row < a.ends[e]; ++row) f(e, row);
  }
}

}  // namespace

void grouped_gemm_out(const GroupedGemmArgs& a) {
  std::fill(a.out, a.out + a.M * a.N, 0.0);
  for_each_row(a, [&](int64_t e, int64_t m) {
    for (int64_t n = 0; n < a.N; ++n) {
      for (int64_t k = 0; k < a.K; ++k) {
        a.out[m * a.N + n] += double{a.left[m * a.K + k]} * a.right[(e * a.N + n) * a.K + k];
      }
    }
  });
}

void grouped_gemm_grad_input(const GroupedGemmArgs& a) {
  std::fill(a.out, a.out + a.M * a.K, 0.0);
  for_each_row(a, [&](int64_t e, int64_t m) {
    for (int64_t n = 0; n < a.N; ++n) {
      for (int64_t k = 0; k < a.K; ++k) {
        a.out[m * a.K + k] += double{a.left[m * a.N + n]} * a.right[(e * a.N + n) * a.K + k];
      }
    }
  });
}

void grouped_gemm_grad_weight(const GroupedGemmArgs& a) {
  std::fill(a.out, a.out + a.E * a.N * a.K, 0.0);
  for_each_row(a, [&](int64_t e, int64_t m) {
    for (int64_t n = 0; n < a.N; ++n) {
      for (int64_t k = 0; k < a.K; ++k) {
        a.out[(e * a.N + n) * a.K + k] += double{a.left[m * a.N + n]} * a.right[m * a.K + k];
      }
    }
  });
}

}  // namespace moe8::reference
