// SPDX-License-Identifier: BSD-3-Clause
// TokenExchange: who sends how many tokens to whom, dispatch and combine. What one does in forward the
// other does in backward.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <algorithm>
#include <mutex>
#include <numeric>
#include <utility>

#include "autograd/function_parts.h"
#include "base/check.h"
#include "experts/token_wire.h"
#include "moe8/expert_parallel.h"
#include "quantize/check_input.h"
#include "routing/cuda_rows.h"
#include "routing/rows.h"

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kExchangeOp = "token_exchange";
constexpr const char* kTravelOnce =
    "moe8: tokens that travelled cannot be differentiated twice (create_graph=true).";

// The ranks that hold experts of each token, once each and ascending; -1 in what is left.
// [T, k] experts -> int64 [T, min(k, size)]
at::Tensor ranks_of_tokens(const at::Tensor& experts, int64_t n_experts, int64_t size) {
  const at::Tensor chosen = experts.to(at::kLong);
  const at::Tensor is_known = chosen.ge(0).logical_and_(chosen.lt(n_experts));
  const at::Tensor rank = at::where(is_known, chosen.floor_divide(n_experts / size), size);
  at::Tensor sorted = std::get<0>(at::sort(rank, /*dim=*/1));
  if (sorted.size(1) > 1) {
    const at::Tensor repeats = sorted.slice(1, 1).eq(sorted.slice(1, 0, -1));
    sorted.slice(1, 1).masked_fill_(repeats, size);
    sorted = std::get<0>(at::sort(sorted, /*dim=*/1));
  }
  sorted = sorted.slice(1, 0, std::min(sorted.size(1), size));
  return sorted.masked_fill(sorted.eq(size), -1).contiguous();
}

}  // namespace

// Counts on their way between the ranks, and from a GPU to the host, while both compute on.
class Counts {
 public:
  /// @param told  [size, n]: a row for each rank
  Counts(const Group& group, const at::Tensor& told) : told_(told) {
    const std::vector<int64_t> ones(static_cast<size_t>(group.size()), 1);
    heard_ = begin_all_to_all(group, told, ones, ones);
    if (told.is_cpu()) return;
    const at::Tensor both = at::cat({told, heard_.wait()});
    both_ = at::empty(both.sizes(), both.options().device(at::kCPU).pinned_memory(true));
    both_.copy_(both, /*non_blocking=*/true);
    arrived_.emplace(told.device().type());
    arrived_->record(c10::impl::VirtualGuardImpl(told.device().type()).getStream(told.device()));
  }
  /// What this rank told, and below it what it heard: [2 size, n], on the host. Once.
  at::Tensor wait() {
    if (!arrived_) return at::cat({told_, heard_.wait()});
    arrived_->synchronize();
    return both_;
  }

 private:
  at::Tensor told_, both_;
  Pending heard_;
  std::optional<c10::Event> arrived_;
};

struct TokenExchange::Impl {
  Impl(const Group& g, const at::Tensor& e, int64_t n)
      : group(g),
        experts(e.detach()),
        n_experts(n),
        order(expert_order(ranks_of_tokens(experts, n, g.size()), g.size())) {
    // To each rank how many tokens come, and what they must agree on.
    const at::Tensor agreed =
        at::full({group.size()}, n * kMostSlots + e.size(1), order.counts.options());
    counts.emplace(group, at::stack({order.counts, agreed}, 1));
  }

  static constexpr int64_t kMostSlots = int64_t{1} << 20;
  int64_t own_experts() const { return n_experts / group.size(); }
  int64_t first_expert() const { return group.rank() * own_experts(); }

  /// Waits for the counts.
  void know() {
    const std::lock_guard lock(knowing);
    if (!counts) return;
    const at::Tensor numbers = counts->wait();
    counts.reset();
    const int64_t* const pairs = numbers.const_data_ptr<int64_t>();
    const size_t size = static_cast<size_t>(group.size());
    for (size_t r = 0; r < size; ++r) {
      rows_to.push_back(pairs[2 * r]);
      rows_from.push_back(pairs[2 * (size + r)]);
      const int64_t other = pairs[2 * (size + r) + 1];
      MOE8_CHECK(other == pairs[1], kExchangeOp, "experts", "expected ", experts.size(1), " of ",
                 n_experts, " experts on every rank of group '", group.name(), "', got ",
                 other % kMostSlots, " of ", other / kMostSlots, " from rank ", r);
    }
    sent = std::accumulate(rows_to.begin(), rows_to.end(), int64_t{0});
    received = std::accumulate(rows_from.begin(), rows_from.end(), int64_t{0});
    const at::Tensor slots = order.slot_of_row.narrow(0, 0, sent);
    token_of_row = order.top_k() > 0 ? slots.floor_divide(order.top_k()) : slots;
  }

  /// [T, ...] -> [S, ...]: each token once for every rank it goes to, by rank.
  at::Tensor rows_to_send(const at::Tensor& x) const { return x.index_select(0, token_of_row); }

  at::Tensor forth(const at::Tensor& rows) const {
    return all_to_all(group, rows, rows_to, rows_from);
  }
  at::Tensor back(const at::Tensor& rows) const {
    return all_to_all(group, rows, rows_from, rows_to);
  }

  /// [S, N] -> [T, N]: ranks ascending, in float32, rounded once.
  at::Tensor sum_of_ranks(const at::Tensor& rows, at::ScalarType dtype) const {
    if (!cuda_rows_refusal(rows, order)) return cuda_sum_rows(rows, order, {}, {}, dtype);
    const at::Tensor rest = at::zeros({order.rows() - sent, rows.size(1)}, rows.options());
    return sum_rows(at::cat({rows, rest}), order, {}, dtype);
  }

  Group group;
  at::Tensor experts;
  int64_t n_experts;
  ExpertOrder order;             // of the tokens by rank, which stand in the place of experts
  std::optional<Counts> counts;  // until they are known
  std::mutex knowing;
  std::vector<int64_t> rows_to, rows_from;
  int64_t sent = 0, received = 0;
  at::Tensor token_of_row;  // int32 [S]
};

namespace {

using Exchange = TokenExchange::Impl;

// What a graph keeps of an exchange.
struct Travelled : torch::CustomClassHolder {
  Travelled(std::shared_ptr<Exchange> e, RowCode c, at::ScalarType t)
      : exchange(std::move(e)), code(std::move(c)), dtype(t) {}

  std::shared_ptr<Exchange> exchange;
  RowCode code;
  at::ScalarType dtype;
};
using TravelledPtr = c10::intrusive_ptr<Travelled>;

TravelledPtr travelled_of(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<Travelled>(ctx->saved_data["travelled"].toCapsule());
}

at::Tensor bytes_of(const at::Tensor& t) {
  return t.contiguous().view(at::kByte);
}

// What goes with a token beside its data, as bytes: scales, experts, scores.
struct Beside {
  at::Tensor scale, experts, scores;  // scale: bytes or undefined; scores may be undefined

  at::Tensor packed() const {
    std::vector<at::Tensor> parts{bytes_of(experts)};
    if (scores.defined()) parts.push_back(bytes_of(scores));
    if (scale.defined()) parts.push_back(scale);
    return at::cat(parts, 1);
  }
  static Beside unpacked(const at::Tensor& bytes, int64_t k, bool has_scores, int64_t scale_bytes) {
    int64_t at = 0;
    const auto next = [&](int64_t width) {
      at += width;
      // A copy even of one row, whose strides would not fit the numbers in it.
      return bytes.narrow(1, at - width, width).clone(at::MemoryFormat::Contiguous);
    };
    Beside beside;
    beside.experts = next(4 * k).view(at::kInt);
    if (has_scores) beside.scores = next(4 * k).view(at::kFloat);
    if (scale_bytes > 0) beside.scale = next(scale_bytes);
    return beside;
  }
};

struct Dispatch : torch::autograd::Function<Dispatch> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x,
                               const std::optional<at::Tensor>& scores,
                               const TravelledPtr& travelled) {
    const PlainOps guard;
    ctx->saved_data["travelled"] = c10::IValue::make_capsule(travelled);
    const Exchange& exchange = *travelled->exchange;
    const EncodedRows tokens = travelled->code.encode(x);
    Beside beside{.scale = tokens.scale, .experts = exchange.experts.to(at::kInt), .scores = {}};
    if (scores) beside.scores = *scores;
    const at::Tensor came = exchange.forth(exchange.rows_to_send(beside.packed()));
    const at::Tensor data = exchange.forth(exchange.rows_to_send(tokens.data));
    const Beside got = Beside::unpacked(came, exchange.experts.size(1), scores.has_value(),
                                        travelled->code.scale_bytes());
    const at::Tensor local = got.experts - exchange.first_expert();
    const at::Tensor is_away = local.lt(0).logical_or_(local.ge(exchange.own_experts()));
    variable_list out{travelled->code.decode({data, got.scale}),
                      local.masked_fill(is_away, -1).to(at::kInt)};
    if (scores) out.push_back(got.scores.masked_fill(is_away, 0));
    ctx->mark_non_differentiable({out[1]});
    ctx->save_for_backward({is_away});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto travelled = travelled_of(ctx);
    const Exchange& exchange = *travelled->exchange;
    variable_list result(3);
    {
      const PlainOps guard;
      if (ctx->needs_input_grad(0)) {
        const at::Tensor rows = written_out(grads[0]).to(travelled->dtype).contiguous();
        result[0] = exchange.sum_of_ranks(exchange.back(rows), travelled->dtype);
      }
      // Of each slot one rank has a gradient: the sum has no rounding.
      if (grads.size() > 2 && ctx->needs_input_grad(1)) {
        const at::Tensor is_away = ctx->get_saved_variables()[0];
        const at::Tensor rows = written_out(grads[2]).to(at::kFloat).masked_fill(is_away, 0);
        result[1] = exchange.sum_of_ranks(exchange.back(rows), at::kFloat);
      }
    }
    if (at::GradMode::is_enabled()) forbid_double_backward(result, kTravelOnce);
    return result;
  }
};

struct Combine : torch::autograd::Function<Combine> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows,
                            const TravelledPtr& travelled) {
    const PlainOps guard;
    ctx->saved_data["travelled"] = c10::IValue::make_capsule(travelled);
    const Exchange& exchange = *travelled->exchange;
    return exchange.sum_of_ranks(exchange.back(rows), travelled->dtype);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto travelled = travelled_of(ctx);
    const Exchange& exchange = *travelled->exchange;
    variable_list result(2);
    {
      const PlainOps guard;
      const at::Tensor grad = written_out(grads[0]).to(travelled->dtype).contiguous();
      EncodedRows rows = travelled->code.encode(grad);
      rows.data = exchange.forth(exchange.rows_to_send(rows.data));
      if (rows.scale.defined()) rows.scale = exchange.forth(exchange.rows_to_send(rows.scale));
      result[0] = travelled->code.decode(rows);
    }
    if (at::GradMode::is_enabled()) forbid_double_backward(result, kTravelOnce);
    return result;
  }
};

RowCode row_code(const char* argument, const at::Tensor& x, const std::optional<Config>& wire,
                 RowsOf which) {
  if (!wire) return RowCode(x.size(1), x.scalar_type());
  const std::optional<std::string> refusal = RowCode::refusal(*wire, which);
  MOE8_CHECK(!refusal, kExchangeOp, argument, "expected a config whose codes can travel, got ",
             to_string(*wire), ": ", *refusal);
  return RowCode(x.size(1), x.scalar_type(), *wire, which);
}

void check_tokens(const char* argument, const at::Tensor& x, int64_t rows,
                  const at::Tensor& experts) {
  check_dtype(kExchangeOp, argument, x);
  MOE8_CHECK(x.dim() == 2 && x.size(0) == rows && x.device() == experts.device(), kExchangeOp,
             argument, "expected [", rows, ", d] on ", experts.device(), " to fit experts of ",
             experts.sizes(), ", got ", describe(x));
}

}  // namespace

TokenExchange::TokenExchange(const Group& group, const at::Tensor& experts, int64_t n_experts) {
  check_dense(kExchangeOp, "experts", experts);
  const bool is_index = experts.scalar_type() == at::kLong || experts.scalar_type() == at::kInt;
  MOE8_CHECK(experts.dim() == 2 && is_index && experts.size(1) < Impl::kMostSlots, kExchangeOp,
             "experts", "expected int64 or int32 [T, k], got ", describe(experts));
  MOE8_CHECK(n_experts >= 1 && n_experts % group.size() == 0, kExchangeOp, "n_experts",
             "expected a multiple of ", group.size(), ", the size of group '", group.name(),
             "', got ", n_experts);
  impl_ = std::make_shared<Impl>(group, experts, n_experts);
}

ReceivedTokens TokenExchange::dispatch(const at::Tensor& x, const at::Tensor& scores,
                                       const std::optional<Config>& wire) const {
  Impl& impl = *impl_;
  check_tokens("x", x, impl.experts.size(0), impl.experts);
  if (scores.defined()) {
    check_dense(kExchangeOp, "scores", scores);
    MOE8_CHECK(scores.sizes() == impl.experts.sizes() && scores.device() == x.device() &&
                   at::isFloatingType(scores.scalar_type()),
               kExchangeOp, "scores", "expected floating-point ", impl.experts.sizes(), " on ",
               x.device(), " as experts, got ", describe(scores));
  }
  RowCode code = row_code("wire", x, wire, RowsOf::INPUT);
  impl.know();
  std::optional<at::Tensor> weights;
  if (scores.defined()) weights = scores.to(at::kFloat);
  const variable_list out = Dispatch::apply(
      x, weights, c10::make_intrusive<Travelled>(impl_, std::move(code), x.scalar_type()));
  return {out[0], out[1], weights ? out[2] : at::Tensor()};
}

at::Tensor TokenExchange::combine(const at::Tensor& rows,
                                  const std::optional<Config>& grad_wire) const {
  impl_->know();
  check_tokens("rows", rows, impl_->received, impl_->experts);
  RowCode code = row_code("grad_wire", rows, grad_wire, RowsOf::GRAD_OUTPUT);
  return Combine::apply(rows,
                        c10::make_intrusive<Travelled>(impl_, std::move(code), rows.scalar_type()));
}

const Group& TokenExchange::group() const {
  return impl_->group;
}
int64_t TokenExchange::n_experts() const {
  return impl_->n_experts;
}
int64_t TokenExchange::sent() const {
  impl_->know();
  return impl_->sent;
}
int64_t TokenExchange::received() const {
  impl_->know();
  return impl_->received;
}

}  // namespace moe8
