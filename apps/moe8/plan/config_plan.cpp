// SPDX-License-Identifier: BSD-3-Clause
#include "plan/config_plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"
#include "cli.h"
#include "convert/report.h"
#include "nn/parameter_counts.h"
#include "train/plan/memory_plan.h"
#include "train/plan/rank_plan.h"
#include "train/plan/saved_activations.h"
#include "train/plan/step_time.h"
#include "train/report/flops.h"

namespace moe8 {
namespace {

using Rows = std::vector<std::vector<std::string>>;

// ---- numbers as text --------------------------------------------------------
std::string with_commas(int64_t number) {
  std::string text = std::to_string(number);
  for (int64_t at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3) {
    text.insert(static_cast<size_t>(at), 1, ',');
  }
  return text;
}

// "1.50 GiB": three digits are as many as an estimate deserves.
std::string bytes_text(double bytes) {
  constexpr std::array<const char*, 6> kUnits{"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  for (; bytes >= 1000 && unit + 1 < kUnits.size(); ++unit) bytes /= 1024;
  const int decimals = unit == 0 || bytes >= 100 ? 0 : bytes >= 10 ? 1 : 2;
  return fixed_digits(bytes, decimals) + " " + kUnits[unit];
}

// ---- parameters -------------------------------------------------------------
struct Part {
  const char* name;
  const char* mark;  // in the names of its parameters
  ParameterCounts counts{};
};

std::vector<Part> parts_of(const TransformerConfig& config) {
  // The first mark that occurs decides.
  std::vector<Part> parts{{"routed experts", ".moe.experts."},
                          {"shared experts", ".shared_experts."},
                          {"routers", ".router."},
                          {"dense feed-forward", ".feed_forward."},
                          {"attention", ".attention."},
                          {"norms", "norm."},
                          {"embedding", "tok_embeddings."},
                          {"output projection", "output."}};
  for (const ParameterShape& parameter : parameter_shapes(config)) {
    const auto part = std::ranges::find_if(parts, [&](const Part& candidate) {
      return parameter.name.find(candidate.mark) != std::string::npos;
    });
    if (part == parts.end()) continue;
    const ParameterCounts own = counts_of(parameter, config);
    part->counts.total += own.total;
    part->counts.active += own.active;
  }
  return parts;
}

std::string model_line(const TransformerConfig& c) {
  return concat(c.n_layers, " layers, ", c.n_dense_layers, " of them dense; dim ", c.dim, "; ",
                c.n_heads, " heads of ", c.head_width(), ", ", c.n_kv_heads, " for keys; ",
                c.n_experts, " experts of ", c.hidden_dim, ", ", c.top_k, " a token",
                c.n_shared_experts > 0 ? concat(", ", c.n_shared_experts, " shared") : "",
                "; vocabulary ", c.vocab_size);
}

std::string parameter_table(const TransformerConfig& config) {
  Rows rows{{"parameters", "in all", "used by a token"}};
  for (const Part& part : parts_of(config)) {
    if (part.counts.total == 0) continue;
    rows.push_back({part.name, with_commas(part.counts.total), with_commas(part.counts.active)});
  }
  const ParameterCounts counts = count_parameters(config);
  rows.push_back({"total", with_commas(counts.total), with_commas(counts.active)});
  return text_table(rows, table_style());
}

// ---- conversion -------------------------------------------------------------
// Layers that are alike share a row: "layers.3-60.moe.experts.w1".
struct LayerRange {
  ConversionRow row;
  std::string before, after;  // of the layer's number
  int64_t first = -1;         // -1: not in a layer
  int64_t last = -1;

  std::string name() const {
    if (first < 0) return row.fqn;
    return before + (first == last ? concat(first) : concat(first, "-", last)) + after;
  }
  bool continues(const LayerRange& next) const {
    return first >= 0 && next.first == last + 1 && before == next.before && after == next.after &&
           row.shape == next.row.shape && row.config == next.row.config && row.key == next.row.key;
  }
};

LayerRange range_of(const ConversionRow& row) {
  LayerRange range;
  range.row = row;
  constexpr std::string_view kLayers = "layers.";
  if (!row.fqn.starts_with(kLayers)) return range;
  const size_t end = row.fqn.find('.', kLayers.size());
  range.before = kLayers;
  range.after = row.fqn.substr(end);
  range.first = range.last = std::stoll(row.fqn.substr(kLayers.size(), end - kLayers.size()));
  return range;
}

ConversionReport by_layer_ranges(const ConversionReport& report) {
  std::vector<LayerRange> ranges;
  for (const ConversionRow& row : report.rows) {
    const LayerRange next = range_of(row);
    const auto same = std::find_if(ranges.begin(), ranges.end(),
                                   [&](const LayerRange& range) { return range.continues(next); });
    if (same == ranges.end()) {
      ranges.push_back(next);
    } else {
      same->last = next.last;
    }
  }
  ConversionReport merged;
  for (const LayerRange& range : ranges) {
    merged.rows.push_back(range.row);
    merged.rows.back().fqn = range.name();
  }
  return merged;
}

std::string conversion_table(const RunConfig& config) {
  const ConversionReport report = plan_conversion(config);
  std::string table = fitted_table(by_layer_ranges(report), table_style().columns);
  table.erase(table.rfind('\n', table.size() - 2) + 1);  // its last line counts merged rows
  return concat(table, report.converted().size(), " of ", report.rows.size(),
                " parameters converted.\n");
}

// ---- memory -----------------------------------------------------------------
struct RecipeMemory {
  std::string recipe;
  MemoryPlan memory;
};

std::vector<RecipeMemory> memory_of(const ConfigPlan& plan) {
  std::vector<RecipeMemory> list;
  const auto add = [&](const std::string& name, const RunConfig& config) {
    const auto same = std::find_if(list.begin(), list.end(),
                                   [&](const RecipeMemory& row) { return row.recipe == name; });
    if (same == list.end()) list.push_back({name, plan_memory(config)});
  };
  add(plan.config.convert.empty() ? plan.config.training.recipe : "custom", plan.config);
  for (const std::string& name : plan.recipes) {
    RunConfig config = plan.config;
    config.convert.clear();
    config.training.recipe = name;
    add(name, config);
  }
  return list;
}

std::string memory_table(const ConfigPlan& plan) {
  const TrainingConfig& t = plan.config.training;
  Rows rows{{"recipe", "weights", "masters", "optimizer", "gradients", "quantized weights",
             "saved for backward", "at most at once", "(as codes)"}};
  for (const auto& [recipe, m] : memory_of(plan)) {
    rows.push_back({recipe, bytes_text(m.weights), bytes_text(m.masters), bytes_text(m.optimizer),
                    bytes_text(m.gradients), bytes_text(m.weight_forms), bytes_text(m.saved()),
                    bytes_text(m.peak()), bytes_text(m.codes)});
  }
  const bool on_gpu = t.device == TrainingDevice::CUDA;
  return concat("memory of one process on ", on_gpu ? "a Hopper GPU" : "this CPU", ": weights = \"",
                to_string(t.weights), "\", ", t.batch_size, " x ", t.seq_len,
                " tokens a backward, accumulation ", t.accumulation, "\n",
                text_table(rows, table_style()));
}

// ---- GPUs -------------------------------------------------------------------
struct Gpu {
  const char* name;
  double gib;  // as the driver reports it
};
constexpr std::array<Gpu, 4> kGpus{
    {{"L40S 48 GB", 44.4}, {"H100 80 GB", 79.1}, {"H200 141 GB", 139.8}, {"B200 180 GB", 178.4}}};
constexpr double kUsable = 0.9;  // the rest: LibTorch, what the allocator holds back, other tensors

// How many hold the plan: what autograd saves for the batch on each, the rest in equal parts.
std::string gpus_for(const MemoryPlan& memory, const Gpu& gpu) {
  const double usable = kUsable * gpu.gib * 1024 * 1024 * 1024;
  if (memory.peak() <= usable) return "1";
  if (memory.saved() >= usable) return "the batch alone is too large";
  return with_commas(static_cast<int64_t>(
      std::ceil((memory.peak() - memory.saved()) / (usable - memory.saved()))));
}

std::string gpu_table(const ConfigPlan& plan) {
  const RecipeMemory first = memory_of(plan).front();
  Rows rows{{"GPUs by memory, " + first.recipe, "needed"}};
  for (const Gpu& gpu : kGpus) rows.push_back({gpu.name, gpus_for(first.memory, gpu)});
  return concat(text_table(rows, table_style()),
                "Of more than one: each with a batch of its own and an equal part of weights,\n"
                "masters, optimizer and gradients. What `moe8 train` spreads: --world.\n");
}

// ---- ranks ------------------------------------------------------------------
std::string sent_text(const Sent& sent) {
  const std::string all = bytes_text(sent.bytes);
  return sent.across > 0 ? concat(all, ", ", bytes_text(sent.across), " of it to other machines")
                         : all;
}

std::string ms_text(double ms) {
  return fixed_digits(ms, ms < 10 ? 1 : 0) + " ms";
}

// Of GPUs: nobody has measured what CPUs send each other.
Rows time_rows(const ConfigPlan& plan, const RankPlan& rank) {
  if (plan.config.training.device != TrainingDevice::CUDA) return {};
  const StepTime time =
      plan_step_time(plan.config, rank, h200_rates(plan.config, plan.network_bytes));
  const auto tokens = double(plan.config.training.batch_size * plan.config.training.accumulation *
                             plan.config.training.seq_len);
  Rows rows{{"time of a step on H200s, estimated", ms_text(time.total())}};
  const auto add = [&](const char* what, double ms) {
    if (ms > 0) rows.push_back({what, ms_text(ms)});
  };
  add("  forward and backward", time.compute);
  add("  waiting for tokens of other ranks", time.tokens);
  add("  waiting for activations", time.activations);
  add("  waiting for gradients", time.gradients);
  add("  optimizer, weights on their way", time.update);
  rows.push_back({"tokens/s of all ranks", with_commas(std::llround(tokens / time.total() * 1e3))});
  return rows;
}

std::string rank_table(const ConfigPlan& plan) {
  const RankPlan rank = plan_rank(plan.config, plan.world, plan.machine);
  Rows rows{{concat("one rank of ", plan.world), "bytes"}};
  const auto add = [&](const char* what, double bytes) {
    if (bytes > 0) rows.push_back({what, bytes_text(bytes)});
  };
  add("weights", rank.weights);
  add("masters of its part", rank.masters);
  add("optimizer of its part", rank.optimizer);
  add("gradients of its part, summed", rank.sums);
  add("buckets on their way", rank.travelling);
  add("quantized weights", rank.weight_forms);
  add("saved for backward", rank.saved);
  add("at most at once", rank.peak());
  const auto add_sent = [&](const char* what, const Sent& sent) {
    if (sent.bytes > 0) rows.push_back({what, sent_text(sent)});
  };
  add_sent("sent a step: gradients", rank.gradients);
  add_sent("sent a step: weights", rank.weights_sent);
  add_sent("sent a step: activations, in tensor groups", rank.activations);
  add_sent("sent a step: tokens, in expert groups", rank.tokens);
  for (std::vector<std::string>& row : time_rows(plan, rank)) rows.push_back(std::move(row));
  const ParallelConfig& parallel = plan.config.parallel;
  return concat("a step: ", rank.rounds, " x ", rank.rows, " sequences on each rank, experts over ",
                parallel.expert,
                parallel.tensor > 1 ? concat(", dense weights over ", parallel.tensor) : "", "\n",
                text_table(rows, table_style()));
}

std::string saved_table(const RunConfig& config) {
  const std::string recipe = config.convert.empty() ? config.training.recipe : "custom";
  Rows rows{{"saved for backward with " + recipe, "a token"}};
  double total = 0;
  for (const SavedTensor& saved : saved_for_backward(config)) {
    rows.push_back({saved.what, bytes_text(saved.bytes)});
    total += saved.bytes;
  }
  rows.push_back({"total", bytes_text(total)});
  const double again = plan_memory(config).recomputed_a_token;
  if (again > 0) rows.push_back({"and in backward of what is recomputed", bytes_text(again)});
  return text_table(rows, table_style());
}

nlohmann::json parameters_json(const TransformerConfig& config) {
  const ParameterCounts counts = count_parameters(config);
  nlohmann::json parts = nlohmann::json::object();
  for (const Part& part : parts_of(config)) {
    parts[part.name] = {{"total", part.counts.total}, {"active", part.counts.active}};
  }
  return {{"total", counts.total}, {"active", counts.active}, {"parts", parts}};
}

}  // namespace

std::string to_table(const ConfigPlan& plan) {
  return concat(model_line(plan.config.model), "\n\n", parameter_table(plan.config.model), "\n",
                conversion_table(plan.config), "\n", memory_table(plan), "\n",
                plan.world > 1 ? rank_table(plan) + "\n" : "",
                plan.config.training.device == TrainingDevice::CUDA ? gpu_table(plan) + "\n" : "",
                saved_table(plan.config));
}

std::string to_json(const ConfigPlan& plan) {
  nlohmann::json memory = nlohmann::json::array();
  for (const auto& [recipe, m] : memory_of(plan)) {
    memory.push_back({{"recipe", recipe},
                      {"weights", m.weights},
                      {"masters", m.masters},
                      {"optimizer", m.optimizer},
                      {"gradients", m.gradients},
                      {"saved_a_token", m.saved_a_token},
                      {"tokens", m.tokens},
                      {"peak", m.peak()},
                      {"quantized_weights", m.weight_forms},
                      {"quantized_weights_as_codes", m.codes}});
  }
  nlohmann::json json = {
      {"parameters", parameters_json(plan.config.model)},
      {"conversion", nlohmann::json::parse(plan_conversion(plan.config).to_json())},
      {"flops_a_token", model_flops(plan.config.model, plan.config.training.seq_len)},
      {"memory", memory}};
  if (plan.world > 1) {
    const RankPlan rank = plan_rank(plan.config, plan.world, plan.machine);
    json["rank"] = {{"world", rank.world},
                    {"rounds", rank.rounds},
                    {"rows", rank.rows},
                    {"weights", rank.weights},
                    {"masters", rank.masters},
                    {"optimizer", rank.optimizer},
                    {"sums", rank.sums},
                    {"travelling", rank.travelling},
                    {"quantized_weights", rank.weight_forms},
                    {"saved", rank.saved},
                    {"peak", rank.peak()},
                    {"gradients_sent", rank.gradients.bytes},
                    {"gradients_sent_across", rank.gradients.across},
                    {"weights_sent", rank.weights_sent.bytes},
                    {"weights_sent_across", rank.weights_sent.across},
                    {"activations_sent", rank.activations.bytes},
                    {"activations_sent_across", rank.activations.across},
                    {"tokens_sent", rank.tokens.bytes},
                    {"tokens_sent_across", rank.tokens.across}};
    if (plan.config.training.device == TrainingDevice::CUDA) {
      const StepTime time =
          plan_step_time(plan.config, rank, h200_rates(plan.config, plan.network_bytes));
      json["rank"]["step_ms"] = {{"total", time.total()},       {"compute", time.compute},
                                 {"tokens", time.tokens},       {"activations", time.activations},
                                 {"gradients", time.gradients}, {"update", time.update}};
    }
  }
  return json.dump(2) + "\n";
}

}  // namespace moe8
