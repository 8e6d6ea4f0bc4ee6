// SPDX-License-Identifier: BSD-3-Clause
// The order of experts.
#include "cuda/experts/routing.h"

#include "cuda/experts_check/check.h"

namespace moe8::cuda {
namespace {

template <typename To, typename From>
std::vector<To> converted(const std::vector<From>& values) {
  return {values.begin(), values.end()};
}

}  // namespace

void check_order(const Layer& layer, std::mt19937& rng) {
  // Half of the time as int32, where an expert of 2^32 would be another one.
  const bool wide = rng() % 2;
  std::vector<int64_t> experts = layer.experts;
  for (int64_t& expert : experts) {
    if (!wide && expert != static_cast<int32_t>(expert)) expert = -7;
  }
  const DeviceBytes source(wide ? bytes_of(experts) : bytes_of(converted<int32_t>(experts)));
  const DeviceBytes workspace(
      static_cast<size_t>(expert_order_workspace_bytes(layer.rows(), layer.groups)));
  const reference::ExpertOrder& order = layer.order;
  const bool wide_counts = rng() % 2;
  const Bytes offs = bytes_of(order.offs), slots = bytes_of(order.slot_of_row),
              rows = bytes_of(order.row_of_slot),
              counts =
                  wide_counts ? bytes_of(order.counts) : bytes_of(converted<int32_t>(order.counts));
  DeviceBytes offs_out(offs.size()), slots_out(slots.size()), rows_out(rows.size()),
      counts_out(counts.size());
  const ExpertOrderArgs args{source.get(),
                             wide ? IndexType::I64 : IndexType::I32,
                             layer.rows(),
                             layer.groups,
                             workspace.get(),
                             offs_out.as<int32_t>(),
                             counts_out.get(),
                             wide_counts ? IndexType::I64 : IndexType::I32,
                             slots_out.as<int32_t>(),
                             rows_out.as<int32_t>()};
  run("order of " + layer.name(),
      {{&offs_out, &offs}, {&counts_out, &counts}, {&slots_out, &slots}, {&rows_out, &rows}},
      [&] { return launch_expert_order(args, nullptr); });
  expect(workspace.is_intact(), "order of " + layer.name() + ": wrote outside its workspace");

  ExpertOrderArgs without = args;
  without.counts = nullptr;
  run("order without counts of " + layer.name(), {{&offs_out, &offs}, {&rows_out, &rows}},
      [&] { return launch_expert_order(without, nullptr); });
}

// More tiles than one, more than there is room for in the table, runs of one expert.
void check_large_orders(std::mt19937& rng) {
  for (const int64_t groups : {1, 8, 128, 1500}) {
    for (const int64_t slots : {1023, 1025, 70000, 1100000}) {
      if (slots > 1000000 && groups > 8) continue;  // the reference takes slots x groups steps
      std::vector<int64_t> experts(static_cast<size_t>(slots));
      const int64_t length = rng() % 2 ? 1 : 1000;
      for (size_t i = 0; i < experts.size(); ++i) {
        experts[i] = i % static_cast<size_t>(length) != 0
                         ? experts[i - 1]
                         : static_cast<int64_t>(rng() % static_cast<uint64_t>(groups + 1));
      }
      check_order(make_layer(slots, 1, groups, 1, std::move(experts)), rng);
    }
  }
}

}  // namespace moe8::cuda
