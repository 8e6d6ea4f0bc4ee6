// SPDX-License-Identifier: BSD-3-Clause
// report.html from the files of runs: what stands on it, that it is well formed, needs nothing from
// outside, and that a browser has nothing to complain of.
#include "train/report/report.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>

#include "testing/compare.h"
#include "testing/folder.h"
#include "train/report/flops.h"
#include "train/report/heat_map.h"
#include "train/report/html.h"
#include "train/report/line_chart.h"
#include "train/report/verdict.h"
#include "train/store/run_folder.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

NumericsReport look(int64_t step) {
  NumericsReport report;
  for (const char* name : {"layers.0.attention.wq.weight", "layers.1.moe.experts.w1"}) {
    WeightNumerics& weight = report.weights.emplace_back();
    weight.fqn = name;
    for (const char* product : {"out", "grad_input", "grad_weight"}) {
      ProductNumerics& p = weight.products.emplace_back();
      p.name = product;
      p.left = {.name = "left", .format = "mx float8_e4m3fn rceil"};
      p.right = {.name = "right", .format = "mx float8_e4m3fn rceil"};
      p.sqnr_db = 25 + 0.1 * static_cast<double>(step % 50);
    }
  }
  report.weights[1].products[0].sqnr_db = INFINITY;
  report.weights[0].products[2].sqnr_db = 12;  // below the bound
  report.experts = {{"layers.1.moe.experts", {30, 10, 0, 60 + step}}};
  report.warnings = {{"layers.1.moe.experts",
                      NumericsQuantity::IDLE_EXPERTS,
                      0.25,
                      {NumericsQuantity::IDLE_EXPERTS, {}, 0, 0.2}}};
  return report;
}

struct MadeUp {
  std::string recipe = "bf16";
  int64_t steps = 40;
  double worse = 0;
  bool finished = true;
  int64_t interval = 10;  // 0: no looks
};

// The folder of a run that never took place.
std::string make_run(const TemporaryFolder& folder, const std::string& name, const MadeUp& run) {
  std::filesystem::create_directories(folder / name);
  const RunFolder files{folder / name};
  RunConfig config;
  config.training.recipe = run.recipe;
  config.training.steps = 40;
  config.model.n_layers = 2;
  config.data.files = {"a<b>&\"c\".txt"};
  std::ofstream(files.config()) << to_toml(config);
  MetricsFile metrics(files.metrics());
  metrics.write(RunStart{.step = 1,
                         .date = "2026-01-02 03:04:05 UTC",
                         .program = "moe8 0.1.0 (abc)",
                         .command = "moe8 train --data 'a </script> b'",
                         .machine = "a CPU",
                         .device = "CPU",
                         .threads = 2});
  for (int64_t step = 1; step <= run.steps; ++step) {
    if (run.interval > 0 && (step == 1 || step % run.interval == 0))
      metrics.write_numerics(step, look(step).to_json());
    StepMetrics m;
    m.step = step;
    m.loss = 2 + 3 * std::exp(-0.1 * static_cast<double>(step)) + run.worse;
    m.lr = 1e-3;
    m.grad_norm = 1;
    m.tokens_per_s = 1000 + static_cast<double>(step % 3);
    m.tokens_per_cpu_s = 500;
    m.expert_load_max = 3.5;
    m.layers = {{.busiest = step < 20 ? 3.5 : 1.5, .idle = step < 20 ? 2 : 0}};
    if (step == run.steps && run.finished) m.validation_loss = m.loss + 0.1;
    metrics.write(m);
  }
  if (run.finished) {
    std::ofstream(files.result()) << R"({"tokens_per_s": 1001, "peak_memory_bytes": 500000000})";
  }
  return files.path;
}

Report made_up(const TemporaryFolder& folder) {
  return {.title = "Runs <compared>",
          .introduction = "An introduction.",
          .runs = read_runs(
              {make_run(folder, "base", {}),
               make_run(folder, "mx & co", {.recipe = "mxfp8_rceil", .worse = 0.01}),
               make_run(folder, "half",
                        {.recipe = "rowwise", .steps = 20, .finished = false, .interval = 0})}),
          .bigram_loss = 2.4};
}

// Not HasSubstr: it would print the page.
bool holds(const std::string& page, const std::string& part) {
  return page.find(part) != std::string::npos;
}

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++count;
  return count;
}

// The page without its scripts, whose text is no markup.
std::string without_scripts(std::string html) {
  for (size_t at; (at = html.find("<script")) != std::string::npos;) {
    const size_t end = html.find("</script>", at);
    if (end == std::string::npos) return "a script does not end";
    html.erase(at, end + std::string("</script>").size() - at);
  }
  return html;
}

// Empty when every tag is closed in order and every attribute quoted; else what is wrong.
std::string malformed(const std::string& page) {
  const std::string html = without_scripts(page);
  std::vector<std::string> open;
  for (size_t at = html.find('<'); at != std::string::npos; at = html.find('<', at + 1)) {
    const size_t end = html.find('>', at);
    if (end == std::string::npos) return "'<' without '>'";
    const std::string tag = html.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(0, tag.find_first_of(" /", 1));
    if (count_of(tag, "\"") % 2 != 0 || count_of(tag, "=\"") * 2 != count_of(tag, "\"")) {
      return "attributes of <" + tag + ">";
    }
    if (tag.starts_with("!") || name == "meta" || tag.ends_with("/")) continue;
    if (!tag.starts_with("/")) {
      open.push_back(name);
    } else if (open.empty() || "/" + open.back() != name) {
      return "<" + name + "> closes " + (open.empty() ? "nothing" : open.back());
    } else {
      open.pop_back();
    }
  }
  return open.empty() ? "" : open.back() + " is not closed";
}

// ---- the page ---------------------------------------------------------------
TEST(Report, HoldsEveryPartAndNothingFromOutside) {
  const TemporaryFolder folder;
  const std::string page = report_html(made_up(folder));
  EXPECT_EQ(malformed(page), "");
  for (const char* part :
       {"<h1>Runs &lt;compared&gt;</h1>", "An introduction.", "mx &amp; co", "+0.46 %", "20 of 40",
        "500 MB", "byte-bigram table", "Training loss minus that of base", "Tokens per second",
        "layers.1.moe.experts.w1", "<h4>grad_weight</h4>", "layers.0.attention.wq, step 10: 26 dB",
        ": exact", "expert 3: 2.86 x mean",
        "step 40: layers.1.moe.experts: idle experts 0.25, expected at most 0.2",
        "prefers-color-scheme: dark", "width=device-width"}) {
    EXPECT_TRUE(holds(page, part)) << part;
  }
  for (const char* outside :
       {"href=", "src=", "url(", "@import", "nan", "inf,", "http:", "https:"}) {
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
  }
  EXPECT_TRUE(holds(page, "content=\"default-src 'none';"));
  EXPECT_EQ(count_of(page, "<script"), 2u);
  EXPECT_EQ(count_of(page, "</script>"), 2u);  // none of the command line's
  // SQNR, load over steps, experts at the end: of two runs; load over steps of the third.
  EXPECT_EQ(count_of(page, "class=\"heat "), 7u);
  // Loss, difference, gradient norm, learning rate, speed, busiest expert.
  EXPECT_EQ(count_of(page, "class=\"chart\""), 6u);
}

TEST(Report, SaysWhereARunComesFrom) {
  const TemporaryFolder folder;
  const std::string page = report_html(made_up(folder));
  for (const char* part : {"2026-01-02 03:04:05 UTC", "moe8 0.1.0 (abc)", "a CPU", "CPU, 2 threads",
                           "moe8 train --data 'a &lt;/script&gt; b'"}) {
    EXPECT_TRUE(holds(page, part)) << part;
  }
}

TEST(Report, LoadOfEveryLayerAndBoundsAreShown) {
  const TemporaryFolder folder;
  const std::string page = report_html(made_up(folder));
  EXPECT_TRUE(holds(page, "class=\"out\""));
  EXPECT_TRUE(holds(page, "layers.1, step 3: 3.5 x mean, 2 without a token"));
  EXPECT_TRUE(holds(page, "layers.1, step 25: 1.5 x mean</title>"));
  EXPECT_TRUE(holds(page, ">bound: 3</text>"));
  EXPECT_TRUE(holds(page, ">bound of float8_e4m3fn: 19 dB</text>"));
}

// ---- the verdict ------------------------------------------------------------
RunRecord run_of(const std::string& name, const std::function<double(int64_t)>& loss,
                 int64_t steps = 200) {
  RunRecord run{.name = name};
  run.config.training.recipe = name;
  run.config.training.steps = steps;
  for (int64_t step = 1; step <= steps; ++step) {
    run.steps.push_back({.step = step, .loss = loss(step)});
  }
  run.finished = true;
  run.train_loss = loss(steps);
  return run;
}

// Noise of mean zero over an even number of steps.
double flip(int64_t step) {
  return step % 2 == 0 ? 1 : -1;
}

TEST(Verdict, SaysWhatTheStepsSupport) {
  const RunRecord base = run_of("bf16", [](int64_t) { return 2; });
  const RunRecord same = run_of("mx", [](int64_t s) { return 2 + 0.005 * flip(s); });
  const RunRecord worse = run_of("worse", [](int64_t s) { return 2.02 + 0.005 * flip(s); });
  const RunRecord wild = run_of("wild", [](int64_t s) { return 2 + 0.5 * flip(s); });
  RunRecord brief = run_of(
      "brief", [](int64_t) { return 2; }, 39);
  brief.config.training.steps = base.config.training.steps;  // it still goes on
  EXPECT_EQ(verdict_of({base, same}).sentence, "mx is within noise of bf16.");
  EXPECT_EQ(verdict_of({base, worse}).sentence, "worse trains to a loss 1.00 % above bf16.");
  EXPECT_THAT(verdict_of({base, wild}).sentence, HasSubstr("too noisy to tell wild from it"));
  EXPECT_EQ(verdict_of({base, brief}).sentence, "brief is too short for a verdict.");
  EXPECT_EQ(verdict_of({base, same, same}).sentence, "mx and mx are within noise of bf16.");
  RunRecord other = same;
  other.config.training.seed = 2;
  const ReportVerdict verdict = verdict_of({base, other});
  EXPECT_EQ(verdict.sentence, "mx differs from bf16 in more than the recipe.");
  EXPECT_THAT(verdict.evidence.at(0), HasSubstr("differs in training.seed as well"));
  EXPECT_THAT(verdict_of({base}).sentence, HasSubstr("bf16, 200 steps: training loss "));
}

TEST(Verdict, TheMarginCoversWhatNeighbouringStepsShare) {
  // A slow wave: single steps would claim far too much.
  const RunRecord base = run_of(
      "bf16", [](int64_t) { return 2; }, 400);
  const RunRecord wave = run_of(
      "wave", [](int64_t s) { return 2 + 0.01 * std::sin(static_cast<double>(s) / 8); }, 400);
  const auto difference = loss_difference(wave, base);
  ASSERT_TRUE(difference);
  EXPECT_EQ(difference->first_step, 301);
  EXPECT_EQ(difference->last_step, 400);
  EXPECT_TRUE(difference->within_noise());
  EXPECT_GT(difference->margin, 0.002);
}

TEST(Flops, CountWhatATokenIsMultipliedWith) {
  TransformerConfig config;
  config.dim = 64;
  config.n_layers = 2;
  config.n_dense_layers = 1;
  config.dense_hidden_dim = 128;
  config.hidden_dim = 32;
  config.n_heads = config.n_kv_heads = 2;
  const double dense = 4 * 64 * 64 + 3 * 64 * 128;  // attention and feed-forward
  // Attention, router over 8 experts, 2 experts of a token and the shared one.
  const double moe = 4 * 64 * 64 + 64 * 8 + 3 * 3 * 64 * 32;
  const double output = 64 * 256;
  const double norms = 5 * 64;
  EXPECT_EQ(model_flops(config, 16), 6 * (dense + moe + output + norms + 2 * 64 * 16));
  EXPECT_EQ(bf16_peak("NVIDIA H200"), 989e12);
  EXPECT_EQ(bf16_peak("NVIDIA H100 PCIe"), 756e12);
  EXPECT_EQ(bf16_peak("NVIDIA GB200"), 2500e12);
  EXPECT_EQ(bf16_peak("NVIDIA H20"), 148e12);
  EXPECT_EQ(bf16_peak("NVIDIA A100-SXM4-80GB"), 312e12);
  EXPECT_EQ(bf16_peak("NVIDIA L40S"), 362e12);
  EXPECT_EQ(bf16_peak("NVIDIA L4"), 121e12);
  EXPECT_FALSE(bf16_peak("NVIDIA H200 MIG 1g.18gb"));
  EXPECT_FALSE(bf16_peak("CPU"));
}

TEST(Report, ConfigsStandSideBySideWithWhatDiffersFirst) {
  const TemporaryFolder folder;
  const std::string page = report_html(made_up(folder));
  EXPECT_TRUE(holds(page,
                    "<tr class=\"differs\"><td>training.recipe</td><td>'bf16'</td>"
                    "<td>'mxfp8_rceil'</td><td>'rowwise'</td></tr>"));
  EXPECT_EQ(count_of(page, "class=\"differs\""), 1u);
  EXPECT_TRUE(holds(page, "<tr><td>data.files</td><td>[ 'a&lt;b&gt;&amp;&quot;c&quot;.txt' ]"));
}

TEST(Report, OneRunWithoutNumericsHasNoEmptyParts) {
  const TemporaryFolder folder;
  const std::string path = make_run(folder, "only", {.interval = 0});
  const std::string page = report_html({.title = "One", .runs = read_runs({path})});
  EXPECT_EQ(malformed(page), "");
  for (const char* part : {"Difference to", "Error of the products", "Warnings<"}) {
    EXPECT_EQ(page.find(part), std::string::npos) << part;
  }
  EXPECT_TRUE(holds(page, "Balance of the experts"));  // by the lines of its steps
}

TEST(Report, AShortRunAndALongOneAreDrawn) {
  const TemporaryFolder folder;
  const auto runs = read_runs({make_run(folder, "one", {.steps = 1, .interval = 1}),
                               make_run(folder, "long", {.steps = 5000, .interval = 2})});
  const std::string page = report_html({.title = "Both", .runs = runs});
  EXPECT_EQ(malformed(page), "");
  EXPECT_EQ(page.find("nan"), std::string::npos);
  EXPECT_LT(page.size(), 1'000'000u);  // 2500 looks and 5000 steps are thinned out
}

// ---- reading runs -----------------------------------------------------------
TEST(RunRecord, UnfinishedRunsAreReadToo) {
  const TemporaryFolder folder;
  const RunRecord run = read_run(make_run(folder, "half", {.steps = 20, .finished = false}));
  EXPECT_FALSE(run.finished);
  EXPECT_FALSE(run.validation_loss || run.peak_memory);
  EXPECT_EQ(run.speed.wall.median, 1001);
  EXPECT_EQ(run.numerics.size(), 3u);
}

TEST(RunRecord, NamesTellRunsApart) {
  const TemporaryFolder folder;
  const std::string a = make_run(folder, "a/run", {}), b = make_run(folder, "b/run", {});
  const std::string c = make_run(folder, "c", {});
  const auto runs = read_runs({a, b, c + "/"});
  EXPECT_EQ(runs[0].name, a);
  EXPECT_EQ(runs[1].name, b);
  EXPECT_EQ(runs[2].name, "c");
}

TEST(RunRecord, MistakesAreNamed) {
  const TemporaryFolder folder;
  EXPECT_THAT(error_of([&] { read_runs({}); }), HasSubstr("at least one folder"));
  EXPECT_THAT(error_of([&] { read_run(folder / "none"); }),
              HasSubstr("none: expected the folder of a run, with run.toml and metrics.jsonl"));
  const std::string empty = make_run(folder, "empty", {.steps = 0});
  EXPECT_THAT(error_of([&] { read_run(empty); }), HasSubstr("expected at least one step"));
  const std::string broken = make_run(folder, "broken", {});
  folder.write("broken/result.json", "{}");
  EXPECT_THAT(error_of([&] { read_run(broken); }), HasSubstr("expected the result of a run"));
}

// ---- charts -----------------------------------------------------------------
TEST(Charts, SmoothingIsAMovingMean) {
  EXPECT_EQ(smoothed({1, 2, 6, 3}, 1), (std::vector<double>{1.5, 3, 11.0 / 3, 4.5}));
  EXPECT_EQ(smoothed({1, 2}, 0), (std::vector<double>{1, 2}));
  EXPECT_EQ(smoothed({}, 3), std::vector<double>{});
}

TEST(Charts, ThinningKeepsThePeaks) {
  Curve curve;
  for (int i = 0; i < 1000; ++i) {
    curve.x.push_back(i);
    curve.y.push_back(i == 613 ? 50 : i == 614 ? -50 : 1);
  }
  const Curve thin = thinned(curve, 10);
  EXPECT_EQ(thin.y.size(), 20u);
  EXPECT_TRUE(std::ranges::is_sorted(thin.x));
  EXPECT_THAT(thin.y, ::testing::AllOf(::testing::Contains(50), ::testing::Contains(-50)));
  EXPECT_EQ(thinned(curve, 500).y, curve.y);
}

TEST(Charts, ValuesThatAreNoNumbersAreLeftOut) {
  const LineChart chart{.label = "\"<&>\"", .curves = {{0, {1, 2, 3}, {1, NAN, INFINITY}}}};
  const std::string svg = to_figure(chart) + to_json(chart);
  EXPECT_EQ(malformed(svg), "");
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  EXPECT_EQ(malformed(to_figure(LineChart{.label = "empty"})), "");
  EXPECT_EQ(malformed(to_html(HeatMap{.label = "empty", .unit = "dB"})), "");
}

// What lies beyond the range is cut off by the frame, not drawn along its edge.
TEST(Charts, CurvesAreClippedNotClamped) {
  LineChart chart{.id = "loss", .skip = 0.5};
  chart.curves = {{0, {1, 2, 3, 4}, {100, 50, 1, 2}}};
  const std::string svg = to_figure(chart);
  const size_t frame = svg.find("<svg x=");
  ASSERT_NE(frame, std::string::npos);
  const std::string points = svg.substr(svg.find("points=\"", frame) + 8, 40);
  EXPECT_THAT(points, ::testing::StartsWith("62.0,-"));  // far above the frame, which begins at 10
}

TEST(Charts, TheLastTickLabelIsNotCutOff) {
  LineChart chart{.id = "loss"};
  chart.curves = {{0, {0, 2000}, {1, 2}}};
  EXPECT_THAT(to_figure(chart), HasSubstr("text-anchor=\"end\">2000</text>"));
}

// ---- a browser --------------------------------------------------------------
std::string output_of(const std::string& command) {
  std::string text;
  FILE* pipe = ::popen(command.c_str(), "r");
  if (!pipe) return text;
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) text.append(buffer, n);
  ::pclose(pipe);
  return text;
}

TEST(Report, ABrowserRendersItWithoutAComplaint) {
  const std::string browser =
      output_of("command -v chromium || command -v chromium-browser || command -v google-chrome");
  if (browser.empty()) GTEST_SKIP() << "no Chromium here: apt-get install chromium";
  const TemporaryFolder folder;
  write_report(made_up(folder), folder / "report.html");
  folder.write("bad.html", "<!doctype html><title>x</title><svg><polyline points=\"nan\"/></svg>");
  const auto open = [&](const std::string& page) {
    return output_of("timeout 90 " + browser.substr(0, browser.find('\n')) +
                     " --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage"
                     " --no-first-run --user-data-dir='" +
                     (folder / "profile") + "' --enable-logging=stderr --dump-dom 'file://" +
                     (folder / page) + "' 2>&1");
  };
  const std::string complaint = open("bad.html");
  ASSERT_THAT(complaint, HasSubstr("CONSOLE")) << "this browser does not say what is wrong";
  const std::string text = open("report.html");
  EXPECT_THAT(text, HasSubstr("Balance of the experts</h2>"));
  EXPECT_THAT(text, HasSubstr("</html>"));
  EXPECT_THAT(text, HasSubstr("class=\"scripted\""));
  EXPECT_THAT(text, HasSubstr("aria-pressed=\"true\""));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("CONSOLE")));
}

}  // namespace
}  // namespace moe8
