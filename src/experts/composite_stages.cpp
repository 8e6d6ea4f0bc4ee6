// SPDX-License-Identifier: BSD-3-Clause
// The stages in LibTorch's operations: their definition. Every operand has its source, from which
// its forms are made as those of any product; the codes along columns that are made from codes along
// rows are made here.

#include <variant>

#include "experts/activation.h"
#include "experts/stages.h"
#include "routing/rows.h"

namespace moe8 {
namespace {

// True for a form along the rows of groups that is to be made from what the codes along columns
// stand for.
bool is_from_row_codes(const ExpertsCall& call, const FormKey& key) {
  const auto* format = std::get_if<Float8Format>(&key.format);
  return call.column_codes == ColumnCodes::FROM_ROW_CODES && key.axis == 0 && format &&
         format->granularity == ScalingGranularity::AXISWISE && format->round_scales_to_power_of_2;
}

// Values of e4m3 codes with power-of-two scales are numbers of bf16: nothing is lost between.
Form from_row_codes(const ExpertsCall& call, const at::Tensor& x, const FormKey& key) {
  const Operand by_rows = operand_values(x, key.format, /*axis=*/1, std::nullopt, x.scalar_type());
  return by_rows.form(key, call.groups);
}

Operand with_forms(const ExpertsCall& call, const at::Tensor& x, const std::vector<FormKey>& keys) {
  Operand operand(x);
  for (const FormKey& key : keys) {
    if (is_from_row_codes(call, key)) {
      operand.add(from_row_codes(call, x, key));
    } else {
      operand.expect(key);
    }
  }
  return operand;
}

class CompositeStages final : public ExpertStages {
 public:
  const char* name() const override { return "composite"; }

  std::optional<std::string> refusal(const ExpertsCall&) const override { return std::nullopt; }

  GatheredTokens gather_tokens(const ExpertsCall& call, const Tokens& tokens,
                               const std::vector<FormKey>& keys,
                               bool /*for_backward*/) const override {
    return {with_forms(call, gather_tokens_of(call, tokens.values()), keys), {}};
  }
  Operand gather_saved(const ExpertsCall& call, const SavedTokens& saved,
                       const std::vector<FormKey>& keys) const override {
    return with_forms(call, gather_tokens_of(call, saved.tokens.values()), keys);
  }
  Operand gather_grads(const ExpertsCall& call, const at::Tensor& grad_out,
                       const std::vector<FormKey>& keys) const override {
    return with_forms(call, gather_tokens_of(call, grad_out), keys);
  }

  Operand activate(const ExpertsCall& call, const ActivationInputs& inputs,
                   const std::vector<FormKey>& keys) const override {
    return with_forms(call, moe8::activate(call, inputs), keys);
  }
  ActivationGrads activate_backward(const ExpertsCall& call, const ActivationInputs& inputs,
                                    const at::Tensor& dA,
                                    const ActivationWants& wants) const override {
    const ActivationGradTensors made = moe8::activate_backward(
        call, inputs, dA, !wants.dH.empty(), !wants.A.empty(), wants.scores, wants.bias);
    ActivationGrads grads{.scores = made.scores, .bias = made.bias};
    if (!wants.dH.empty()) grads.dH = with_forms(call, made.dH, wants.dH);
    if (!wants.A.empty()) grads.A = with_forms(call, made.A, wants.A);
    return grads;
  }

  void combine_into(const ExpertsCall& call, const at::Tensor& rows, const at::Tensor& scores,
                    const at::Tensor& bias, int64_t first_token,
                    const at::Tensor& out) const override {
    sum_rows_into(rows, call.order, scores, bias, first_token, out);
  }

 private:
  static at::Tensor gather_tokens_of(const ExpertsCall& call, const at::Tensor& x) {
    return moe8::gather_tokens(x, call.order);
  }
};

}  // namespace

const ExpertStages& composite_stages() {
  static const CompositeStages stages;
  return stages;
}

}  // namespace moe8
