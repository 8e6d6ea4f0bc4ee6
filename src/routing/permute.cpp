// SPDX-License-Identifier: BSD-3-Clause
// permute_tokens and combine_rows: each is the gradient of the other.
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"
#include "moe8/routing.h"
#include "quantize/check_input.h"
#include "routing/rows.h"

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SharedOrder : torch::CustomClassHolder {
  explicit SharedOrder(ExpertOrder o) : order(std::move(o)) {
    order.counts = at::Tensor();  // nobody asks for them any more
  }
  ExpertOrder order;
};
using OrderPtr = c10::intrusive_ptr<SharedOrder>;

OrderPtr order_of(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<SharedOrder>(ctx->saved_data["order"].toCapsule());
}

at::ScalarType dtype_of(AutogradContext* ctx, const char* key) {
  return static_cast<at::ScalarType>(ctx->saved_data[key].toInt());
}
void keep_dtype(AutogradContext* ctx, const char* key, at::ScalarType dtype) {
  ctx->saved_data[key] = static_cast<int64_t>(dtype);
}

struct PermuteTokens : torch::autograd::Function<PermuteTokens> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const OrderPtr& order) {
    ctx->saved_data["order"] = c10::IValue::make_capsule(order);
    return gather_tokens(x, order->order);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {{}, {}};
    return {combine_rows(grads[0], order_of(ctx)->order), {}};
  }
};

// Rows in no group as zeros, whatever they hold.
at::Tensor without_rows_in_no_group(const at::Tensor& rows, const ExpertOrder& order) {
  const at::Tensor in_groups = rows_in_groups(order);
  return in_groups.defined() ? rows.masked_fill(in_groups.logical_not(), 0) : rows;
}

struct CombineRows : torch::autograd::Function<CombineRows> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows,
                            const std::optional<at::Tensor>& scores, const OrderPtr& order,
                            at::ScalarType out_dtype) {
    ctx->saved_data["order"] = c10::IValue::make_capsule(order);
    keep_dtype(ctx, "rows", rows.scalar_type());
    if (scores) ctx->save_for_backward({rows, *scores});
    return sum_rows(without_rows_in_no_group(rows, order->order), order->order,
                    scores ? *scores : at::Tensor(), out_dtype);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list result(4);
    if (!grads[0].defined()) return result;
    const ExpertOrder& order = order_of(ctx)->order;
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor grad = permute_tokens(grads[0], order).to(at::kFloat);
    if (saved.empty()) {
      result[0] = grad.to(dtype_of(ctx, "rows"));
      return result;
    }
    if (ctx->needs_input_grad(0)) {
      const at::Tensor weights = gather_slots(saved[1], order);
      result[0] = (grad * weights.unsqueeze(1)).to(dtype_of(ctx, "rows"));
    }
    if (ctx->needs_input_grad(1)) {
      const at::Tensor rows = without_rows_in_no_group(saved[0], order);
      const at::Tensor of_rows = (grad * rows).sum(1);
      result[1] = to_slots(of_rows, order);
    }
    return result;
  }
};

void check_order(const char* op, const ExpertOrder& order) {
  MOE8_CHECK(order.experts.defined() && order.slot_of_row.defined() &&
                 order.row_of_slot.defined() && order.offs.defined(),
             op, "order", "expected what expert_order() made, got undefined tensors");
}

// [rows, N] of the order's device.
void check_matrix(const char* op, const char* argument, const at::Tensor& x, int64_t rows,
                  const at::Device& device) {
  check_dtype(op, argument, x);
  MOE8_CHECK(x.dim() == 2 && x.size(0) == rows && x.device() == device, op, argument, "expected [",
             rows, ", N] on ", device, " as the order says, got ", describe(x));
}

}  // namespace

at::Tensor permute_tokens(const at::Tensor& x, const ExpertOrder& order) {
  constexpr const char* kOp = "permute_tokens";
  check_order(kOp, order);
  check_matrix(kOp, "x", x, order.tokens(), order.offs.device());
  return PermuteTokens::apply(x, c10::make_intrusive<SharedOrder>(order));
}

at::Tensor combine_rows(const at::Tensor& rows, const ExpertOrder& order,
                        const std::optional<at::Tensor>& scores,
                        std::optional<at::ScalarType> out_dtype) {
  constexpr const char* kOp = "combine_rows";
  check_order(kOp, order);
  check_matrix(kOp, "rows", rows, order.rows(), order.offs.device());
  if (out_dtype) check_out_dtype(kOp, "out_dtype", *out_dtype);
  std::optional<at::Tensor> weights;
  if (scores && scores->defined()) {
    check_dense(kOp, "scores", *scores);
    MOE8_CHECK(scores->sizes() == order.experts.sizes() && scores->device() == rows.device() &&
                   at::isFloatingType(scores->scalar_type()),
               kOp, "scores", "expected floating-point ", order.experts.sizes(), " on ",
               rows.device(), ", got ", describe(*scores));
    weights = scores->to(at::kFloat);
  }
  return CombineRows::apply(rows, weights, c10::make_intrusive<SharedOrder>(order),
                            out_dtype.value_or(rows.scalar_type()));
}

}  // namespace moe8
