// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/expert_maps.h"

#include <algorithm>
#include <cmath>

#include "base/plain_text.h"
#include "numerics/bounds.h"
#include "train/report/heat_map.h"
#include "train/report/html.h"

namespace moe8 {
namespace {

using Runs = std::vector<RunRecord>;

std::string layer_name(const RunRecord& run, size_t layer) {
  return "layers." + std::to_string(run.config.model.n_dense_layers + static_cast<int64_t>(layer));
}

double largest_load(const RunRecord& run) {
  const TransformerConfig& model = run.config.model;
  return static_cast<double>(model.n_experts) / static_cast<double>(model.top_k);
}

std::optional<double> bound_of(const RunRecord& run) {
  const auto bound = default_bound(NumericsQuantity::BUSIEST_EXPERT, {});
  if (!bound) return std::nullopt;
  return most_for_busiest(bound->most, largest_load(run));
}

std::string steps_name(int64_t first, int64_t last) {
  return first == last ? "step " + std::to_string(first)
                       : "steps " + std::to_string(first) + " to " + std::to_string(last);
}

// The worst of the steps of a column. Files of older versions say nothing of single layers.
std::string over_steps(const RunRecord& run) {
  const size_t layers = run.steps.back().layers.size();
  if (layers == 0) return "";
  const size_t steps = run.steps.size(), count = columns_for(layers, steps);
  HeatPanel panel{.title = "busiest expert, by layer and step"};
  panel.rows.assign(layers, std::vector<double>(count, NAN));
  panel.notes.assign(layers, std::vector<std::string>(count));
  for (size_t c = 0; c < count; ++c) {
    const size_t begin = steps * c / count, end = steps * (c + 1) / count;
    panel.columns.push_back(steps_name(run.steps[begin].step, run.steps[end - 1].step));
    for (size_t l = 0; l < layers; ++l) {
      LayerLoad worst{.busiest = 0, .idle = 0};
      for (size_t s = begin; s < end; ++s) {
        if (run.steps[s].layers.size() != layers) continue;
        worst.busiest = std::max(worst.busiest, run.steps[s].layers[l].busiest);
        worst.idle = std::max(worst.idle, run.steps[s].layers[l].idle);
      }
      if (worst.busiest == 0) continue;
      panel.rows[l][c] = worst.busiest;
      if (worst.idle > 0) panel.notes[l][c] = std::to_string(worst.idle) + " without a token";
    }
  }
  HeatMap map{.label = "Busiest expert of every layer of " + run.name + " by step",
              .unit = "x mean",
              .low = 1,
              .high = largest_load(run)};
  for (size_t l = 0; l < layers; ++l) map.rows.push_back(layer_name(run, l));
  map.panels.push_back(std::move(panel));
  if (const auto bound = bound_of(run)) {
    map.most = *bound;
    map.marks.emplace_back(*bound, formatted("bound: %.3g", *bound));
  }
  return to_html(map);
}

std::string at_the_end(const RunRecord& run) {
  if (run.numerics.empty() || run.numerics.back().experts.empty()) return "";
  const NumericsLine& last = run.numerics.back();
  HeatMap map{.label = "Tokens of every expert at the last look at " + run.name,
              .unit = "x mean",
              .low = 0,
              .high = std::max(2.0, largest_load(run))};
  HeatPanel panel{.title = "every expert at step " + std::to_string(last.step)};
  size_t most = 0;
  for (const ExpertTokens& experts : last.experts) {
    map.rows.push_back(experts.fqn.substr(0, experts.fqn.find(".moe.")));
    std::vector<double> row;
    for (const int64_t tokens : experts.tokens) {
      row.push_back(experts.mean() > 0 ? static_cast<double>(tokens) / experts.mean() : NAN);
    }
    most = std::max(most, row.size());
    panel.rows.push_back(std::move(row));
  }
  for (size_t e = 0; e < most; ++e) panel.columns.push_back("expert " + std::to_string(e));
  map.panels.push_back(std::move(panel));
  return to_html(map);
}

}  // namespace

std::string expert_maps(const Runs& runs) {
  std::string maps;
  for (size_t i = 0; i < runs.size(); ++i) {
    const std::string html = over_steps(runs[i]) + at_the_end(runs[i]);
    if (!html.empty()) maps += "<h3>" + run_label(i, runs[i].name) + "</h3>\n" + html;
  }
  if (maps.empty()) return "";
  return section("Balance of the experts", maps,
                 "Above: rows of the busiest expert of a layer, relative to the mean; where steps "
                 "share a column, the worst counts. At 1 all experts got the same; the other end "
                 "of the colours is where every token goes to the same experts. Red: beyond the "
                 "bound. Below: every expert at the last look.");
}

}  // namespace moe8
