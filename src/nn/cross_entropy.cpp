// SPDX-License-Identifier: BSD-3-Clause
// The loss of logits and of hidden rows. Where there are no kernels, LibTorch's on float32 logits.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "autograd/function_parts.h"
#include "base/check.h"
#include "moe8/model_ops.h"
#include "nn/model_kernels.h"

namespace moe8 {
namespace {

constexpr const char* kLoss = "cross_entropy";
constexpr const char* kLossOnce =
    "moe8: cross_entropy cannot be differentiated twice (create_graph=true).";

// ---- of logits ----------------------------------------------------------------
struct LossOfLogits : torch::autograd::Function<LossOfLogits> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& logits,
                            const at::Tensor& targets, const std::optional<at::Tensor>& divisor,
                            int64_t ignore_index, bool overwrites) {
    const at::Tensor rows = logits.contiguous();
    const LossResults made =
        cuda_cross_entropy(rows, targets, ignore_index, divisor ? *divisor : at::Tensor());
    ctx->save_for_backward({rows, targets, made.lse, made.divisor});
    ctx->saved_data["ignore_index"] = ignore_index;
    ctx->saved_data["overwrites"] = overwrites;
    ctx->saved_data["spent"] = false;
    return made.loss;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    MOE8_CHECK(!ctx->saved_data["spent"].toBool(), kLoss, "overwrite_logits",
               "the first backward wrote the gradient over the logits. Set it to false to go "
               "through a graph twice.");
    const auto saved = ctx->get_saved_variables();
    const at::Tensor& logits = saved[0];
    const bool overwrites = ctx->saved_data["overwrites"].toBool();
    at::Tensor grad = overwrites ? logits.detach() : at::empty_like(logits);
    cuda_cross_entropy_backward(logits, saved[1], ctx->saved_data["ignore_index"].toInt(),
                                {{}, saved[2], saved[3]}, grads[0].contiguous(), grad);
    if (overwrites) {
      ctx->saved_data["spent"] = true;
      logits.unsafeGetTensorImpl()->bump_version();  // for others who saved them
    }
    torch::autograd::variable_list results{std::move(grad), {}, {}, {}, {}};
    if (at::GradMode::is_enabled()) forbid_double_backward(results, kLossOnce);
    return results;
  }
};

// The mean, or where a divisor is given the sum of the rows' losses divided by it.
at::Tensor loss_of_rows(const at::Tensor& logits, const at::Tensor& targets,
                        const at::Tensor& divisor, int64_t ignore_index, bool overwrites) {
  if (model_kernels_take({logits})) {
    const auto given = divisor.defined() ? std::optional(divisor) : std::nullopt;
    return LossOfLogits::apply(logits, targets.contiguous(), given, ignore_index, overwrites);
  }
  const at::Tensor wide = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
  const auto reduction = divisor.defined() ? at::Reduction::Sum : at::Reduction::Mean;
  const at::Tensor loss = at::cross_entropy_loss(wide, targets, {}, reduction, ignore_index);
  return divisor.defined() ? loss / divisor : loss;
}

void check_targets(const char* op, const at::Tensor& targets, at::IntArrayRef rows,
                   const at::Device& device) {
  MOE8_CHECK(
      targets.scalar_type() == at::kLong && targets.sizes() == rows && targets.device() == device,
      op, "targets", "expected int64 ", rows, " on ", device, ", got ", targets.scalar_type(), " ",
      targets.sizes(), " on ", targets.device());
}

// ---- of hidden rows, in chunks ----------------------------------------------------
// Logits of a chunk are gone before those of the next are made, because their gradients are
// computed at once.
struct LossInChunks : torch::autograd::Function<LossInChunks> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            const at::Tensor& weight, const at::Tensor& targets,
                            int64_t ignore_index, int64_t rows_per_chunk) {
    const bool needs_x = x.requires_grad(), needs_weight = weight.requires_grad();
    const at::Tensor divisor = targets.ne(ignore_index).sum().to(at::kFloat);
    at::Tensor loss = at::zeros({}, divisor.options());
    at::Tensor grad_x = needs_x ? at::empty_like(x) : at::Tensor();
    at::Tensor grad_weight =
        needs_weight ? at::zeros(weight.sizes(), weight.options().dtype(at::kFloat)) : at::Tensor();
    const at::AutoGradMode with_graph(needs_x || needs_weight);
    const at::Tensor own_weight = weight.detach().requires_grad_(needs_weight);
    for (int64_t begin = 0; begin < x.size(0); begin += rows_per_chunk) {
      const int64_t count = std::min(rows_per_chunk, x.size(0) - begin);
      const at::Tensor rows = x.detach().narrow(0, begin, count).requires_grad_(needs_x);
      const at::Tensor of_chunk =
          loss_of_rows(at::linear(rows, own_weight), targets.narrow(0, begin, count), divisor,
                       ignore_index, /*overwrites=*/true);
      loss = loss + of_chunk.detach();
      torch::autograd::variable_list inputs;
      if (needs_x) inputs.push_back(rows);
      if (needs_weight) inputs.push_back(own_weight);
      if (inputs.empty()) continue;
      const auto grads = torch::autograd::grad({of_chunk}, inputs);
      if (needs_x) grad_x.narrow(0, begin, count).copy_(grads.front());
      if (needs_weight) grad_weight.add_(grads.back());
    }
    ctx->save_for_backward(
        {grad_x, needs_weight ? grad_weight.to(weight.scalar_type()) : at::Tensor()});
    return loss;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    torch::autograd::variable_list results(5);
    const auto saved = ctx->get_saved_variables();
    for (size_t i = 0; i < saved.size(); ++i) {
      if (saved[i].defined()) results[i] = (saved[i] * grads[0]).to(saved[i].scalar_type());
    }
    if (at::GradMode::is_enabled()) forbid_double_backward(results, kLossOnce);
    return results;
  }
};

}  // namespace

at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& targets,
                         const CrossEntropyOptions& options) {
  MOE8_CHECK(logits.dim() > 0 && logits.size(-1) > 0 && logits.is_floating_point(), kLoss, "logits",
             "expected a floating [..., V] with V > 0, got ", logits.scalar_type(), " ",
             logits.sizes());
  check_targets(kLoss, targets, logits.sizes().slice(0, logits.dim() - 1), logits.device());
  const bool overwrites = options.overwrite_logits && !logits.is_leaf() && logits.is_contiguous();
  return loss_of_rows(logits.reshape({-1, logits.size(-1)}), targets.flatten(), {},
                      options.ignore_index, overwrites);
}

at::Tensor linear_cross_entropy(const at::Tensor& x, const at::Tensor& weight,
                                const at::Tensor& targets,
                                const LinearCrossEntropyOptions& options) {
  constexpr const char* kOp = "linear_cross_entropy";
  MOE8_CHECK(x.dim() > 0 && x.is_floating_point(), kOp, "x", "expected a floating [..., D], got ",
             x.scalar_type(), " ", x.sizes());
  MOE8_CHECK(weight.dim() == 2 && weight.size(1) == x.size(-1) && weight.size(0) > 0, kOp, "weight",
             "expected [V, ", x.size(-1), "] with V > 0, got ", weight.sizes());
  MOE8_CHECK(options.rows_per_chunk >= 0, kOp, "rows_per_chunk", "expected 0 or more, got ",
             options.rows_per_chunk);
  check_targets(kOp, targets, x.sizes().slice(0, x.dim() - 1), x.device());
  const at::Tensor rows = x.reshape({-1, x.size(-1)});
  if (options.rows_per_chunk == 0 || options.rows_per_chunk >= rows.size(0)) {
    return loss_of_rows(at::linear(rows, weight), targets.flatten(), {}, options.ignore_index,
                        /*overwrites=*/true);
  }
  return LossInChunks::apply(rows, weight, targets.flatten(), options.ignore_index,
                             options.rows_per_chunk);
}

}  // namespace moe8
