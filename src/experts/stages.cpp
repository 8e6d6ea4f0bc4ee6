// SPDX-License-Identifier: BSD-3-Clause
#include "experts/stages.h"

#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

#include "base/check.h"
#include "base/log.h"
#include "base/plain_text.h"

namespace moe8 {
namespace {

// Why the stages that come before `chosen` (all of them: nullptr) were passed over, a line each.
std::string refusals_before(const ExpertsCall& call, const ExpertStages* chosen) {
  std::string lines;
  for (const ExpertStages* stages : expert_stages()) {
    if (stages == chosen) break;
    lines += concat("\n  not ", stages->name(), ": ", stages->refusal(call).value_or("(it could)"));
  }
  return lines;
}

}  // namespace

std::string ExpertsCall::describe() const {
  return concat("stages of experts: ", order.tokens(), " tokens x ", order.top_k(), " of ",
                order.n_experts(), " experts, ", dim, " x ", hidden, ", ", x_dtype, " on ", device);
}

at::Tensor ExpertStages::combine(const ExpertsCall& call, const at::Tensor& rows,
                                 const at::Tensor& scores, const at::Tensor& bias) const {
  const at::Tensor out =
      at::empty({call.order.tokens(), call.dim}, rows.options().dtype(call.x_dtype));
  combine_into(call, rows, scores, bias, 0, out);
  return out;
}

const std::vector<const ExpertStages*>& expert_stages() {
  static const std::vector<const ExpertStages*> all = [] {
    std::vector<const ExpertStages*> stages;
    if (const ExpertStages* const on_kernels = cuda_stages()) stages.push_back(on_kernels);
    stages.push_back(&composite_stages());
    return stages;
  }();
  return all;
}

const ExpertStages& choose_expert_stages(const ExpertsCall& call) {
  for (const ExpertStages* stages : expert_stages()) {
    if (stages->refusal(call)) continue;
    if (logs_dispatch()) {
      log_dispatch(
          concat(call.describe(), "\n  -> ", stages->name(), refusals_before(call, stages)));
    }
    return *stages;
  }
  fail("moe_experts", "", concat("no ", call.describe(), refusals_before(call, nullptr)));
}

}  // namespace moe8
