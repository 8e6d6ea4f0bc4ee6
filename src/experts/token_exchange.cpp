// SPDX-License-Identifier: BSD-3-Clause
// TokenExchange: who sends how many tokens to whom, dispatch and combine. What one does in forward the
// other does in backward.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
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
#include "dist/activity.h"
#include "dist/exchanges.h"
#include "experts/arrived_tokens.h"
#include "experts/cuda_exchange.h"
#include "experts/token_wire.h"
#include "moe8/expert_parallel.h"
#include "quantize/check_input.h"
#include "routing/rows.h"

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kExchangeOp = "token_exchange";
constexpr const char* kTravelOnce =
    "moe8: tokens that travelled cannot be differentiated twice (create_graph=true).";

// In LibTorch's operations: for the CPU, and the definition.
Destinations composite_destinations(const at::Tensor& experts, int64_t n_experts, int64_t size) {
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
  return {sorted.masked_fill(sorted.eq(size), -1).contiguous(),
          rank.reshape({-1, 1}).eq(at::arange(size, rank.options())).sum(0)};
}

Destinations destinations(const at::Tensor& experts, int64_t n_experts, int64_t size) {
  return cuda_takes_exchange(experts, n_experts, size, 0)
             ? cuda_destinations(experts, n_experts, size)
             : composite_destinations(experts, n_experts, size);
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
    const WaitsForOthers waits(WaitsForOthers::For::DEVICE);
    arrived_->synchronize();
    return both_;
  }

 private:
  at::Tensor told_, both_;
  Pending heard_;
  std::optional<c10::Event> arrived_;
};

struct TokenExchange::Impl {
  Impl(Group g, const at::Tensor& e, int64_t n)
      : group(std::move(g)), experts(e.detach()), n_experts(n) {
    const int64_t size = group.size();
    const Destinations to = destinations(experts, n, size);
    order = expert_order(to.ranks, size);
    // To each rank how many tokens come, how many of its experts they have chosen, and what they
    // must agree on.
    const at::Tensor agreed = at::full({size}, n * kMostSlots + e.size(1), order.counts.options());
    counts.emplace(group, at::stack({order.counts, to.choices.to(at::kLong), agreed}, 1));
  }

  static constexpr int64_t kMostSlots = int64_t{1} << 20;
  static constexpr int64_t kNumbers = 3;  // that a rank tells another
  int64_t own_experts() const { return n_experts / group.size(); }
  int64_t first_expert() const { return group.rank() * own_experts(); }

  /// Waits for the counts.
  void know() {
    const std::lock_guard lock(knowing);
    if (!counts) return;
    const at::Tensor numbers = counts->wait();
    counts.reset();
    const int64_t size = group.size();
    const int64_t* const told = numbers.const_data_ptr<int64_t>();
    for (int64_t r = 0; r < size; ++r) {
      const int64_t* const heard = told + kNumbers * (size + r);
      rows_to.push_back(told[kNumbers * r]);
      rows_from.push_back(heard[0]);
      choices += heard[1];
      MOE8_CHECK(heard[2] == told[2], kExchangeOp, "experts", "expected ", experts.size(1), " of ",
                 n_experts, " experts on every rank of group '", group.name(), "', got ",
                 heard[2] % kMostSlots, " of ", heard[2] / kMostSlots, " from rank ", r);
    }
    sent = std::accumulate(rows_to.begin(), rows_to.end(), int64_t{0});
    received = std::accumulate(rows_from.begin(), rows_from.end(), int64_t{0});
    order = only_in_groups(std::move(order), sent);
  }

  /// [T, N] -> [S, N]: each token once for every rank it goes to, by rank.
  at::Tensor rows_to_send(const at::Tensor& x) const { return gather_tokens(x, order); }

  /// Of the tokens' rows to the ranks of their experts, and of such rows back.
  Pending begin_forth(const at::Tensor& x) const { return begin_forth_rows(rows_to_send(x)); }
  Pending begin_forth_rows(const at::Tensor& rows) const {
    return begin_all_to_all(group, rows, rows_to, rows_from);
  }
  Pending begin_back(const at::Tensor& rows) const {
    return begin_all_to_all(group, rows, rows_from, rows_to);
  }

  /// [S, N] -> [T, N]: ranks ascending, in float32, rounded once.
  at::Tensor sum_of_ranks(const at::Tensor& rows, at::ScalarType dtype) const {
    return sum_rows(rows, order, {}, dtype);
  }

  Group group;
  at::Tensor experts;
  int64_t n_experts;
  ExpertOrder order;             // of the tokens by rank, which stand in the place of experts; once
                                 // the counts are known of rows that travel only
  std::optional<Counts> counts;  // until they are known
  std::mutex knowing;
  std::vector<int64_t> rows_to, rows_from;
  int64_t sent = 0, received = 0;
  int64_t choices = 0;  // of this rank's experts, by all tokens
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

  // Of a dispatch. What forward hands over beside its outputs:
  bool as_codes = false;            // those that came are not to be made values
  std::optional<TokenCodes> codes;  // then these
  ExpertOrder order;                // of what came
  // In backward: the gradient of x on its way back, where somebody has sent it already.
  Pending grad_coming;
};
using TravelledPtr = c10::intrusive_ptr<Travelled>;

TravelledPtr travelled_of(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<Travelled>(ctx->saved_data["travelled"].toCapsule());
}

at::Tensor bytes_of(const at::Tensor& t) {
  return t.contiguous().view(at::kByte);
}

// ---- beside the data ----------------------------------------------------------------
bool kernels_take(const Exchange& exchange, int64_t scale_bytes) {
  return cuda_takes_exchange(exchange.experts, exchange.n_experts, exchange.group.size(),
                             scale_bytes);
}

/// Rows to send: experts, scores and scales of a token, as bytes.
at::Tensor rows_beside(const Exchange& exchange, const BesideTokens& tokens) {
  if (kernels_take(exchange, tokens.scale.defined() ? tokens.scale.size(1) : 0)) {
    return cuda_pack_beside(tokens, exchange.order);
  }
  std::vector<at::Tensor> parts{bytes_of(tokens.experts.to(at::kInt))};
  if (tokens.scores.defined()) parts.push_back(bytes_of(tokens.scores));
  if (tokens.scale.defined()) parts.push_back(tokens.scale);
  return exchange.rows_to_send(at::cat(parts, 1));
}

/// What came of such rows: experts count from this rank's first one, -1 with a score of 0 elsewhere.
BesideTokens tokens_beside(const Exchange& exchange, const at::Tensor& bytes, bool has_scores,
                           int64_t scale_bytes) {
  const BesideLayout layout{exchange.experts.size(1), has_scores, scale_bytes,
                            exchange.first_expert(), exchange.own_experts()};
  if (kernels_take(exchange, scale_bytes)) return cuda_unpack_beside(bytes, layout);
  int64_t at = 0;
  const auto next = [&](int64_t width) {
    at += width;
    // A copy even of one row, whose strides would not fit the numbers in it.
    return bytes.narrow(1, at - width, width).clone(at::MemoryFormat::Contiguous);
  };
  const at::Tensor local = next(4 * layout.top_k).view(at::kInt) - layout.first_expert;
  const at::Tensor is_away = local.lt(0).logical_or_(local.ge(layout.own_experts));
  BesideTokens tokens{local.masked_fill(is_away, -1), {}, {}};
  if (has_scores) {
    tokens.scores = next(4 * layout.top_k).view(at::kFloat).masked_fill(is_away, 0);
  }
  if (scale_bytes > 0) tokens.scale = next(scale_bytes);
  return tokens;
}

// ---- dispatch -------------------------------------------------------------------------
// Has sizes, dtype and device, and no values.
at::Tensor stand_in(const at::TensorOptions& options, int64_t rows, int64_t columns) {
  return at::empty({1}, options.requires_grad(false)).expand({rows, columns});
}

}  // namespace

// Made rank by rank, the next one first and this one last: what is made for one travels while that for
// the next is.
class RowsUnderWay {
 public:
  /// @param like  has their width, dtype and device
  RowsUnderWay(std::shared_ptr<Exchange> exchange, const at::Tensor& like)
      : exchange_(std::move(exchange)),
        columns_(like.size(1)),
        options_(like.options().requires_grad(false)) {}

  /// What stands for them.
  at::Tensor send(const RowsWriter& write) {
    const Exchange& exchange = *exchange_;
    const Group& group = exchange.group;
    result_ = at::empty({exchange.sent, columns_}, options_);
    const std::vector<at::Tensor> to_here = result_.split_with_sizes(exchange.rows_to);
    for (int64_t step = 1; step < group.size(); ++step) {
      const int64_t to = (group.rank() + step) % group.size();
      const int64_t from = (group.rank() + group.size() - step) % group.size();
      const at::Tensor rows = at::empty({rows_of(to), columns_}, options_);
      write(first_of(to), rows);
      under_way_.push_back(begin_send_and_receive(group, rows, to, to_here[index(from)], from));
    }
    write(first_of(group.rank()), to_here[index(group.rank())]);
    return stand_in(options_, exchange.received, columns_);
  }
  bool has_begun() const { return result_.defined(); }
  /// [S, d], in the order of ranks; kept no longer.
  at::Tensor take() {
    for (Pending& one : under_way_) one.wait();
    under_way_.clear();
    return std::exchange(result_, {});
  }

 private:
  static size_t index(int64_t rank) { return static_cast<size_t>(rank); }
  int64_t rows_of(int64_t rank) const { return exchange_->rows_from[index(rank)]; }
  int64_t first_of(int64_t rank) const {
    return std::accumulate(exchange_->rows_from.begin(), exchange_->rows_from.begin() + rank,
                           int64_t{0});
  }

  const std::shared_ptr<Exchange> exchange_;
  const int64_t columns_;
  const at::TensorOptions options_;
  at::Tensor result_;
  std::vector<Pending> under_way_;
};

namespace {

struct Dispatch : torch::autograd::Function<Dispatch> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x,
                               const std::optional<at::Tensor>& scores,
                               const TravelledPtr& travelled) {
    const PlainOps guard;
    ctx->saved_data["travelled"] = c10::IValue::make_capsule(travelled);
    Exchange& exchange = *travelled->exchange;
    const RowCode& code = travelled->code;
    const EncodedRows tokens = code.encode(x);
    exchange.know();
    // Rows are put in order while the data is under way.
    Pending beside = exchange.begin_forth_rows(
        rows_beside(exchange, {exchange.experts, scores ? *scores : at::Tensor(), tokens.scale}));
    Pending data = exchange.begin_forth(tokens.data);
    const BesideTokens got =
        tokens_beside(exchange, beside.wait(), scores.has_value(), code.scale_bytes());
    travelled->order =
        only_in_groups(expert_order(got.experts, exchange.own_experts()), exchange.choices);
    TokenCodes codes{code, {data.wait(), got.scale}};
    const bool stays_codes = travelled->as_codes && !code.is_values();
    variable_list out{
        stays_codes ? stand_in(x.options(), exchange.received, x.size(1)) : codes.values(),
        got.experts};
    if (stays_codes) travelled->codes = std::move(codes);
    if (scores) out.push_back(got.scores);
    ctx->mark_non_differentiable({out[1]});
    ctx->save_for_backward({got.experts});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto travelled = travelled_of(ctx);
    const Exchange& exchange = *travelled->exchange;
    variable_list result(3);
    {
      const PlainOps guard;
      Pending of_x = std::exchange(travelled->grad_coming, {}), of_scores;
      if (!of_x.valid() && ctx->needs_input_grad(0)) {
        of_x = exchange.begin_back(written_out(grads[0]).to(travelled->dtype).contiguous());
      }
      if (grads.size() > 2 && ctx->needs_input_grad(1)) {
        const at::Tensor is_away = ctx->get_saved_variables()[0].lt(0);
        of_scores =
            exchange.begin_back(written_out(grads[2]).to(at::kFloat).masked_fill(is_away, 0));
      }
      const at::Tensor rows = of_x.valid() ? of_x.wait() : at::Tensor();
      if (ctx->needs_input_grad(0)) result[0] = exchange.sum_of_ranks(rows, travelled->dtype);
      // Of each slot one rank has a gradient: the sum has no rounding.
      if (of_scores.valid()) result[1] = exchange.sum_of_ranks(of_scores.wait(), at::kFloat);
    }
    if (at::GradMode::is_enabled()) forbid_double_backward(result, kTravelOnce);
    return result;
  }
};

struct Combine : torch::autograd::Function<Combine> {
  /// @param under_way  the rows, where they have left already; or null
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& rows,
                            const TravelledPtr& travelled, RowsUnderWay* under_way) {
    const PlainOps guard;
    ctx->saved_data["travelled"] = c10::IValue::make_capsule(travelled);
    const Exchange& exchange = *travelled->exchange;
    const at::Tensor came = under_way ? under_way->take() : exchange.begin_back(rows).wait();
    return exchange.sum_of_ranks(came, travelled->dtype);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto travelled = travelled_of(ctx);
    const Exchange& exchange = *travelled->exchange;
    variable_list result(3);
    {
      const PlainOps guard;
      const at::Tensor grad = written_out(grads[0]).to(travelled->dtype).contiguous();
      EncodedRows rows = travelled->code.encode(grad);
      Pending data = exchange.begin_forth(rows.data), scale;
      if (rows.scale.defined()) scale = exchange.begin_forth(rows.scale);
      rows.data = data.wait();
      if (scale.valid()) rows.scale = scale.wait();
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

at::Tensor combine(const std::shared_ptr<Exchange>& exchange, const at::Tensor& rows,
                   const std::optional<Config>& grad_wire, RowsUnderWay* under_way) {
  exchange->know();
  check_tokens("rows", rows, exchange->received, exchange->experts);
  RowCode code = row_code("grad_wire", rows, grad_wire, RowsOf::GRAD_OUTPUT);
  const auto travelled =
      c10::make_intrusive<Travelled>(exchange, std::move(code), rows.scalar_type());
  return Combine::apply(rows, travelled, under_way);
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

ArrivedTokens receive_tokens(const TokenExchange& exchange, const at::Tensor& x,
                             const at::Tensor& scores, const std::optional<Config>& wire,
                             bool as_codes) {
  const std::shared_ptr<Exchange>& shared = exchange.impl();
  const Exchange& impl = *shared;
  check_tokens("x", x, impl.experts.size(0), impl.experts);
  if (scores.defined()) {
    check_dense(kExchangeOp, "scores", scores);
    MOE8_CHECK(scores.sizes() == impl.experts.sizes() && scores.device() == x.device() &&
                   at::isFloatingType(scores.scalar_type()),
               kExchangeOp, "scores", "expected floating-point ", impl.experts.sizes(), " on ",
               x.device(), " as experts, got ", describe(scores));
  }
  std::optional<at::Tensor> weights;
  if (scores.defined()) weights = scores.to(at::kFloat);
  const auto travelled = c10::make_intrusive<Travelled>(
      shared, row_code("wire", x, wire, RowsOf::INPUT), x.scalar_type());
  travelled->as_codes = as_codes;
  const variable_list out = Dispatch::apply(x, weights, travelled);
  const auto result = std::make_shared<RowsUnderWay>(shared, out[0]);
  return {.x = out[0],
          .codes = std::exchange(travelled->codes, std::nullopt),
          .experts = out[1],
          .scores = weights ? out[2] : at::Tensor(),
          .order = std::exchange(travelled->order, {}),
          .send_x_grad =
              [travelled](const at::Tensor& grad) {
                travelled->grad_coming = travelled->exchange->begin_back(grad);
              },
          .send_result = [result](const RowsWriter& write) { return result->send(write); },
          .result = result};
}

at::Tensor combine_arrived(const TokenExchange& exchange, const ArrivedTokens& tokens,
                           const at::Tensor& rows, const std::optional<Config>& grad_wire) {
  return combine(exchange.impl(), rows, grad_wire,
                 tokens.result && tokens.result->has_begun() ? tokens.result.get() : nullptr);
}

ReceivedTokens TokenExchange::dispatch(const at::Tensor& x, const at::Tensor& scores,
                                       const std::optional<Config>& wire) const {
  const ArrivedTokens tokens = receive_tokens(*this, x, scores, wire, /*as_codes=*/false);
  return {tokens.x, tokens.experts, tokens.scores};
}

at::Tensor TokenExchange::combine(const at::Tensor& rows,
                                  const std::optional<Config>& grad_wire) const {
  return moe8::combine(impl_, rows, grad_wire, /*under_way=*/nullptr);
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
