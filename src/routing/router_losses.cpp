// SPDX-License-Identifier: BSD-3-Clause
#include "moe8/router_losses.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>

#include "base/check.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

constexpr double kLeastScores = 1e-20;  // of scores that all are 0

void check_logits(const char* op, const at::Tensor& logits) {
  check_dtype(op, "logits", logits);
  MOE8_CHECK(logits.dim() == 2 && logits.size(0) >= 1 && logits.size(1) >= 1, op, "logits",
             "expected [T, E] with T, E >= 1, got ", describe(logits));
}

}  // namespace

at::Tensor load_balance_loss(const at::Tensor& logits, ScoreFunction score_function,
                             const at::Tensor& tokens_per_expert) {
  constexpr const char* kOp = "load_balance_loss";
  check_logits(kOp, logits);
  const int64_t E = logits.size(1);
  MOE8_CHECK(tokens_per_expert.defined() && tokens_per_expert.dim() == 1 &&
                 tokens_per_expert.size(0) == E && tokens_per_expert.device() == logits.device(),
             kOp, "tokens_per_expert", "expected [", E, "] on ", logits.device(), ", got ",
             describe(tokens_per_expert));
  const at::Tensor wide = logits.to(at::kFloat);
  at::Tensor scores = at::softmax(wide, /*dim=*/1);
  if (score_function == ScoreFunction::SIGMOID) {
    const at::Tensor each = at::sigmoid(wide);
    scores = each / (each.sum(1, /*keepdim=*/true) + kLeastScores);
  }
  const at::Tensor counts = tokens_per_expert.detach().to(at::kFloat);
  const at::Tensor share = counts / counts.sum().clamp_min(1);
  return (share * scores.mean(0)).sum() * static_cast<double>(E);
}

at::Tensor router_z_loss(const at::Tensor& logits) {
  check_logits("router_z_loss", logits);
  return at::logsumexp(logits.to(at::kFloat), /*dim=*/1).square().mean();
}

}  // namespace moe8
