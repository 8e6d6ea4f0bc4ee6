// SPDX-License-Identifier: BSD-3-Clause
#include "train/profile/time_table.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/plain_text.h"
#include "base/text_table.h"

namespace moe8 {
namespace {

constexpr double kMsPerNs = 1e-6;
constexpr double kLeastShare = 0.01;  // of what is shown by name

struct ClassRule {
  std::string_view part;  // of a kernel's name
  std::string_view name;
};

// The first rule whose part occurs decides: moe8's own kernels, then those of libraries.
constexpr std::string_view kFp8Products = "products FP8", kBf16Products = "products bf16",
                           kAttention = "attention", kQuantize = "quantize",
                           kExperts = "experts' stages", kNorms = "norms and elementwise",
                           kLoss = "loss", kOptimizer = "optimizer", kCopies = "copies",
                           kExchanges = "exchanges of ranks";
constexpr ClassRule kRules[] = {
    {"ncclDevKernel", kExchanges},
    {"GemmElement)0", kFp8Products},
    {"GemmElement)1", kFp8Products},
    {"grouped_gemm_kernel", kBf16Products},
    {"quantize", kQuantize},
    {"find_amax", kQuantize},
    {"cuda::(anonymous namespace)::cast", kQuantize},
    {"cuda::(anonymous namespace)::clear", kQuantize},
    {"block_groups", kQuantize},
    {"find_starts", kQuantize},
    {"transpose_codes", kQuantize},
    {"spread_rows", kExperts},
    {"gather_with_maxima", kExperts},
    {"swiglu", kExperts},
    {"combine_few", kExperts},
    {"combine_any", kExperts},
    {"count_slots", kExperts},
    {"scan_tiles", kExperts},
    {"place_slots", kExperts},
    {"fill_metadata", kExperts},
    {"add_gradients", kOptimizer},
    {"begin_steps", kOptimizer},
    {"norm_of_sums", kOptimizer},
    {"step_tensors", kOptimizer},
    {"sum_squares", kOptimizer},
    {"adam_", kOptimizer},
    {"multi_tensor", kOptimizer},
    {"cuda::(anonymous namespace)::sum_rows", kLoss},
    {"differentiate_rows", kLoss},
    {"cross_entropy", kLoss},
    {"average_losses", kLoss},
    {"log_softmax", kLoss},
    {"LogSoftMax", kLoss},
    {"nll_loss", kLoss},
    {"flash", kAttention},
    {"fmha", kAttention},
    {"sdpa", kAttention},
    {"cudnn", kAttention},
    {"nvjet_sm90_qq", kFp8Products},
    {"e4m3", kFp8Products},
    {"nvjet", kBf16Products},
    {"gemm", kBf16Products},
    {"cutlass", kBf16Products},
    {"xmma", kBf16Products},
    {"splitK", kBf16Products},
    {"Memcpy", kCopies},
    {"Memset", kCopies},
    {"direct_copy", kCopies},
    {"bfloat16_copy", kCopies},
    {"copy_kernel", kCopies},
    {"CatArray", kCopies},
};

using Sums = std::map<std::string, TimeShare, std::less<>>;

void add(Sums& sums, std::string_view name, double ms) {
  TimeShare& sum = sums.try_emplace(std::string(name)).first->second;
  sum.ms += ms;
  ++sum.calls;
}

std::vector<TimeShare> sorted(const Sums& sums, int64_t steps) {
  std::vector<TimeShare> list;
  for (const auto& [name, sum] : sums) {
    list.push_back({name, sum.ms / double(steps), sum.calls / double(steps)});
  }
  std::ranges::stable_sort(list, std::greater<>(), &TimeShare::ms);
  return list;
}

using Events = std::vector<const ProfiledEvent*>;

Events by_start(const std::vector<ProfiledEvent>& events, bool of_gpu) {
  Events list;
  for (const ProfiledEvent& event : events) {
    if (event.is_on_gpu == of_gpu) list.push_back(&event);
  }
  // Of two that begin together the longer one is around the other.
  std::ranges::stable_sort(list, [](const ProfiledEvent* a, const ProfiledEvent* b) {
    return std::pair(a->start_ns, -a->end_ns) < std::pair(b->start_ns, -b->end_ns);
  });
  return list;
}

// Span, and time in which no event ran.
void add_idle(TimeTable& table, const Events& events, int64_t steps) {
  if (events.empty()) return;
  int64_t end = events.front()->start_ns, idle = 0;
  for (const ProfiledEvent* event : events) {
    idle += std::max<int64_t>(0, event->start_ns - end);
    end = std::max(end, event->end_ns);
  }
  table.span_ms = double(end - events.front()->start_ns) * kMsPerNs / double(steps);
  table.idle_ms = double(idle) * kMsPerNs / double(steps);
}

// Operations, each without the time of those that it calls: in the order of their beginnings, those
// that have not ended yet on a thread are around the next one.
Sums own_times(const Events& events) {
  Sums sums;
  std::map<uint64_t, Events> open;  // by thread
  for (const ProfiledEvent* event : events) {
    Events& around = open[event->place];
    while (!around.empty() && around.back()->end_ns <= event->start_ns) around.pop_back();
    const double ms = double(event->end_ns - event->start_ns) * kMsPerNs;
    add(sums, event->name, ms);
    if (!around.empty()) sums.find(around.back()->name)->second.ms -= ms;
    around.push_back(event);
  }
  return sums;
}

std::string percent(double ms, double of) {
  return formatted("%.1f %%", of > 0 ? 100 * ms / of : 0.0);
}

}  // namespace

std::string_view kernel_class(std::string_view kernel) {
  for (const ClassRule& rule : kRules) {
    if (kernel.find(rule.part) != std::string_view::npos) return rule.name;
  }
  return kNorms;
}

std::string short_kernel_name(std::string_view name) {
  constexpr std::string_view kNowhere = "(anonymous namespace)::";
  if (const size_t at = name.find(kNowhere); at != std::string_view::npos) {
    name.remove_prefix(at + kNowhere.size());
  } else if (name.starts_with("void ")) {
    name.remove_prefix(5);
  }
  name = name.substr(0, name.find_first_of("<("));
  const size_t colons = name.rfind("::");
  return std::string(colons == std::string_view::npos ? name : name.substr(colons + 2));
}

TimeTable time_table(const std::vector<ProfiledEvent>& events, int64_t steps) {
  TimeTable table;
  table.is_of_gpu = std::ranges::any_of(events, &ProfiledEvent::is_on_gpu);
  const Events counted = by_start(events, table.is_of_gpu);
  add_idle(table, counted, steps);
  if (!table.is_of_gpu) {
    table.classes = sorted(own_times(counted), steps);
    return table;
  }
  Sums classes, kernels;
  for (const ProfiledEvent* event : counted) {
    const double ms = double(event->end_ns - event->start_ns) * kMsPerNs;
    const std::string_view name = kernel_class(event->name);
    add(classes, name, ms);
    add(kernels, concat(short_kernel_name(event->name), "  (", name, ")"), ms);
  }
  table.classes = sorted(classes, steps);
  table.kernels = sorted(kernels, steps);
  return table;
}

std::string to_text(const TimeTable& table, size_t columns) {
  const auto rows_of = [&](const char* what, const std::vector<TimeShare>& list, double least) {
    std::vector<std::vector<std::string>> rows{{"ms a step", "share", "calls", what}};
    for (const TimeShare& one : list) {
      if (one.ms < least * table.span_ms) continue;
      rows.push_back({formatted("%.3f", one.ms), percent(one.ms, table.span_ms),
                      formatted("%.0f", one.calls), one.name});
    }
    return rows;
  };
  auto rows = rows_of(table.is_of_gpu ? "class of kernel" : "operation", table.classes,
                      table.is_of_gpu ? 0 : kLeastShare);
  rows.push_back({formatted("%.3f", table.idle_ms), percent(table.idle_ms, table.span_ms), "",
                  table.is_of_gpu ? "idle between" : "between"});
  rows.push_back({formatted("%.3f", table.span_ms), "", "", "a step"});
  std::string text = text_table(rows, {.columns = columns});
  if (!table.is_of_gpu) return text;
  return text + '\n' +
         text_table(rows_of("kernel", table.kernels, kLeastShare), {.columns = columns});
}

}  // namespace moe8
