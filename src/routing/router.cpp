// SPDX-License-Identifier: BSD-3-Clause
// The router's arithmetic, in LibTorch's operations, which bring the gradients.
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/topk.h>

#include "base/check.h"
#include "moe8/routing.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

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
  if (!bias) return;
  check_dense(kRouteTokens, "bias", *bias);
  MOE8_CHECK(bias->dim() == 1 && bias->size(0) == E && bias->device() == logits.device() &&
                 at::isFloatingType(bias->scalar_type()),
             kRouteTokens, "bias", "expected floating-point [", E, "] on ", logits.device(),
             ", got ", describe(*bias));
}

}  // namespace

Routing route_tokens(const at::Tensor& logits, const RouterOptions& options,
                     const std::optional<at::Tensor>& bias) {
  const std::optional<at::Tensor> preferred = bias && bias->defined() ? bias : std::nullopt;
  check_arguments(logits, options, preferred);
  const at::Tensor wide = logits.to(at::kFloat);
  const at::Tensor scores = options.score_function == ScoreFunction::SIGMOID
                                ? at::sigmoid(wide)
                                : at::softmax(wide, /*dim=*/1);
  const at::Tensor preference = preferred ? scores.detach() + preferred->detach() : scores.detach();

  Routing routing;
  routing.experts = std::get<1>(at::topk(preference, options.top_k, /*dim=*/1));
  routing.scores = scores.gather(1, routing.experts);
  if (options.normalize) {
    routing.scores = routing.scores / (routing.scores.sum(1, /*keepdim=*/true) + kLeastSum);
  }
  routing.scores = routing.scores * options.scale;
  routing.order = expert_order(routing.experts, logits.size(1));
  routing.tokens_per_expert = routing.order.counts;
  return routing;
}

}  // namespace moe8
