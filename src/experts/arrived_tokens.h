// SPDX-License-Identifier: BSD-3-Clause
// Tokens as the layer on their experts' rank takes them: TokenExchange::dispatch() without the detour
// over values, and with the order of their rows.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>

#include "experts/token_wire.h"
#include "moe8/expert_parallel.h"
#include "moe8/routing.h"

namespace moe8 {

struct ArrivedTokens {
  at::Tensor x;                     // [R, d]; with codes a stand-in without values, for autograd
  std::optional<TokenCodes> codes;  // of x
  at::Tensor experts;               // [R, k] int32, as in ReceivedTokens
  at::Tensor scores;                // the same
  ExpertOrder order;                // of experts: rows in groups only

  /// Begins to send the gradient of x back, which the backward of this exchange then waits for. To be
  /// called in backward at most once, with what autograd will be given as the gradient of x.
  std::function<void(const at::Tensor& grad)> send_x_grad;
};

/// Checks as dispatch(). @param as_codes  codes stay codes where they travel
ArrivedTokens receive_tokens(const TokenExchange& exchange, const at::Tensor& x,
                             const at::Tensor& scores, const std::optional<Config>& wire,
                             bool as_codes);

}  // namespace moe8
