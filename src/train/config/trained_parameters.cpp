// SPDX-License-Identifier: BSD-3-Clause
#include "train/config/trained_parameters.h"

#include "base/check.h"
#include "convert/name_patterns.h"

namespace moe8 {
namespace {

constexpr const char* kConfigOp = "config";

std::vector<ParameterShape> not_frozen(const RunConfig& config) {
  if (config.lora.rank > 0) return lora_shapes(config.model, config.lora.options());
  NamePatterns frozen(kConfigOp, "optimizer.frozen", config.optimizer.frozen);
  std::vector<ParameterShape> left;
  for (ParameterShape& p : parameter_shapes(config.model)) {
    if (!frozen.matches(p.name)) left.push_back(std::move(p));
  }
  frozen.check_all_matched();
  MOE8_CHECK(!left.empty(), kConfigOp, "optimizer.frozen", "expected something to train, got none");
  return left;
}

}  // namespace

std::vector<TrainedParameter> trained_parameters(const RunConfig& config) {
  std::vector<TrainedParameter> trained;
  for (ParameterShape& p : not_frozen(config)) trained.push_back({std::move(p)});
  std::vector<const std::string*> by(trained.size(), nullptr);
  for (const auto& [key, rate] : config.optimizer.rates) {
    NamePatterns one(kConfigOp, "optimizer.rates", {key});
    for (size_t i = 0; i < trained.size(); ++i) {
      if (!one.matches(trained[i].parameter.name)) continue;
      MOE8_CHECK(!by[i], kConfigOp, "optimizer.rates", "expected one key for ",
                 trained[i].parameter.name, ", got '", by[i] ? *by[i] : "", "' and '", key, "'");
      by[i] = &key;
      trained[i].rate = rate;
    }
    one.check_all_matched();
  }
  return trained;
}

}  // namespace moe8
