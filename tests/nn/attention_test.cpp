// SPDX-License-Identifier: BSD-3-Clause
// Attention with sinks, windows and scales: its formula in float64, the kernel of a CPU beside it.
#include "nn/attention.h"

#include <ATen/Context.h>

#include <cmath>

#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::sqnr_db;

struct Inputs {
  at::Tensor q, k, v, sinks;

  Inputs to(at::ScalarType dtype) const {
    const auto leaf = [&](const at::Tensor& x) { return x.to(dtype).detach().requires_grad_(); };
    return {leaf(q), leaf(k), leaf(v), leaf(sinks)};
  }
};

Inputs random_inputs(int64_t kv_heads) {
  at::manual_seed(kv_heads);
  const auto random = [](int64_t heads) {
    return at::randn({2, 11, heads, 16}, at::kDouble).transpose(1, 2);
  };
  return {random(4), random(kv_heads), random(kv_heads), at::randn({4}, at::kDouble)};
}

// Each query's weights as they are defined, key by key.
at::Tensor by_definition(const Inputs& in, int64_t window, double scale, bool has_sinks) {
  const at::Tensor k = in.k.repeat_interleave(4 / in.k.size(1), 1);
  const at::Tensor v = in.v.repeat_interleave(4 / in.v.size(1), 1);
  const at::Tensor logits = at::matmul(in.q, k.transpose(2, 3)) * scale;
  const at::Tensor position = at::arange(11);
  const at::Tensor distance = position.unsqueeze(1) - position.unsqueeze(0);
  const at::Tensor sees = distance.ge(0).logical_and(distance.lt(window));
  const at::Tensor weights = logits.exp() * sees;
  at::Tensor sum = weights.sum(3, true);
  if (has_sinks) sum = sum + in.sinks.exp().view({1, 4, 1, 1});
  return at::matmul(weights / sum, v);
}

struct AttentionCase {
  int64_t kv_heads, window;
  double scale;
  bool has_sinks;
};

void expect_formula(const AttentionCase& c, at::ScalarType dtype) {
  SCOPED_TRACE(c10::str(dtype, " key heads ", c.kv_heads, " window ", c.window, " scale ", c.scale,
                        " sinks ", c.has_sinks));
  const Inputs exact = random_inputs(c.kv_heads).to(at::kDouble);
  const at::Tensor expected =
      by_definition(exact, c.window, c.scale > 0 ? c.scale : 0.25, c.has_sinks);
  const at::Tensor grad = at::randn_like(expected);
  expected.backward(grad);
  const Inputs in = exact.to(dtype);
  AttentionOptions options{.scale = c.scale, .window = {}, .sinks = {}};
  if (c.window < 11) options.window = window_mask(11, 11, c.window, at::dtype(dtype));
  if (c.has_sinks) options.sinks = in.sinks;
  const at::Tensor out = causal_attention(in.q, in.k, in.v, options);
  out.backward(grad.to(dtype));
  const double least = dtype == at::kBFloat16 ? 35 : 110;
  EXPECT_GT(sqnr_db(expected, out.to(at::kDouble)), least);
  const auto compare = [&](const at::Tensor& a, const at::Tensor& b, const char* name) {
    EXPECT_GT(sqnr_db(a.grad(), b.grad().to(at::kDouble)), least) << name;
  };
  compare(exact.q, in.q, "q");
  compare(exact.k, in.k, "k");
  compare(exact.v, in.v, "v");
  if (c.has_sinks) compare(exact.sinks, in.sinks, "sinks");
}

TEST(Attention, SinksWindowsAndScalesAreTheirFormula) {
  std::vector<AttentionCase> cases;
  for (const int64_t kv_heads : {4, 2}) {
    for (const int64_t window : {11, 3}) {
      for (const double scale : {0.0, 0.4}) {
        cases.push_back({kv_heads, window, scale, true});
        cases.push_back({kv_heads, window, scale, false});
      }
    }
  }
  for (const AttentionCase& c : cases) {
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      expect_formula(c, dtype);
    }
  }
}

}  // namespace
}  // namespace moe8
