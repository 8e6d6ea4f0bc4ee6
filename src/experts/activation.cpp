// SPDX-License-Identifier: BSD-3-Clause
#include "experts/activation.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>

#include "autograd/group_bias.h"
#include "routing/rows.h"

namespace moe8 {
namespace {

// The two parts of [rows, 2h], as views.
struct GateUp {
  at::Tensor gate, up;
};

GateUp parts_of(const ExpertsCall& call, const at::Tensor& x) {
  const int64_t h = call.hidden;
  if (call.layout == GateUpLayout::HALVES) return {x.narrow(1, 0, h), x.narrow(1, h, h)};
  const at::Tensor pairs = x.view({x.size(0), h, 2});
  return {pairs.select(2, 0), pairs.select(2, 1)};
}

// h', block by block.
class HiddenRows {
 public:
  HiddenRows(const ExpertsCall& call, const ActivationInputs& inputs) : H_(inputs.H) {
    const ExpertOrder& order = call.order;
    if (inputs.scores.defined()) scores_ = gather_slots(inputs.scores, order).unsqueeze(1);
    scales_ = scores_.defined() && call.placement == ScorePlacement::INPUT;
    if (!inputs.bias.defined()) return;
    // One row of zeros more, for the rows in no group.
    bias_ = at::constant_pad_nd(inputs.bias, {0, 0, 0, 1});
    expert_ = at::searchsorted(order.offs, at::arange(order.rows(), order.offs.options()),
                               /*out_int32=*/false, /*right=*/true);
  }

  at::Tensor block(int64_t begin, int64_t size) const {
    at::Tensor x = source(begin, size);
    if (scales_) x = x * scores(begin, size);
    if (bias_.defined()) x = x + bias_.index_select(0, expert_.narrow(0, begin, size));
    return x;
  }
  /// Of H, float32.
  at::Tensor source(int64_t begin, int64_t size) const {
    return H_.narrow(0, begin, size).to(at::kFloat);
  }
  /// [size, 1]
  at::Tensor scores(int64_t begin, int64_t size) const { return scores_.narrow(0, begin, size); }
  bool scales_inputs() const { return scales_; }
  bool scales_outputs() const { return scores_.defined() && !scales_; }

 private:
  at::Tensor H_, scores_, bias_, expert_;
  bool scales_ = false;
};

// act(h') of rows, and what its derivatives are made of. All float32.
struct Activated {
  at::Tensor value;    // A
  at::Tensor to_gate;  // dA/dg
  at::Tensor to_up;    // dA/du
};

at::Tensor value_of(const ExpertsCall& call, const GateUp& x) {
  if (call.activation == Activation::SWIGLU) return at::silu(x.gate).mul_(x.up);
  const at::Tensor gate = x.gate.clamp_max(call.limit);
  return x.up.clamp(-call.limit, call.limit)
      .add_(1)
      .mul_(gate)
      .mul_((gate * call.alpha).sigmoid_());
}

Activated swiglu(const GateUp& x) {
  const at::Tensor sigmoid = at::sigmoid(x.gate);
  const at::Tensor silu = x.gate * sigmoid;
  // u * sigmoid * (1 + g * (1 - sigmoid))
  at::Tensor to_gate = (1 - sigmoid).mul_(x.gate).add_(1).mul_(sigmoid).mul_(x.up);
  return {silu * x.up, to_gate, silu};
}

Activated clamped_swiglu(const ExpertsCall& call, const GateUp& x) {
  const at::Tensor gate = x.gate.clamp_max(call.limit);
  const at::Tensor up = x.up.clamp(-call.limit, call.limit).add_(1);
  const at::Tensor sigmoid = (gate * call.alpha).sigmoid_();
  const at::Tensor glu = gate * sigmoid;
  // (u' + 1) * sigmoid * (1 + alpha * g' * (1 - sigmoid)), and nothing through what was clamped
  at::Tensor to_gate = (1 - sigmoid).mul_(gate).mul_(call.alpha).add_(1).mul_(sigmoid).mul_(up);
  to_gate.mul_(x.gate.le(call.limit));
  return {up * glu, to_gate, glu * x.up.abs().le(call.limit)};
}

Activated activated(const ExpertsCall& call, const GateUp& x) {
  return call.activation == Activation::SWIGLU ? swiglu(x) : clamped_swiglu(call, x);
}

at::Tensor empty_rows(const ExpertsCall& call, const at::Tensor& like, int64_t columns,
                      at::ScalarType dtype, bool is_wanted = true) {
  if (!is_wanted) return {};
  return at::empty({call.rows(), columns}, like.options().dtype(dtype));
}

// The gradient of gate and up from that of the activation's value.
void to_gate_up(const ExpertsCall& call, const at::Tensor& dact, const Activated& act,
                at::Tensor& dh) {
  GateUp to = parts_of(call, dh);
  at::mul_out(to.gate, dact, act.to_gate);
  at::mul_out(to.up, dact, act.to_up);
}

at::Tensor scaled_if(bool is_scaled, const at::Tensor& x, const HiddenRows& hidden, int64_t begin,
                     int64_t size) {
  return is_scaled ? x * hidden.scores(begin, size) : x;
}

}  // namespace

at::Tensor activate(const ExpertsCall& call, const ActivationInputs& inputs) {
  const HiddenRows hidden(call, inputs);
  const at::Tensor A = empty_rows(call, inputs.H, call.hidden, call.hidden_dtype);
  for_row_blocks(call.rows(), 2 * call.hidden, call.device, [&](int64_t begin, int64_t size) {
    const at::Tensor block = hidden.block(begin, size);
    A.narrow(0, begin, size).copy_(value_of(call, parts_of(call, block)));
  });
  return A;
}

ActivationGradTensors activate_backward(const ExpertsCall& call, const ActivationInputs& inputs,
                                        const at::Tensor& dA, bool wants_dH, bool wants_A,
                                        bool wants_scores, bool wants_bias) {
  const HiddenRows hidden(call, inputs);
  const int64_t h = call.hidden;
  const at::Tensor& H = inputs.H;
  ActivationGradTensors grads;
  grads.dH = empty_rows(call, H, 2 * h, call.hidden_dtype, wants_dH);
  grads.A = empty_rows(call, H, h, call.hidden_dtype, wants_A);
  const at::Tensor ds = at::empty({call.rows()}, H.options().dtype(at::kFloat));
  const at::Tensor dh_rows = empty_rows(call, H, 2 * h, at::kFloat, wants_bias);

  for_row_blocks(call.rows(), 4 * h, call.device, [&](int64_t begin, int64_t size) {
    const auto rows = [&](const at::Tensor& x) { return x.narrow(0, begin, size); };
    const at::Tensor block = hidden.block(begin, size);
    const Activated act = activated(call, parts_of(call, block));
    if (wants_A) {
      rows(grads.A).copy_(scaled_if(hidden.scales_outputs(), act.value, hidden, begin, size));
    }
    if (!dA.defined()) return;
    const at::Tensor dA_rows = rows(dA).to(at::kFloat);
    const at::Tensor dact = scaled_if(hidden.scales_outputs(), dA_rows, hidden, begin, size);
    if (wants_scores && hidden.scales_outputs()) rows(ds).copy_((dA_rows * act.value).sum(1));
    const bool scores_need_dh = wants_scores && hidden.scales_inputs();
    if (!wants_dH && !wants_bias && !scores_need_dh) return;
    at::Tensor dh = wants_bias ? rows(dh_rows) : at::empty_like(block);
    to_gate_up(call, dact, act, dh);
    if (scores_need_dh) rows(ds).copy_((dh * hidden.source(begin, size)).sum(1));
    if (wants_dH) {
      rows(grads.dH).copy_(scaled_if(hidden.scales_inputs(), dh, hidden, begin, size));
    }
  });

  if (wants_scores) grads.scores = to_slots(ds, call.order);
  if (wants_bias) grads.bias = group_sums(dh_rows, call.groups);
  return grads;
}

}  // namespace moe8
