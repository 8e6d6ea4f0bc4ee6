// SPDX-License-Identifier: BSD-3-Clause
// What the processes of a group send each other. Elements that are only moved travel as bytes, so that
// every dtype does; those that are added up on the CPU travel first and are added in a fixed order.
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "dist/activity.h"
#include "dist/c10d_names.h"
#include "dist/exchanges.h"
#include "dist/group.h"
#include "quantize/check_input.h"

namespace moe8 {

struct Pending::Impl {
  const char* op;
  Group group;
  c10::intrusive_ptr<c10d::Work> work{};
  std::vector<at::Tensor> sent{};  // until it has been
  at::Tensor result{};
  std::function<at::Tensor(at::Tensor)> finish{};  // of the result
};

namespace {

// ---- errors ---------------------------------------------------------------------
[[noreturn]] void exchange_failed(const char* op, const Group& group, const std::exception& error) {
  const Group::Impl& g = group.impl();
  fail(op, concat("group '", g.name, "'"),
       concat("expected an answer from all ranks, got on rank ", g.rank, " of ", g.size(),
              g.rank == g.world_rank() ? "" : concat(" (rank ", g.world_rank(), " of the world)"),
              ": ", message_of(error), ".", reason_of_others(g)));
}

template <typename Function>
auto exchange(const char* op, const Group& group, const Function& function) {
  const WaitsForOthers waits;
  try {
    return function();
  } catch (const std::exception& error) {
    exchange_failed(op, group, error);
  }
}

void check_tensor(const char* op, const char* argument, const Group& group, const at::Tensor& t,
                  int64_t min_dim) {
  check_dense(op, argument, t);
  MOE8_CHECK(t.dim() >= min_dim, op, argument, "expected rows, got ", describe(t));
  const at::DeviceType device = t.device().type();
  MOE8_CHECK(device == at::kCPU || device == group.impl().device || group.size() == 1, op, argument,
             "expected a tensor on ", group.impl().device, ", as group '", group.name(),
             "' was made for, got ", describe(t));
}

void check_rows(const char* op, const char* argument, const Group& group, at::IntArrayRef rows,
                int64_t total) {
  bool is_right = static_cast<int64_t>(rows.size()) == group.size();
  int64_t sum = 0;
  for (const int64_t n : rows) {
    is_right = is_right && n >= 0;
    sum += n;
  }
  MOE8_CHECK(is_right && (total < 0 || sum == total), op, argument, "expected ", group.size(),
             " numbers of rows", total < 0 ? std::string() : concat(" that add up to ", total),
             ", got ", rows);
}

void check_summable(const char* op, const char* argument, const at::Tensor& t) {
  const at::ScalarType dtype = t.scalar_type();
  const bool is = at::isIntegralType(dtype, /*includeBool=*/false) || dtype == at::kFloat ||
                  dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
  MOE8_CHECK(is, op, argument, "expected a floating-point or integer dtype that has sums, got ",
             describe(t));
}

// ---- parts ------------------------------------------------------------------------
// [rows, ...] contiguous as uint8 [rows, bytes of a row].
at::Tensor bytes_of_rows(const at::Tensor& t) {
  const at::IntArrayRef row = t.sizes().slice(1);
  const int64_t columns = std::accumulate(row.begin(), row.end(), int64_t{1}, std::multiplies<>());
  return t.view({t.size(0), columns}).view(at::kByte);
}

int64_t bytes(const at::Tensor& t) {
  return static_cast<int64_t>(t.nbytes());
}

at::Tensor rows_like(const at::Tensor& t, int64_t rows) {
  std::vector<int64_t> sizes = t.sizes().vec();
  sizes[0] = rows;
  return at::empty(sizes, t.options().requires_grad(false));
}

std::shared_ptr<Pending::Impl> pending(const char* op, const Group& group) {
  return std::make_shared<Pending::Impl>(Pending::Impl{.op = op, .group = group});
}

Pending at_once(const char* op, const Group& group, const at::Tensor& result) {
  auto made = pending(op, group);
  made->result = result;
  return Pending(std::move(made));
}

at::Tensor plain(const at::Tensor& t) {
  return contiguous_values(t);
}

at::ScalarType wide(at::ScalarType dtype) {
  if (at::isIntegralType(dtype, /*includeBool=*/false)) return at::kLong;
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// [size * n, ...] -> [n, ...], in the order of ranks.
at::Tensor sum_of_parts(const at::Tensor& parts, int64_t size) {
  const int64_t n = parts.size(0) / size;
  at::Tensor sum = parts.narrow(0, 0, n).to(wide(parts.scalar_type()), /*non_blocking=*/false,
                                            /*copy=*/true);
  for (int64_t r = 1; r < size; ++r) sum.add_(parts.narrow(0, r * n, n));
  return sum.to(parts.scalar_type());
}

std::vector<int64_t> equal_rows(const Group& group, int64_t n) {
  return std::vector<int64_t>(static_cast<size_t>(group.size()), n);
}

Pending move_rows(const char* op, const Group& group, const at::Tensor& in, at::IntArrayRef in_rows,
                  at::IntArrayRef out_rows) {
  auto made = pending(op, group);
  const at::Tensor sent = plain(in);
  made->result = rows_like(sent, std::accumulate(out_rows.begin(), out_rows.end(), int64_t{0}));
  made->sent = {sent};
  const int64_t kept = in_rows[static_cast<size_t>(group.rank())];
  if (sent.size(0) > 0) count_sent(bytes(sent) / sent.size(0) * (sent.size(0) - kept));
  made->work = exchange(op, group, [&] {
    at::Tensor from = bytes_of_rows(sent), to = bytes_of_rows(made->result);
    std::vector<int64_t> in_split = in_rows.vec(), out_split = out_rows.vec();
    return all_to_all_single(*group.process_group(), to, from, out_split, in_split);
  });
  return Pending(std::move(made));
}

}  // namespace

at::Tensor Pending::wait() {
  const std::shared_ptr<Impl> impl = std::exchange(impl_, nullptr);
  MOE8_CHECK(impl, "wait", "", "expected an exchange that has begun and was not waited for");
  if (impl->work) {
    exchange(impl->op, impl->group, [&] { return impl->work->wait(); });
  }
  return impl->finish ? impl->finish(impl->result) : impl->result;
}

// ---- all to all -------------------------------------------------------------------
Pending begin_all_to_all(const Group& group, const at::Tensor& in, at::IntArrayRef in_rows,
                         at::IntArrayRef out_rows) {
  constexpr const char* kOp = "all_to_all";
  check_tensor(kOp, "in", group, in, 1);
  check_rows(kOp, "in_rows", group, in_rows, in.size(0));
  check_rows(kOp, "out_rows", group, out_rows, -1);
  if (group.size() == 1) return at_once(kOp, group, plain(in));
  return move_rows(kOp, group, in, in_rows, out_rows);
}

at::Tensor all_to_all(const Group& group, const at::Tensor& in, at::IntArrayRef in_rows,
                      at::IntArrayRef out_rows) {
  return begin_all_to_all(group, in, in_rows, out_rows).wait();
}

Pending begin_send_and_receive(const Group& group, const at::Tensor& out, int64_t to,
                               const at::Tensor& in, int64_t from) {
  constexpr const char* kOp = "send_and_receive";
  auto made = pending(kOp, group);
  made->result = in;
  made->sent = {out};
  count_sent(bytes(out));
  std::vector<int64_t> out_rows(static_cast<size_t>(group.size())), in_rows = out_rows;
  out_rows[static_cast<size_t>(to)] = out.size(0);
  in_rows[static_cast<size_t>(from)] = in.size(0);
  made->work = exchange(kOp, group, [&] {
    at::Tensor sent = bytes_of_rows(out), received = bytes_of_rows(in);
    return all_to_all_single(*group.process_group(), received, sent, in_rows, out_rows);
  });
  return Pending(std::move(made));
}

Pending begin_exchange(const Group& group, const std::vector<at::Tensor>& parts, int64_t rows) {
  constexpr const char* kOp = "exchange";
  const auto size = static_cast<size_t>(group.size()), own = static_cast<size_t>(group.rank());
  std::vector<at::Tensor> others = parts;
  others[own] = parts[own].narrow(0, 0, 0);
  std::vector<int64_t> in_rows, out_rows(size, rows);
  out_rows[own] = 0;
  for (const at::Tensor& part : others) in_rows.push_back(part.size(0));
  if (group.size() == 1 || parts[own].is_cpu()) {
    return move_rows(kOp, group, at::cat(others), in_rows, out_rows);
  }
  auto made = pending(kOp, group);
  made->result = rows_like(parts[own], (group.size() - 1) * rows);
  made->sent = others;
  for (const at::Tensor& part : others) count_sent(bytes(part));
  made->work = exchange(kOp, group, [&] {
    std::vector<at::Tensor> from, to;
    for (const at::Tensor& part : others) from.push_back(bytes_of_rows(part));
    for (const at::Tensor& part : made->result.split_with_sizes(out_rows)) {
      to.push_back(bytes_of_rows(part));
    }
    return group.process_group()->alltoall(to, from);
  });
  return Pending(std::move(made));
}

// ---- all gather -------------------------------------------------------------------
Pending begin_all_gather(const Group& group, const at::Tensor& in) {
  constexpr const char* kOp = "all_gather";
  check_tensor(kOp, "in", group, in, 1);
  if (group.size() == 1) return at_once(kOp, group, plain(in));
  const at::Tensor sent = plain(in);
  return begin_all_gather_into(group, rows_like(sent, group.size() * sent.size(0)), sent);
}

Pending begin_all_gather_into(const Group& group, const at::Tensor& out, const at::Tensor& sent) {
  constexpr const char* kOp = "all_gather";
  auto made = pending(kOp, group);
  made->result = out;
  made->sent = {sent};
  if (sent.numel() == 0) return at_once(kOp, group, made->result);  // of the same sizes everywhere
  count_sent(bytes(sent) * (group.size() - 1));
  made->work = exchange(kOp, group, [&] {
    at::Tensor from = bytes_of_rows(sent), to = bytes_of_rows(made->result);
    return all_gather_single(*group.process_group(), to, from);
  });
  return Pending(std::move(made));
}

at::Tensor all_gather(const Group& group, const at::Tensor& in) {
  return begin_all_gather(group, in).wait();
}

// ---- sums -------------------------------------------------------------------------
Pending begin_reduce_scatter(const Group& group, const at::Tensor& in) {
  constexpr const char* kOp = "reduce_scatter";
  check_tensor(kOp, "in", group, in, 1);
  check_summable(kOp, "in", in);
  const int64_t size = group.size(), rows = in.size(0);
  MOE8_CHECK(rows % size == 0, kOp, "in", "expected a multiple of ", size, " rows, got ",
             describe(in));
  if (size == 1) return at_once(kOp, group, plain(in));
  const std::vector<int64_t> parts = equal_rows(group, rows / size);
  if (in.is_cpu()) {
    Pending sent = move_rows(kOp, group, in, parts, parts);
    auto made = pending(kOp, group);
    made->finish = [size, moving = std::make_shared<Pending>(std::move(sent))](const at::Tensor&) {
      return sum_of_parts(moving->wait(), size);
    };
    return Pending(std::move(made));
  }
  auto made = pending(kOp, group);
  at::Tensor from = plain(in);
  made->result = rows_like(from, rows / size);
  made->sent = {from};
  count_sent(bytes(from) / size * (size - 1));
  made->work = exchange(kOp, group, [&] {
    return reduce_scatter_single(*group.process_group(), made->result, from);
  });
  return Pending(std::move(made));
}

at::Tensor reduce_scatter(const Group& group, const at::Tensor& in) {
  return begin_reduce_scatter(group, in).wait();
}

namespace {

// Small tensors in one exchange, others in two of which each moves every element once.
void sum_on_cpu(const Group& group, const at::Tensor& tensor) {
  constexpr int64_t kSmall = 4096;
  const int64_t size = group.size(), n = tensor.numel();
  const at::Tensor flat = tensor.view({n});
  if (n <= kSmall) {
    flat.copy_(sum_of_parts(all_gather(group, flat), size));
    return;
  }
  const int64_t part = (n + size - 1) / size;
  const at::Tensor padded = at::zeros({part * size}, tensor.options().requires_grad(false));
  padded.narrow(0, 0, n).copy_(flat);
  flat.copy_(all_gather(group, reduce_scatter(group, padded)).narrow(0, 0, n));
}

c10d::ReduceOp::RedOpType op_of(Reduction reduction) {
  switch (reduction) {
    case Reduction::SUM:
      break;
    case Reduction::MAX:
      return c10d::ReduceOp::MAX;
    case Reduction::MIN:
      return c10d::ReduceOp::MIN;
  }
  return c10d::ReduceOp::SUM;
}

void check_in_place(const char* op, const Group& group, const at::Tensor& tensor) {
  check_tensor(op, "tensor", group, tensor, 0);
  MOE8_CHECK(tensor.is_contiguous(), op, "tensor", "expected a contiguous tensor, got ",
             describe(tensor));
}

}  // namespace

void all_reduce_(const Group& group, const at::Tensor& tensor, Reduction reduction) {
  constexpr const char* kOp = "all_reduce_";
  check_in_place(kOp, group, tensor);
  check_summable(kOp, "tensor", tensor);
  if (group.size() == 1 || tensor.numel() == 0) return;
  const at::Tensor data = tensor.detach();
  if (reduction == Reduction::SUM && data.is_cpu()) return sum_on_cpu(group, data);
  count_sent(2 * bytes(data) / group.size() * (group.size() - 1));
  exchange(kOp, group, [&] {
    c10d::AllreduceOptions options;
    options.reduceOp = op_of(reduction);
    std::vector<at::Tensor> tensors{data};
    return group.process_group()->allreduce(tensors, options)->wait();
  });
}

// ---- the rest ---------------------------------------------------------------------
void broadcast_(const Group& group, const at::Tensor& tensor, int64_t from) {
  constexpr const char* kOp = "broadcast_";
  check_in_place(kOp, group, tensor);
  MOE8_CHECK(from >= 0 && from < group.size(), kOp, "from", "expected a rank of 0 to ",
             group.size() - 1, ", got ", from);
  if (group.size() == 1 || tensor.numel() == 0) return;
  exchange(kOp, group, [&] {
    c10d::BroadcastOptions options;
    options.rootRank = from;
    std::vector<at::Tensor> tensors{bytes_of_rows(tensor.detach().view({1, tensor.numel()}))};
    return group.process_group()->broadcast(tensors, options)->wait();
  });
}

void barrier(const Group& group) {
  if (group.size() == 1) return;
  exchange("barrier", group,
           [&] { return group.process_group()->getBackend(at::kCPU)->barrier()->wait(); });
}

std::vector<std::string> all_gather_text(const Group& group, const std::string& text) {
  const int64_t length = static_cast<int64_t>(text.size()), size = group.size();
  const at::Tensor lengths = all_gather(group, at::empty({1}, at::kLong).fill_(length));
  const int64_t* const each = lengths.const_data_ptr<int64_t>();
  const int64_t longest = *std::max_element(each, each + size);
  const at::Tensor own = at::zeros({1, longest}, at::kByte);
  if (length > 0) std::memcpy(own.mutable_data_ptr(), text.data(), text.size());
  const at::Tensor all = all_gather(group, own);
  std::vector<std::string> texts;
  for (int64_t r = 0; r < size; ++r) {
    const char* const first = static_cast<const char*>(all.const_data_ptr()) + r * longest;
    texts.emplace_back(first, static_cast<size_t>(each[r]));
  }
  return texts;
}

}  // namespace moe8
