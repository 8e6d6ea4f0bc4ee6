// SPDX-License-Identifier: BSD-3-Clause
// The layer of experts operation by operation.
#include <ATen/TensorOperators.h>
#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <variant>

#include "autograd/group_bias.h"
#include "autograd/low_precision_mm.h"
#include "experts/implementations.h"
#include "ops/products.h"
#include "routing/rows.h"

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// rows + bias[e], in float32.
struct AddGroupBias : torch::autograd::Function<AddGroupBias> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows, const at::Tensor& bias,
                            const at::Tensor& offs) {
    ctx->save_for_backward({offs});
    const at::Tensor out = rows.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
    add_group_bias(out, bias, offs);
    ctx->saved_data["dtype"] = static_cast<int64_t>(rows.scalar_type());
    return out;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {{}, {}, {}};
    const auto dtype = static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt());
    const at::Tensor offs = ctx->get_saved_variables()[0];
    return {grads[0].to(dtype), group_sums(grads[0].contiguous(), offs), {}};
  }
};

// What at::_grouped_mm takes: rows of whole 16 bytes, matrices that lie one way or the other.
bool fits_grouped_mm(const at::Tensor& W) {
  constexpr int64_t kBytes = 16;
  const auto whole = [&](int64_t n) { return n % (kBytes / int64_t(W.element_size())) == 0; };
  return (W.is_contiguous() || W.mT().is_contiguous()) && whole(W.size(1)) && whole(W.size(2)) &&
         W.numel() > 0;
}

/// The operations of one call.
class Unfused {
 public:
  explicit Unfused(const ExpertsRequest& request)
      : request_(request),
        call_(request.call),
        t_(request.tensors),
        in_groups_(rows_in_groups(call_.order)) {}

  at::Tensor run() const {
    const bool scales_inputs = t_.scores.defined() && call_.placement == ScorePlacement::INPUT;
    at::Tensor rows = permute_tokens(t_.x, call_.order);
    if (scales_inputs) rows = (rows * scores_by_row()).to(call_.x_dtype);
    const at::Tensor A = activation(rows).to(call_.hidden_dtype);
    const at::Tensor Y = product(A, t_.w2, request_.down, request_.adapter2);
    std::optional<at::Tensor> weights;
    if (t_.scores.defined() && !scales_inputs) weights = t_.scores;
    return combine_rows(with_bias(Y, t_.bias2), call_.order, weights, call_.x_dtype);
  }

 private:
  // [R, 1] float32: each slot as a token of its own.
  at::Tensor scores_by_row() const {
    ExpertOrder slots = call_.order;
    slots.experts = slots.experts.reshape({-1, 1});
    return permute_tokens(t_.scores.reshape({-1, 1}), slots);
  }

  at::Tensor with_bias(const at::Tensor& rows, const at::Tensor& bias) const {
    return bias.defined() ? AddGroupBias::apply(rows, bias, call_.order.offs) : rows;
  }

  at::Tensor product(const at::Tensor& rows, const at::Tensor& W,
                     const std::optional<Config>& config, const ExpertAdapter& adapter) const {
    const at::Tensor out = product(rows, W, config);
    if (!adapter.a.defined()) return out;
    const at::Tensor low = high_product(rows, adapter.a);
    return out + (high_product(low, adapter.b) * request_.adapter_scale).to(out.scalar_type());
  }

  at::Tensor product(const at::Tensor& rows, const at::Tensor& W,
                     const std::optional<Config>& config) const {
    if (request_.has_own_config) {
      return grouped_product(kMoeExperts, rows, W.transpose(-2, -1), call_.order.offs, *config,
                             out_dtype_of(*config, rows.scalar_type()));
    }
    return config ? hooked_product(rows, W) : high_product(rows, W);
  }

  at::Tensor high_product(const at::Tensor& rows, const at::Tensor& W) const {
    if (fits_grouped_mm(W)) return hooked_product(rows.to(W.scalar_type()), W);
    return low_precision_mm(rows, W, call_.order.offs, TrainingFormats{}, W.scalar_type());
  }

  // LibTorch leaves rows in no group as they were in memory.
  at::Tensor hooked_product(const at::Tensor& rows, const at::Tensor& W) const {
    const at::Tensor out = at::_grouped_mm(rows, W.transpose(-2, -1), call_.order.offs);
    return in_groups_.defined() ? at::where(in_groups_, out, at::zeros({}, out.options())) : out;
  }

  // [R, h] float32.
  at::Tensor activation(const at::Tensor& rows) const {
    at::Tensor gate, up;
    if (t_.w3.defined()) {
      gate = product(rows, t_.w1, request_.gate, request_.adapter1);
      up = product(rows, t_.w3, request_.up, request_.adapter3);
      if (t_.bias13.defined()) {
        const int64_t h = call_.hidden;
        gate = with_bias(gate, t_.bias13.narrow(1, 0, h));
        up = with_bias(up, t_.bias13.narrow(1, h, h));
      }
    } else {
      const at::Tensor H = with_bias(product(rows, t_.w1, request_.gate), t_.bias13);
      const bool halves = call_.layout == GateUpLayout::HALVES;
      const int64_t h = call_.hidden;
      gate = halves ? H.narrow(1, 0, h) : H.view({-1, h, 2}).select(2, 0);
      up = halves ? H.narrow(1, h, h) : H.view({-1, h, 2}).select(2, 1);
    }
    gate = gate.to(at::kFloat);
    up = up.to(at::kFloat);
    if (call_.activation == Activation::SWIGLU) return at::silu(gate) * up;
    gate = gate.clamp_max(call_.limit);
    up = up.clamp(-call_.limit, call_.limit);
    return (up + 1) * gate * at::sigmoid(gate * call_.alpha);
  }

  const ExpertsRequest& request_;
  const ExpertsCall& call_;
  const ExpertsTensors& t_;
  const at::Tensor in_groups_;
};

bool has_row_scales(const std::optional<Config>& config) {
  if (!config) return false;
  const TrainingFormats formats = training_formats(*config);
  const auto* format = std::get_if<Float8Format>(&formats.grad_weight.right);
  return format && format->round_scales_to_power_of_2;
}

}  // namespace

std::optional<std::string> unfused_refusal(const ExpertsRequest& r) {
  if (r.call.saved_hidden == SavedHidden::FLOAT8) return "its operations save what LibTorch's do";
  const bool has_codes = has_row_scales(r.gate) || has_row_scales(r.up) || has_row_scales(r.down);
  if (r.column_codes == ColumnCodes::FROM_ROW_CODES && has_codes) {
    return "its products quantize values only, not codes along rows again";
  }
  return std::nullopt;
}

at::Tensor run_unfused(const ExpertsRequest& request) {
  return Unfused(request).run();
}

}  // namespace moe8
