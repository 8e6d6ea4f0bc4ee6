// SPDX-License-Identifier: BSD-3-Clause
// moe_experts_parallel: tokens to the ranks of their experts, moe_experts there, and the way back.
#include "moe8/expert_parallel.h"

#include <ATen/autocast_mode.h>

#include "base/check.h"
#include "experts/implementations.h"
#include "experts/token_wire.h"
#include "quantize/check_input.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

constexpr const char* kParallelOp = "moe_experts_parallel";

std::optional<Config> config_of_product(const at::Tensor& w, const ExpertsOptions& options) {
  if (options.config || !w.defined()) return options.config;
  const std::optional<Tagged> tagged = find_tag(w);
  return tagged ? std::optional<Config>(*tagged->config) : std::nullopt;
}

bool is_codes(TokenWire wire) {
  return wire == TokenWire::CODES || wire == TokenWire::CODES_BOTH_WAYS;
}

// The config whose codes travel; nothing for values.
std::optional<Config> choose_wire(TokenWire wire, const at::Tensor& w1, const at::Tensor& w3,
                                  const ExpertsOptions& options) {
  if (wire == TokenWire::VALUES) return std::nullopt;
  const std::optional<Config> gate = config_of_product(w1, options);
  const std::optional<Config> up = w3.defined() ? config_of_product(w3, options) : gate;
  std::optional<std::string> refusal;
  if (!gate) {
    refusal = "w1 is not converted";
  } else if (!(gate == up)) {
    refusal = "w1 and w3 have different configs";
  } else if (options.adapter1.a.defined() || options.adapter3.a.defined()) {
    refusal = "adapters read their values";
  } else {
    refusal = RowCode::refusal(*gate, RowsOf::INPUT);
  }
  MOE8_CHECK(!refusal || !is_codes(wire), kParallelOp, "wire", "expected weights whose tokens can ",
             "travel as codes, got: ", *refusal);
  return refusal ? std::nullopt : gate;
}

// The same for the gradient of the result.
std::optional<Config> choose_grad_wire(TokenWire wire, const at::Tensor& w2,
                                       const ExpertsOptions& options) {
  if (wire != TokenWire::CODES_BOTH_WAYS) return std::nullopt;
  const std::optional<Config> down = config_of_product(w2, options);
  const std::optional<std::string> refusal =
      down ? RowCode::refusal(*down, RowsOf::GRAD_OUTPUT)
           : std::optional<std::string>("w2 is not converted");
  MOE8_CHECK(!refusal, kParallelOp, "wire",
             "expected weights whose gradients can travel as codes, ", "got: ", *refusal);
  return down;
}

void check_own_experts(const TokenExchange& exchange, const at::Tensor& w1) {
  const int64_t own = exchange.n_experts() / exchange.group().size();
  MOE8_CHECK(w1.defined() && w1.dim() == 3 && w1.size(0) == own, kParallelOp, "w1", "expected the ",
             own, " experts of this rank, of ", exchange.n_experts(), " by ",
             exchange.group().size(), " ranks, got ",
             w1.defined() ? describe(w1) : "an undefined tensor");
}

bool casts(at::DeviceType device) {
  return (device == at::kCPU || device == at::kCUDA) && at::autocast::is_autocast_enabled(device);
}

// Autocast sees tensors, not what stands for them.
at::Tensor experts_of_arrived(const ArrivedTokens& tokens, const at::Tensor& w1,
                              const at::Tensor& w3, const at::Tensor& w2,
                              const ExpertsOptions& options) {
  if (!casts(tokens.x.device().type())) return moe_experts_of(tokens, w1, w3, w2, options);
  return moe_experts(tokens.x, w1, w3, w2, tokens.experts, tokens.scores, options);
}

}  // namespace

at::Tensor moe_experts_parallel(const TokenExchange& exchange, const at::Tensor& x,
                                const at::Tensor& w1, const at::Tensor& w3, const at::Tensor& w2,
                                const at::Tensor& scores, const ExpertsOptions& options,
                                TokenWire wire) {
  check_own_experts(exchange, w1);
  const std::optional<Config> codes = choose_wire(wire, w1, w3, options);
  const ArrivedTokens tokens =
      receive_tokens(exchange, x, scores, codes, /*as_codes=*/!casts(x.device().type()));
  const at::Tensor rows = experts_of_arrived(tokens, w1, w3, w2, options);
  return combine_arrived(exchange, tokens, rows, choose_grad_wire(wire, w2, options));
}

at::Tensor moe_experts_parallel(const Group& group, const at::Tensor& x, const at::Tensor& w1,
                                const at::Tensor& w3, const at::Tensor& w2,
                                const at::Tensor& experts, const at::Tensor& scores,
                                const ExpertsOptions& options, TokenWire wire) {
  MOE8_CHECK(w1.defined() && w1.dim() == 3, kParallelOp, "w1",
             "expected [E, h, d], the experts of this rank");
  const TokenExchange exchange(group, experts, group.size() * w1.size(0));
  return moe_experts_parallel(exchange, x, w1, w3, w2, scores, options, wire);
}

}  // namespace moe8
