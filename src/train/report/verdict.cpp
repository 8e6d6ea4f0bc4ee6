// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/verdict.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string_view>

#include "base/nearest.h"
#include "base/plain_text.h"
#include "train/report/html.h"
#include "train/report/run_tables.h"

namespace moe8 {
namespace {

using Runs = std::vector<RunRecord>;

constexpr size_t kStretches = 10;
constexpr double kStudent = 2.262;  // 97.5 % of Student's t with kStretches - 1 degrees of freedom
constexpr size_t kMinCommonSteps = 40;  // a quarter of them makes stretches of a step each

// Keys that decide in what and where a run computes or writes, not what it learns.
bool is_no_other_run(const std::string& key) {
  constexpr std::array<std::string_view, 5> kKeys{"training.recipe", "convert", "training.threads",
                                                  "training.device",
                                                  "training.validation_interval"};
  return key.starts_with("output.") || key.starts_with("numerics.") ||
         key.starts_with("checkpoint.") || std::ranges::find(kKeys, key) != kKeys.end();
}

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// 95 % of confidence in the mean of values of which neighbours are alike.
double margin_of(const std::vector<double>& values) {
  std::vector<double> means;
  for (size_t i = 0; i < kStretches; ++i) {
    const auto at = [&](size_t n) {
      return values.begin() + static_cast<std::ptrdiff_t>(values.size() * n / kStretches);
    };
    means.push_back(mean_of({at(i), at(i + 1)}));
  }
  const double center = mean_of(means);
  double squares = 0;
  for (const double mean : means) squares += (mean - center) * (mean - center);
  return kStudent * std::sqrt(squares / (kStretches * (kStretches - 1)));
}

enum class Kind { NO_DIFFERENCE, DIFFERENT, UNCLEAR, TOO_SHORT, OTHER_SETTINGS };

Kind kind_of(const RunRecord& run, const RunRecord& first,
             const std::optional<LossDifference>& difference) {
  if (!other_differences(run, first).empty()) return Kind::OTHER_SETTINGS;
  if (!difference) return Kind::TOO_SHORT;
  if (!difference->within_noise()) return Kind::DIFFERENT;
  return difference->margin_percent() <= kMaxMarginPercent ? Kind::NO_DIFFERENCE : Kind::UNCLEAR;
}

std::string names_of(std::vector<std::string> names) {
  if (names.size() < 2) return join(names);
  const std::string last = names.back();
  names.pop_back();
  return join(names) + " and " + last;
}

std::string are(size_t count) {
  return count == 1 ? " is" : " are";
}

std::string evidence_of(const RunRecord& run, const RunRecord& first) {
  const auto difference = loss_difference(run, first);
  std::string text = run.name + ": ";
  if (!difference) {
    text += formatted("fewer than %zu steps that both runs have", kMinCommonSteps);
  } else {
    text += formatted(
        "training loss %+.4f \xC2\xB1 %.4f nats (%+.2f \xC2\xB1 %.2f %%) over steps "
        "%lld to %lld",
        difference->mean, difference->margin, difference->percent(), difference->margin_percent(),
        static_cast<long long>(difference->first_step),
        static_cast<long long>(difference->last_step));
  }
  if (const auto validation = difference_percent(run, first)) {
    text += formatted(", validation loss %+.2f %%", *validation);
  }
  const std::vector<std::string> others = other_differences(run, first);
  if (!others.empty()) text += "; differs in " + join(others) + " as well";
  return text + ".";
}

// A single run.
std::string alone(const RunRecord& run) {
  std::string text = run.config.training.recipe + ", " + steps_text(run) +
                     formatted(" steps: training loss %.4f", run.train_loss);
  if (run.validation_loss) text += formatted(", validation loss %.4f", *run.validation_loss);
  const size_t warnings = warnings_in(run);
  if (run.numerics.empty()) return text + "; numerics were not looked at.";
  if (warnings == 0) return text + "; every value looked at is within its bounds.";
  return text + formatted("; %zu warnings about numerics.", warnings);
}

}  // namespace

std::optional<LossDifference> loss_difference(const RunRecord& run, const RunRecord& first) {
  const size_t common = std::min(run.steps.size(), first.steps.size());
  if (common < kMinCommonSteps) return std::nullopt;
  std::vector<double> differences, level;
  for (size_t i = common - common / 4; i < common; ++i) {
    differences.push_back(run.steps[i].loss - first.steps[i].loss);
    level.push_back(first.steps[i].loss);
  }
  return LossDifference{.first_step = run.steps[common - differences.size()].step,
                        .last_step = run.steps[common - 1].step,
                        .mean = mean_of(differences),
                        .margin = margin_of(differences),
                        .level = mean_of(level)};
}

std::vector<std::string> other_differences(const RunRecord& run, const RunRecord& first) {
  std::vector<std::string> names;
  for (const SettingDifference& one : differences(first.config, run.config)) {
    if (!is_no_other_run(one.name)) names.push_back(one.name);
  }
  return names;
}

ReportVerdict verdict_of(const Runs& runs) {
  if (runs.size() == 1) return {alone(runs.front()), {}};
  const RunRecord& first = runs.front();
  std::vector<std::string> parts, evidence, same, unclear, too_short, others;
  for (size_t i = 1; i < runs.size(); ++i) {
    const auto difference = loss_difference(runs[i], first);
    evidence.push_back(evidence_of(runs[i], first));
    switch (kind_of(runs[i], first, difference)) {
      case Kind::NO_DIFFERENCE:
        same.push_back(runs[i].name);
        break;
      case Kind::DIFFERENT:
        parts.push_back(runs[i].name +
                        formatted(" trains to a loss %.2f %% ", std::abs(difference->percent())) +
                        (difference->mean > 0 ? "above " : "below ") + first.name);
        break;
      case Kind::UNCLEAR:
        unclear.push_back(runs[i].name);
        break;
      case Kind::TOO_SHORT:
        too_short.push_back(runs[i].name);
        break;
      case Kind::OTHER_SETTINGS:
        others.push_back(runs[i].name);
        break;
    }
  }
  if (!same.empty()) {
    parts.insert(parts.begin(),
                 names_of(same) + are(same.size()) + " within noise of " + first.name);
  }
  if (!unclear.empty()) parts.push_back("too noisy to tell " + names_of(unclear) + " from it");
  if (!too_short.empty()) {
    parts.push_back(names_of(too_short) + are(too_short.size()) + " too short for a verdict");
  }
  if (!others.empty()) {
    parts.push_back(names_of(others) + (others.size() == 1 ? " differs" : " differ") + " from " +
                    first.name + " in more than the recipe");
  }
  return {join(parts, "; ") + ".", evidence};
}

}  // namespace moe8
