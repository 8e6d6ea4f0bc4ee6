// SPDX-License-Identifier: BSD-3-Clause
// The router's arithmetic: by the kernels of a GPU, or in LibTorch's operations, which bring the
// gradients.
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/topk.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>

#include "base/check.h"
#include "moe8/routing.h"
#include "quantize/check_input.h"
#include "routing/cuda_router.h"

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kRouteTokens = "route_tokens";
constexpr double kLeastSum = 1e-20;  // keeps scores that all are 0 from becoming NaN

void check_arguments(const at::Tensor& logits, const RouterOptions& options,
                     const std::optional<at::Tensor>& bias) {
  check_dtype(kRouteTokens, "logits", logits);
  MOE8_CHECK(logits.dim() == 2 && logits.size(1) >= 1, kRouteTokens, "logits",
             "expected [T, E] with E >= 1, got ", describe(logits));
  const int64_t E = logits.size(1);
  MOE8_CHECK(options.top_k >= 1 && options.top_k <= E, kRouteTokens, "options.top_k",
             "expected 1 to ", E, ", the experts there are, got ", options.top_k);
  MOE8_CHECK(options.score_function == ScoreFunction::SOFTMAX ||
                 options.score_function == ScoreFunction::SIGMOID,
             kRouteTokens, "options.score_function",
             "expected softmax or sigmoid, got an invalid enumerator");
  MOE8_CHECK(options.n_groups >= 1 && E % options.n_groups == 0 &&
                 (options.n_groups == 1 || E / options.n_groups >= 2),
             kRouteTokens, "options.n_groups", "expected equal groups of two or more of ", E,
             " experts, got ", options.n_groups);
  MOE8_CHECK(options.top_k_groups >= 1 && options.top_k_groups <= options.n_groups &&
                 options.top_k <= options.top_k_groups * (E / options.n_groups),
             kRouteTokens, "options.top_k_groups", "expected 1 to ", options.n_groups,
             " groups that hold ", options.top_k, " experts, got ", options.top_k_groups);
  if (!bias) return;
  check_dense(kRouteTokens, "bias", *bias);
  MOE8_CHECK(bias->dim() == 1 && bias->size(0) == E && bias->device() == logits.device() &&
                 at::isFloatingType(bias->scalar_type()),
             kRouteTokens, "bias", "expected floating-point [", E, "] on ", logits.device(),
             ", got ", describe(*bias));
}

// ---- in LibTorch's operations -----------------------------------------------------
at::Tensor scores_of_all(const at::Tensor& logits, const RouterOptions& options) {
  const at::Tensor wide = logits.to(at::kFloat);
  return options.score_function == ScoreFunction::SIGMOID ? at::sigmoid(wide)
                                                          : at::softmax(wide, /*dim=*/1);
}

at::Tensor scores_of_chosen(const at::Tensor& scores, const at::Tensor& experts,
                            const RouterOptions& options) {
  at::Tensor chosen = scores.gather(1, experts);
  if (options.normalize) chosen = chosen / (chosen.sum(1, /*keepdim=*/true) + kLeastSum);
  return chosen * options.scale;
}

// -inf for the experts of groups that a token does not choose.
at::Tensor in_best_groups(const at::Tensor& preference, const RouterOptions& options) {
  if (options.top_k_groups == options.n_groups) return preference;
  const at::Tensor groups = preference.unflatten(1, {options.n_groups, -1});  // [T, groups, each]
  const at::Tensor worth = std::get<0>(groups.topk(2, /*dim=*/2)).sum(2);
  const at::Tensor best = std::get<1>(worth.topk(options.top_k_groups, /*dim=*/1));
  const at::Tensor left_out = at::ones_like(worth, at::kBool).scatter_(1, best, 0);
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  return groups.masked_fill(left_out.unsqueeze(2), kNever).flatten(1);
}

RoutedTokens route_by_operations(const at::Tensor& logits, const RouterOptions& options,
                                 const std::optional<at::Tensor>& bias) {
  const at::Tensor scores = scores_of_all(logits, options);
  const at::Tensor preference = bias ? scores.detach() + bias->detach() : scores.detach();
  const at::Tensor experts =
      std::get<1>(at::topk(in_best_groups(preference, options), options.top_k, /*dim=*/1));
  return {experts, scores_of_chosen(scores, experts, options)};
}

// ---- by kernels -------------------------------------------------------------------
struct Options : torch::CustomClassHolder {
  explicit Options(const RouterOptions& o) : options(o) {}
  RouterOptions options;
};

struct Route : torch::autograd::Function<Route> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& logits,
                               const std::optional<at::Tensor>& bias,
                               const c10::intrusive_ptr<Options>& options) {
    RoutedTokens routed = cuda_route(logits, options->options, bias ? *bias : at::Tensor());
    ctx->save_for_backward({logits, routed.experts});
    ctx->saved_data["options"] = c10::IValue::make_capsule(options);
    ctx->mark_non_differentiable({routed.experts});
    return {routed.experts, routed.scores};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const at::Tensor& grad = grads[1];
    if (!grad.defined()) return {{}, {}, {}};
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &logits = saved[0], &experts = saved[1];
    const RouterOptions options =
        c10::static_intrusive_pointer_cast<Options>(ctx->saved_data["options"].toCapsule())
            ->options;
    if (!at::GradMode::is_enabled()) {
      return {cuda_route_backward(logits, options, experts, grad), {}, {}};
    }
    // To be differentiated again: LibTorch's operations can.
    const at::Tensor again = scores_of_chosen(scores_of_all(logits, options), experts, options);
    return {torch::autograd::grad({again}, {logits}, {grad}, /*retain_graph=*/true,
                                  /*create_graph=*/true)[0],
            {},
            {}};
  }
};

RoutedTokens route(const at::Tensor& logits, const RouterOptions& options,
                   const std::optional<at::Tensor>& bias) {
  if (cuda_router_refusal(logits, options)) return route_by_operations(logits, options, bias);
  variable_list routed = Route::apply(logits, bias, c10::make_intrusive<Options>(options));
  return {std::move(routed[0]), std::move(routed[1])};
}

}  // namespace

Routing route_tokens(const at::Tensor& logits, const RouterOptions& options,
                     const std::optional<at::Tensor>& bias) {
  const std::optional<at::Tensor> preferred = bias && bias->defined() ? bias : std::nullopt;
  check_arguments(logits, options, preferred);
  RoutedTokens routed = route(logits, options, preferred);
  Routing routing;
  routing.experts = std::move(routed.experts);
  routing.scores = std::move(routed.scores);
  routing.order = expert_order(routing.experts, logits.size(1));
  routing.tokens_per_expert = routing.order.counts;
  return routing;
}

}  // namespace moe8
