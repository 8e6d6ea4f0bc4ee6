// SPDX-License-Identifier: BSD-3-Clause
// Experts spread over the ranks of a group: each rank holds n_experts / size of them, tokens travel to
// the ranks of their experts and the experts' results back. Groups: parallel.h; experts: experts.h.
//
// T tokens of this rank, k experts each. A token goes to each rank once, however many of its experts
// live there, and one result comes back from it: the sum over these experts. R tokens are received.
// Every rank calls the same functions in the same order, forward and backward, with the same widths,
// dtypes and options, and the same of its tensors ask for gradients; its T may be 0. A rank or an
// expert without tokens is nothing special.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "moe8/config.h"
#include "moe8/experts.h"
#include "moe8/parallel.h"

namespace moe8 {

/// Tokens as the rank of their experts gets them: those of rank 0, then of rank 1, and so on, each
/// rank's in their order.
struct ReceivedTokens {
  at::Tensor x;        // [R, d]
  at::Tensor experts;  // [R, k] int32: from 0 among the experts of this rank; -1: not here
  at::Tensor scores;   // [R, k] float32, 0 where the expert is not here; undefined where none came
};

/// The way of one batch of tokens to their experts and back. A copy is the same exchange.
class TokenExchange {
 public:
  /// Begins to tell the ranks how many tokens they will get. dispatch() waits for it, so what a
  /// program computes in between, such as shared experts, overlaps with it.
  /// @param group      whose rank r holds the experts [r, r + 1) * n_experts / size
  /// @param experts    [T, k] int32 or int64, of all n_experts; others, such as -1, are nowhere
  /// @param n_experts  a multiple of the group's size
  TokenExchange(const Group& group, const at::Tensor& experts, int64_t n_experts);

  /// Sends each token to the ranks of its experts.
  /// @param x       [T, d] bf16 or float32
  /// @param scores  [T, k] floating-point, or undefined
  /// @param wire    not set: x itself travels. A grouped config: the codes and scales that its first
  ///                product makes of x along rows; what is received are their values, in x's dtype.
  ///                An error where it has no such codes, or backward reads x in high precision
  /// Differentiable once in x and scores. The gradient of x passes through the rounding of `wire`,
  /// travels back in x's dtype, and is the sum over ranks, ascending, in float32, rounded once.
  ReceivedTokens dispatch(const at::Tensor& x, const at::Tensor& scores,
                          const std::optional<Config>& wire = std::nullopt) const;

  /// The sum of what the ranks made of each token, ascending, in float32, rounded once.
  /// @param rows  [R, d] bf16 or float32, of the received tokens
  /// @param grad_wire  as wire in dispatch(), for the gradient of the result, which travels to the
  ///                   experts in backward: the codes that a product with this config makes of it
  /// @return      [T, d] of the dtype of rows
  /// Differentiable once in rows.
  at::Tensor combine(const at::Tensor& rows,
                     const std::optional<Config>& grad_wire = std::nullopt) const;

  const Group& group() const;
  int64_t n_experts() const;
  int64_t sent() const;      // tokens, each counted for every rank it goes to; waits for the counts
  int64_t received() const;  // R; waits for the counts

  struct Impl;
  const std::shared_ptr<Impl>& impl() const { return impl_; }

 private:
  std::shared_ptr<Impl> impl_;
};

/// What travels of tokens.
enum class TokenWire {
  AUTO,             // CODES where forward and backward read tokens as codes; else VALUES
  VALUES,           // x in its dtype
  CODES,            // the codes and scales of the first product: about half of bf16
  CODES_BOTH_WAYS,  // and in backward the gradient of the result, as those of the second product
};

/// moe_experts() over the ranks of a group, each with its own tokens:
///
///   out[t] = round( sum over ranks r of round( sum_j s[t, j] expert[e](x[t]) ) )
///                                       e = experts[t, j] of rank r; round: to x's dtype
///
/// Weights and biases are those of this rank's experts, n_experts / size of them; other arguments as
/// those of moe_experts. Bits: equal to moe_experts of one process that has the tokens of all ranks
/// and adds up per rank as above, for the result, for the gradients of weights and of scores; with
/// CODES x stands for the values of its codes. Against a plain sum over all experts only the order of
/// sums and the roundings above differ.
/// @param experts  [T, k], of all experts of the group
at::Tensor moe_experts_parallel(const Group& group, const at::Tensor& x, const at::Tensor& w1,
                                const at::Tensor& w3, const at::Tensor& w2,
                                const at::Tensor& experts, const at::Tensor& scores,
                                const ExpertsOptions& options = {},
                                TokenWire wire = TokenWire::AUTO);

/// The same in an exchange that has begun.
at::Tensor moe_experts_parallel(const TokenExchange& exchange, const at::Tensor& x,
                                const at::Tensor& w1, const at::Tensor& w3, const at::Tensor& w2,
                                const at::Tensor& scores, const ExpertsOptions& options = {},
                                TokenWire wire = TokenWire::AUTO);

}  // namespace moe8
