// SPDX-License-Identifier: BSD-3-Clause
// report.html of the demo: table, SVG chart, config.
#include "train/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "base/check.h"
#include "io/file.h"
#include "train/metrics.h"

namespace moe8 {
namespace {

constexpr double kWidth = 860, kHeight = 400;  // of the chart, in SVG units
constexpr double kLeft = 56, kRight = 16, kTop = 16, kBottom = 44;
constexpr int kTicks = 6;

// Colours that differ in hue and lightness and work on both backgrounds (Okabe and Ito's set).
constexpr std::array<const char*, 6> kColours{"#0072b2", "#d55e00", "#009e73",
                                              "#cc79a7", "#e69f00", "#56b4e9"};

constexpr const char* kStyle = R"css(
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5c6670; --line: #d5dbe1; --paper: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa5b0; --line: #3a424a; --paper: #15181b; }
}
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; } .raw { opacity: .2; fill: none; stroke-width: 1; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.bigram { stroke: var(--soft); stroke-dasharray: 6 4; fill: none; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .5rem; }
pre { overflow: auto; border: 1px solid var(--line); border-radius: 6px; padding: .8rem; font-size: 13px; }
p { color: var(--soft); }
)css";

std::string text(const char* format, auto... values) {
  char buffer[512];
  std::snprintf(buffer, sizeof buffer, format, values...);
  return buffer;
}

std::string escaped(const std::string& plain) {
  std::string out;
  for (const char c : plain) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else {
      out += c;
    }
  }
  return out;
}

const char* colour(size_t run) {
  return kColours[run % kColours.size()];
}

struct Curve {
  std::vector<double> raw;
  std::vector<double> smooth;
};

// Where a value lies on the chart.
struct Axes {
  double steps;      // the last step; the first is 1
  double low, high;  // losses at the bottom and top

  double x(double step) const {
    return kLeft + (step - 1) / std::max(1.0, steps - 1) * (kWidth - kLeft - kRight);
  }
  double y(double loss) const {
    const double part = (std::clamp(loss, low, high) - low) / (high - low);
    return kHeight - kBottom - part * (kHeight - kTop - kBottom);
  }
};

Axes axes_of(const std::vector<Curve>& curves, double bigram_loss) {
  Axes axes{1, bigram_loss, bigram_loss};
  for (const Curve& curve : curves) {
    axes.steps = std::max(axes.steps, static_cast<double>(curve.raw.size()));
    for (const double loss : curve.smooth) {
      axes.low = std::min(axes.low, loss);
      axes.high = std::max(axes.high, loss);
    }
  }
  // The first steps fall from ln 256 and would flatten what matters.
  axes.high = std::min(axes.high, bigram_loss + 1.0);
  axes.low = std::floor(axes.low * 10) / 10;
  axes.high = std::max(std::ceil(axes.high * 10) / 10, axes.low + 0.1);
  return axes;
}

std::string polyline(const std::vector<double>& losses, const Axes& axes, const char* kind,
                     size_t run) {
  std::string points;
  for (size_t i = 0; i < losses.size(); ++i) {
    points += text("%.1f,%.1f ", axes.x(static_cast<double>(i + 1)), axes.y(losses[i]));
  }
  return text("<polyline class=\"%s\" stroke=\"%s\" points=\"", kind, colour(run)) + points +
         "\"/>\n";
}

std::string grid(const Axes& axes) {
  std::string out;
  for (int i = 0; i <= kTicks; ++i) {
    const double part = static_cast<double>(i) / kTicks;
    const double loss = axes.low + part * (axes.high - axes.low);
    const double step = std::round(1 + part * (axes.steps - 1));
    out += text("<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", kLeft,
                kWidth - kRight, axes.y(loss), axes.y(loss));
    out += text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%.2f</text>", kLeft - 8,
                axes.y(loss) + 4, loss);
    out += text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%.0f</text>\n", axes.x(step),
                kHeight - kBottom + 18, step);
  }
  return out + text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">step</text>",
                    (kLeft + kWidth) / 2, kHeight - 8);
}

std::string chart(const std::vector<Curve>& curves, double bigram_loss) {
  const Axes axes = axes_of(curves, bigram_loss);
  std::string svg = text(
      "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" "
      "aria-label=\"Training loss by step, one curve a recipe\">\n",
      kWidth, kHeight);
  svg += grid(axes);
  svg += text("<line class=\"bigram\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", kLeft,
              kWidth - kRight, axes.y(bigram_loss), axes.y(bigram_loss));
  svg += text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">byte-bigram table</text>\n",
              kWidth - kRight, axes.y(bigram_loss) - 6);
  for (size_t run = 0; run < curves.size(); ++run)
    svg += polyline(curves[run].raw, axes, "raw", run);
  for (size_t run = 0; run < curves.size(); ++run)
    svg += polyline(curves[run].smooth, axes, "curve", run);
  return svg + "</svg>\n";
}

std::string table(const DemoResult& result) {
  std::string html =
      "<table><thead><tr><th>recipe</th><th>train loss</th><th>validation loss</th><th>vs bf16</th>"
      "<th>tokens/s</th><th>peak memory</th></tr></thead><tbody>\n";
  for (size_t i = 0; i < result.runs.size(); ++i) {
    const RunResult& run = result.runs[i];
    html +=
        text("<tr><td><span class=\"swatch\" style=\"background:%s\"></span>", colour(i)) +
        escaped(run.recipe) +
        text("</td><td>%.4f</td><td>%.4f</td><td>%+.2f %%</td><td>%.0f</td><td>%.0f MB</td></tr>\n",
             run.train_loss, run.validation_loss, result.difference(run), run.tokens_per_s,
             static_cast<double>(run.peak_memory) / 1e6);
  }
  return html +
         text(
             "<tr><td>byte-bigram table</td><td></td><td>%.4f</td><td></td><td></td><td></td></tr>"
             "</tbody></table>\n",
             result.bigram_loss);
}

std::vector<Curve> curves_of(const DemoResult& result) {
  std::vector<Curve> curves;
  for (const RunResult& run : result.runs) {
    Curve curve;
    for (const StepMetrics& metrics : read_metrics(RunFolder{run.folder}.metrics())) {
      curve.raw.push_back(metrics.loss);
    }
    curve.smooth = smoothed(curve.raw, std::max<size_t>(1, curve.raw.size() / 50));
    curves.push_back(std::move(curve));
  }
  return curves;
}

}  // namespace

std::vector<double> smoothed(const std::vector<double>& values, size_t radius) {
  std::vector<double> result;
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t begin = i > radius ? i - radius : 0, end = std::min(values.size(), i + radius + 1);
    double sum = 0;
    for (size_t j = begin; j < end; ++j) sum += values[j];
    result.push_back(sum / static_cast<double>(end - begin));
  }
  return result;
}

void write_report(const DemoResult& result, const std::string& path) {
  MOE8_CHECK(!result.runs.empty(), "report", "runs", "expected at least one, got none");
  const RunResult& first = result.runs.front();
  std::string html =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width\">"
      "<title>moe8 demo</title><style>";
  html += kStyle;
  html += "</style></head><body>\n<h1>moe8 demo: one model, one seed, several recipes</h1>\n";
  html +=
      text("<p>%.2f million parameters, %.2f million of them active for a token; %lld steps.</p>\n",
           static_cast<double>(first.parameters) / 1e6,
           static_cast<double>(first.active_parameters) / 1e6, static_cast<long long>(first.steps));
  html += table(result);
  html +=
      "<p>Losses in nats per byte. Train loss: mean of the last steps. Peak memory: most resident "
      "memory of the whole process during the run, LibTorch's libraries included.</p>\n";
  html += "<h2>Training loss</h2>\n" + chart(curves_of(result), result.bigram_loss);
  html += "<p>Thick: a moving mean over about a twenty-fifth of the run. Thin: single steps.</p>\n";
  html += "<h2>Config</h2>\n<pre>" + escaped(to_toml(result.config)) + "</pre>\n</body></html>\n";
  AtomicFile file("report", path);
  file.write(html.data(), html.size());
  file.commit();
}

}  // namespace moe8
