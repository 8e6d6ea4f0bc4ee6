// SPDX-License-Identifier: BSD-3-Clause
// Tokens as the layer on their experts' rank takes them: TokenExchange::dispatch() without the detour
// over values, and with the order of their rows.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "experts/token_wire.h"
#include "moe8/expert_parallel.h"
#include "moe8/routing.h"

namespace moe8 {

/// Writes rows [first, first + out.size(0)) of a result.
using RowsWriter = std::function<void(int64_t first, const at::Tensor& out)>;

/// The layer's result on its way back to the tokens' ranks.
class RowsUnderWay;

struct ArrivedTokens {
  at::Tensor x;                     // [R, d]; with codes a stand-in without values, for autograd
  std::optional<TokenCodes> codes;  // of x
  at::Tensor experts;               // [R, k] int32, as in ReceivedTokens
  at::Tensor scores;                // the same
  ExpertOrder order;                // of experts: rows in groups only

  /// Begins to send the gradient of x back, which the backward of this exchange then waits for. To be
  /// called in backward at most once, with what autograd will be given as the gradient of x.
  std::function<void(const at::Tensor& grad)> send_x_grad;

  /// Sends the layer's result back while it is made: each rank's rows leave as soon as they are written.
  /// To be called in forward at most once. What it returns stands for the result, has its sizes and no
  /// values; combine_arrived() then waits for what travels.
  std::function<at::Tensor(const RowsWriter& write)> send_result{};
  std::shared_ptr<RowsUnderWay> result{};
};

/// Checks as dispatch(). @param as_codes  codes stay codes where they travel
ArrivedTokens receive_tokens(const TokenExchange& exchange, const at::Tensor& x,
                             const at::Tensor& scores, const std::optional<Config>& wire,
                             bool as_codes);

/// TokenExchange::combine() of what the layer made of them: its result, or what stands for it.
at::Tensor combine_arrived(const TokenExchange& exchange, const ArrivedTokens& tokens,
                           const at::Tensor& rows, const std::optional<Config>& grad_wire);

}  // namespace moe8
