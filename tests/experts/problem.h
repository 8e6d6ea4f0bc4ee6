// SPDX-License-Identifier: BSD-3-Clause
// Calls of moe_experts for tests, and what they mean in float64, slot by slot.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "moe8/experts.h"
#include "testing/compare.h"

namespace moe8::testing {

/// The tensors of a call, separate gate and up; leaves that ask for gradients.
struct ExpertsProblem {
  at::Tensor x, w1, w3, w2, experts, scores;
  at::Tensor b1, b3, b2;  // undefined: none
  at::Tensor upstream;    // [T, d], the gradient of the output
  Activation activation = Activation::SWIGLU;
  ScorePlacement placement = ScorePlacement::OUTPUT;

  std::vector<at::Tensor> leaves() const {
    std::vector<at::Tensor> list;
    for (const at::Tensor& t : {x, w1, w3, w2, scores, b1, b3, b2}) {
      if (t.defined()) list.push_back(t);
    }
    return list;
  }
};

struct ExpertsShape {
  int64_t tokens = 64, top_k = 2, experts = 4, dim = 32, hidden = 48;
};

/// Normal values, scaled such that every intermediate result is about 1.
inline ExpertsProblem experts_problem(const ExpertsShape& s, at::ScalarType dtype, uint64_t seed,
                                      bool has_bias = false) {
  torch::manual_seed(seed);
  const auto leaf = [&](at::IntArrayRef sizes, double scale) {
    return (at::randn(sizes) * scale).to(dtype).requires_grad_();
  };
  const double by_dim = 1 / std::sqrt(double(std::max<int64_t>(s.dim, 1)));
  const double by_hidden = 1 / std::sqrt(double(std::max<int64_t>(s.hidden, 1)));
  ExpertsProblem p;
  p.x = leaf({s.tokens, s.dim}, 1);
  p.w1 = leaf({s.experts, s.hidden, s.dim}, by_dim);
  p.w3 = leaf({s.experts, s.hidden, s.dim}, by_dim);
  p.w2 = leaf({s.experts, s.dim, s.hidden}, by_hidden);
  p.experts = s.top_k <= s.experts
                  ? std::get<1>(at::topk(at::rand({s.tokens, s.experts}), s.top_k, 1))
                  : at::randint(s.experts, {s.tokens, s.top_k}, at::kLong);
  p.scores = (at::rand({s.tokens, s.top_k}) + 0.1).requires_grad_();
  p.upstream = at::randn({s.tokens, s.dim}).to(dtype);
  if (has_bias) {
    p.b1 = leaf({s.experts, s.hidden}, 0.5);
    p.b3 = leaf({s.experts, s.hidden}, 0.5);
    p.b2 = leaf({s.experts, s.dim}, 0.5);
  }
  return p;
}

/// The weights of a problem as parameters of a module.
struct ExpertWeightsImpl : torch::nn::Module {
  explicit ExpertWeightsImpl(const ExpertsProblem& p) {
    w1 = register_parameter("w1", p.w1.detach().clone());
    w2 = register_parameter("w2", p.w2.detach().clone());
    w3 = register_parameter("w3", p.w3.detach().clone());
  }
  at::Tensor w1, w2, w3;
};
TORCH_MODULE(ExpertWeights);

inline ExpertsProblem with_weights(ExpertsProblem p, const ExpertWeights& weights) {
  p.w1 = weights->w1;
  p.w2 = weights->w2;
  p.w3 = weights->w3;
  return p;
}

/// The result, and the gradients of leaves() in their order.
struct ExpertsResults {
  at::Tensor out;
  std::vector<at::Tensor> grads;
};

template <typename Compute>
ExpertsResults forward_backward(const ExpertsProblem& p, Compute compute) {
  const at::Tensor out = compute(p);
  const auto grads = torch::autograd::grad({out}, p.leaves(), {p.upstream.to(out.scalar_type())});
  return {out.detach(), grads};
}

/// moe_experts with what the problem says in the place of those options.
inline at::Tensor call_experts(const ExpertsProblem& p, ExpertsOptions options) {
  options.activation = p.activation;
  options.scores = p.placement;
  options.b1 = p.b1;
  options.b3 = p.b3;
  options.b2 = p.b2;
  return moe_experts(p.x, p.w1, p.w3, p.w2, p.experts, p.scores, options);
}

inline ExpertsResults run_experts(const ExpertsProblem& p, const ExpertsOptions& options) {
  return forward_backward(p, [&](const ExpertsProblem& q) { return call_experts(q, options); });
}

/// In float64, expert by expert, by LibTorch's own gradients.
inline at::Tensor dense_experts(const ExpertsProblem& p) {
  const auto bias = [](const at::Tensor& b, int64_t e) {
    return b.defined() ? b[e] : at::zeros({}, at::kDouble);
  };
  at::Tensor out = at::zeros_like(p.x);
  for (const at::Tensor& leaf : p.leaves()) out = out + 0 * leaf.sum();  // depends on all
  for (int64_t e = 0; e < p.w1.size(0); ++e) {
    for (int64_t j = 0; j < p.experts.size(1); ++j) {
      const at::Tensor is_here = p.experts.select(1, j).eq(e).nonzero().squeeze(1);
      const at::Tensor s = p.scores.defined()
                               ? p.scores.select(1, j).index_select(0, is_here).unsqueeze(1)
                               : at::ones({is_here.size(0), 1}, at::kDouble);
      at::Tensor x = p.x.index_select(0, is_here);
      if (p.placement == ScorePlacement::INPUT) x = x * s;
      at::Tensor gate = x.mm(p.w1[e].t()) + bias(p.b1, e), up = x.mm(p.w3[e].t()) + bias(p.b3, e);
      at::Tensor act;
      if (p.activation == Activation::SWIGLU) {
        act = at::silu(gate) * up;
      } else {
        const ExpertsOptions o;
        gate = gate.clamp_max(o.limit);
        act = (up.clamp(-o.limit, o.limit) + 1) * gate * at::sigmoid(gate * o.alpha);
      }
      at::Tensor y = act.mm(p.w2[e].t()) + bias(p.b2, e);
      if (p.placement == ScorePlacement::OUTPUT) y = y * s;
      out = out.index_add(0, is_here, y);
    }
  }
  return out;
}

inline ExpertsResults in_float64(const ExpertsProblem& p) {
  ExpertsProblem exact = p;
  for (at::Tensor* t : {&exact.x, &exact.w1, &exact.w3, &exact.w2, &exact.scores, &exact.b1,
                        &exact.b3, &exact.b2}) {
    if (t->defined()) *t = t->detach().to(at::kDouble).requires_grad_();
  }
  exact.upstream = p.upstream.to(at::kDouble);
  return forward_backward(exact, dense_experts);
}

}  // namespace moe8::testing
