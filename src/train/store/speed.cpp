// SPDX-License-Identifier: BSD-3-Clause
#include "train/store/speed.h"

#include <algorithm>
#include <cmath>

#include "base/plain_text.h"

namespace moe8 {
namespace {

Rate rate_of(std::vector<double> rates) {
  Rate rate{.steps = rates.size()};
  if (rates.empty()) return rate;
  std::ranges::sort(rates);
  const auto at = [&](double part) {
    return rates[static_cast<size_t>(std::lround(part * static_cast<double>(rates.size() - 1)))];
  };
  rate.median = at(0.5);
  if (at(0.1) > 0) rate.spread = at(0.9) / at(0.1);
  return rate;
}

bool says_little(const Rate& rate) {
  return rate.steps < kMinTimedSteps || rate.spread > kMaxSpread || rate.median <= 0;
}

}  // namespace

Speed speed_of(const std::vector<StepMetrics>& steps) {
  std::vector<double> wall, cpu;
  for (const StepMetrics& step : steps) {
    wall.push_back(step.tokens_per_s);
    if (step.tokens_per_cpu_s) cpu.push_back(*step.tokens_per_cpu_s);
  }
  Speed speed{.wall = rate_of(std::move(wall)), .cpu = {}};
  if (!cpu.empty()) speed.cpu = rate_of(std::move(cpu));
  return speed;
}

std::optional<double> ratio(const Rate& rate, const Rate& first) {
  if (says_little(rate) || says_little(first)) return std::nullopt;
  return rate.median / first.median;
}

std::string no_ratio_because(const Rate& rate) {
  if (rate.steps < kMinTimedSteps) return formatted("%zu steps are too few", rate.steps);
  if (!says_little(rate)) return "";
  return formatted("the rates of its steps spread by %.1f x", rate.spread);
}

}  // namespace moe8
