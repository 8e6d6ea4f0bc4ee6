// SPDX-License-Identifier: BSD-3-Clause
// Who can compute a call of moe_experts: the list, and what its entries are asked.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "experts/arrived_tokens.h"
#include "experts/fused.h"
#include "experts/stages.h"

namespace moe8 {

/// The name that errors begin with.
inline constexpr const char* kMoeExperts = "moe_experts";

/// A checked call.
struct ExpertsRequest {
  ExpertsCall call;
  ExpertsTensors tensors;
  ColumnCodes column_codes = ColumnCodes::AUTO;  // as asked for; call.column_codes: as chosen
  bool has_own_config = false;  // ExpertsOptions::config: of all weights, whatever they are tagged
  std::optional<Config> gate, up, down;  // not set: high precision. up as gate where they are one
  ExpertAdapter adapter1{}, adapter3{}, adapter2{};
  double adapter_scale = 1;
};

struct ExpertsImplementationEntry {
  const char* name;
  ExpertsImplementation which;
  /// Nothing when it can, else why not.
  std::optional<std::string> (*refusal)(const ExpertsRequest& request);
  at::Tensor (*run)(const ExpertsRequest& request);
};

/// In the order of preference.
const std::vector<ExpertsImplementationEntry>& experts_implementations();

std::optional<std::string> fused_refusal(const ExpertsRequest& request);
at::Tensor run_fused(const ExpertsRequest& request);

/// at::_grouped_mm and LibTorch's operations, with the gradients that those have; the products of
/// converted weights by the hooks of src/convert/.
std::optional<std::string> unfused_refusal(const ExpertsRequest& request);
at::Tensor run_unfused(const ExpertsRequest& request);

/// moe_experts() of tokens that came from other ranks.
at::Tensor moe_experts_of(const ArrivedTokens& tokens, const at::Tensor& w1, const at::Tensor& w3,
                          const at::Tensor& w2, const ExpertsOptions& options);

}  // namespace moe8
