// SPDX-License-Identifier: BSD-3-Clause
#include "train/store/resume.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"

namespace moe8 {
namespace {

// The keys that may change when a run goes on; "section." stands for all of a section. All others
// decide what is trained and on which numbers, so a change would make it another run. Of data.files
// the contents must be the same, which is checked by their fingerprints. kMustStay are exceptions:
// they decide what the optimizer's state is made of.
constexpr std::array<std::string_view, 14> kMayChange{
    "model.from",  // read when a run begins
    "training.steps",
    "training.threads",
    "training.validation_interval",
    "training.device",
    "training.cuda_graph",                // the same bits
    "training.activation_checkpointing",  // likewise
    "training.deterministic",
    "data.files",
    "optimizer.",
    "parallel.",
    "checkpoint.",
    "numerics.",
    "output."};

constexpr std::array<std::string_view, 3> kMustStay{"optimizer.kind", "optimizer.moments",
                                                    "optimizer.frozen"};

// Resolved anew at every start and reported otherwise, or of no consequence.
constexpr std::array<std::string_view, 3> kNotWorthALine{"training.threads", "data.files",
                                                         "output.folder"};

bool may_change(const std::string& name) {
  if (std::ranges::find(kMustStay, name) != kMustStay.end()) return false;
  return std::ranges::any_of(kMayChange, [&](std::string_view key) {
    return key.ends_with('.') ? name.starts_with(key) : name == key;
  });
}

}  // namespace

std::vector<std::string> allowed_changes(const RunConfig& before, const RunConfig& now,
                                         const std::string& where) {
  std::vector<std::string> lines;
  for (const SettingDifference& one : differences(before, now)) {
    MOE8_CHECK(may_change(one.name), "resume", one.name, "expected ", one.first, ", as in ", where,
               ", got ", one.second, ". This is another run: choose another folder with --out.");
    if (std::ranges::find(kNotWorthALine, one.name) != kNotWorthALine.end()) continue;
    lines.push_back(concat(one.name, " = ", one.second, " (was ", one.first, ")"));
  }
  return lines;
}

std::string changes(const Environment& before, const Environment& now) {
  std::vector<std::string> parts;
  for (const auto& [name, value] : now) {
    const auto old = before.find(name);
    if (old != before.end() && old->second == value) continue;
    parts.push_back(concat(name, " ", value, " (was ",
                           old == before.end() ? std::string("unknown") : old->second, ")"));
  }
  return join(parts);
}

}  // namespace moe8
