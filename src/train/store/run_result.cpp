// SPDX-License-Identifier: BSD-3-Clause
#include "train/store/run_result.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "io/file.h"

namespace moe8 {
namespace {

constexpr const char* kResultFile = "result";

// JSON has no NaN: it is null.
double number(const nlohmann::json& json, const char* key) {
  const auto found = json.find(key);
  return found == json.end() || found->is_null() ? NAN : found->get<double>();
}

}  // namespace

RanksSummary summary_of(const std::vector<RankUse>& ranks) {
  RanksSummary summary;
  double waited = 0, took = 0, rows = 0, most = 0;
  const auto work = [&](size_t rank) {
    return ranks[rank].step_seconds - ranks[rank].waited_seconds;
  };
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const RankUse& use = ranks[rank];
    if (work(rank) > work(summary.slowest)) summary.slowest = rank;
    waited += use.waited_seconds;
    took += use.step_seconds;
    summary.bytes_sent = std::max(summary.bytes_sent, use.bytes_sent);
    most = std::max(most, use.expert_rows);
    rows += use.expert_rows;
  }
  if (took > 0) summary.waited_share = waited / took;
  if (rows > 0) summary.most_expert_rows = most * static_cast<double>(ranks.size()) / rows;
  return summary;
}

void write_result(const std::string& path, const RunResult& result) {
  nlohmann::ordered_json json{{"recipe", result.recipe},
                              {"steps", result.steps},
                              {"train_loss", result.train_loss},
                              {"validation_loss", result.validation_loss},
                              {"tokens_per_s", result.tokens_per_s},
                              {"peak_memory_bytes", result.peak_memory},
                              {"seconds", result.seconds},
                              {"parameters", result.parameters},
                              {"active_parameters", result.active_parameters},
                              {"converted_parameters", result.converted_parameters}};
  for (const RankUse& rank : result.ranks) {
    json["ranks"].push_back({{"step_seconds", rank.step_seconds},
                             {"waited_seconds", rank.waited_seconds},
                             {"bytes_sent", rank.bytes_sent},
                             {"peak_memory_bytes", rank.peak_memory},
                             {"expert_rows", rank.expert_rows}});
  }
  write_file(kResultFile, path, json.dump(2) + "\n");
}

RunResult read_result(const std::string& path) {
  try {
    const auto json = nlohmann::json::parse(read_text_file(kResultFile, path));
    RunResult result;
    result.peak_memory = json.at("peak_memory_bytes");
    result.tokens_per_s = json.at("tokens_per_s");
    // The rest is for `--resume` alone; other programs need not write it.
    result.recipe = json.value("recipe", "");
    result.folder = std::filesystem::path(path).parent_path();
    result.steps = json.value("steps", int64_t{0});
    result.train_loss = number(json, "train_loss");
    result.validation_loss = number(json, "validation_loss");
    result.seconds = number(json, "seconds");
    result.parameters = json.value("parameters", int64_t{0});
    result.active_parameters = json.value("active_parameters", int64_t{0});
    result.converted_parameters = json.value("converted_parameters", int64_t{0});
    for (const auto& rank : json.value("ranks", nlohmann::json::array())) {
      result.ranks.push_back(
          {number(rank, "step_seconds"), number(rank, "waited_seconds"), number(rank, "bytes_sent"),
           rank.value("peak_memory_bytes", int64_t{0}), number(rank, "expert_rows")});
    }
    return result;
  } catch (const nlohmann::json::exception& error) {
    fail(kResultFile, path, std::string("expected the result of a run, got: ") + error.what());
  }
}

}  // namespace moe8
