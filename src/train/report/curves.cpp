// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/curves.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace moe8 {
namespace {

using Runs = std::vector<RunRecord>;
using Value = std::function<double(const StepMetrics&)>;

constexpr double kSmoothing = 1.0 / 50;  // of a run, to either side
constexpr double kSkip = 0.1;            // of a run: first losses would flatten the rest

Curve curve_of(const RunRecord& run, size_t index, const Value& value) {
  Curve curve{.run = index, .x = {}, .y = {}};
  for (const StepMetrics& step : run.steps) {
    curve.x.push_back(static_cast<double>(step.step));
    curve.y.push_back(value(step));
  }
  return curve;
}

Curve smooth(Curve curve) {
  const auto radius = static_cast<size_t>(static_cast<double>(curve.y.size()) * kSmoothing);
  curve.y = smoothed(curve.y, std::max<size_t>(1, radius));
  return curve;
}

// Every run's smoothed curve, and its steps behind it.
std::vector<Curve> smooth_and_raw(const Runs& runs, const Value& value) {
  std::vector<Curve> curves;
  for (size_t i = 0; i < runs.size(); ++i) {
    Curve raw = curve_of(runs[i], i, value);
    curves.push_back(smooth(raw));
    raw.is_raw = true;
    curves.push_back(std::move(raw));
  }
  return curves;
}

double loss_of(const StepMetrics& step) {
  return step.loss;
}

LineChart losses(const Report& report) {
  LineChart chart{.id = "loss",
                  .title = "Training loss",
                  .label = "Training loss by step, a curve for every run",
                  .unit = "nats",
                  .curves = smooth_and_raw(report.runs, loss_of),
                  .skip = kSkip};
  if (report.bigram_loss) chart.level = {*report.bigram_loss, "byte-bigram table"};
  return chart;
}

// Losses minus the first run's at the same step, then smoothed: so a run that ends early ends well.
LineChart loss_differences(const Runs& runs) {
  LineChart chart{.id = "difference",
                  .title = "Training loss minus that of " + runs.front().name,
                  .label = "Difference of the training loss to the first run, smoothed, by step",
                  .unit = "nats",
                  .level = {{0, runs.front().name}},
                  .skip = kSkip,
                  .is_signed = true};
  const Curve first = curve_of(runs.front(), 0, loss_of);
  for (size_t i = 1; i < runs.size(); ++i) {
    Curve curve = curve_of(runs[i], i, loss_of);
    const size_t common = std::min(curve.y.size(), first.y.size());
    curve.x.resize(common);
    curve.y.resize(common);
    for (size_t k = 0; k < common; ++k) curve.y[k] -= first.y[k];
    chart.curves.push_back(smooth(std::move(curve)));
  }
  return chart;
}

LineChart validation(const Runs& runs) {
  LineChart chart{.id = "validation",
                  .title = "Validation loss",
                  .label = "Validation loss where it was measured, by step",
                  .unit = "nats",
                  .is_small = true};
  for (size_t i = 0; i < runs.size(); ++i) {
    Curve curve{.run = i, .x = {}, .y = {}};
    for (const StepMetrics& step : runs[i].steps) {
      if (!step.validation_loss) continue;
      curve.x.push_back(static_cast<double>(step.step));
      curve.y.push_back(*step.validation_loss);
    }
    if (!curve.x.empty()) chart.curves.push_back(std::move(curve));
  }
  return chart;
}

bool all_positive(const LineChart& chart) {
  return std::ranges::all_of(chart.curves, [](const Curve& curve) {
    return std::ranges::all_of(curve.y, [](double value) { return value > 0; });
  });
}

LineChart gradient_norm(const Runs& runs) {
  LineChart chart{.id = "gradient",
                  .title = "Gradient norm",
                  .label = "Norm of all gradients before clipping, by step",
                  .curves = smooth_and_raw(runs, [](const StepMetrics& s) { return s.grad_norm; }),
                  .is_small = true};
  chart.is_log = all_positive(chart);
  return chart;
}

LineChart learning_rate(const Runs& runs) {
  LineChart chart{
      .id = "rate", .title = "Learning rate", .label = "Learning rate by step", .is_small = true};
  for (size_t i = 0; i < runs.size(); ++i) {
    chart.curves.push_back(curve_of(runs[i], i, [](const StepMetrics& s) { return s.lr; }));
  }
  return chart;
}

LineChart speed(const Runs& runs) {
  return {.id = "speed",
          .title = "Tokens per second",
          .label = "Tokens per second by step; slower where numerics are looked at",
          .unit = "tokens/s",
          .curves = smooth_and_raw(runs, [](const StepMetrics& s) { return s.tokens_per_s; }),
          .skip = kSkip,
          .is_small = true};
}

// Layers aside: which layer it is shows the map of expert_maps.h.
LineChart busiest_expert(const Runs& runs) {
  return {.id = "experts",
          .title = "Busiest expert of any layer",
          .label = "Rows of the busiest expert of any layer, relative to the mean, by step",
          .unit = "x mean",
          .curves = smooth_and_raw(runs, [](const StepMetrics& s) { return s.expert_load_max; }),
          .level = {{1, "perfect balance"}},
          .is_small = true};
}

bool has_several(const LineChart& chart) {
  return std::ranges::any_of(chart.curves, [](const Curve& c) { return c.x.size() > 1; });
}

bool has_experts(const Runs& runs) {
  return std::ranges::any_of(runs, [](const RunRecord& run) {
    return run.config.model.n_layers > run.config.model.n_dense_layers;
  });
}

}  // namespace

std::vector<LineChart> curves_of(const Report& report) {
  const Runs& runs = report.runs;
  std::vector<LineChart> charts{losses(report)};
  if (runs.size() > 1) charts.push_back(loss_differences(runs));
  if (LineChart chart = validation(runs); has_several(chart)) charts.push_back(std::move(chart));
  charts.push_back(gradient_norm(runs));
  charts.push_back(learning_rate(runs));
  charts.push_back(speed(runs));
  if (has_experts(runs)) charts.push_back(busiest_expert(runs));
  return charts;
}

}  // namespace moe8
