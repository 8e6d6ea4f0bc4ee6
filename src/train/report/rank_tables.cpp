// SPDX-License-Identifier: BSD-3-Clause
#include "train/report/rank_tables.h"

#include "base/plain_text.h"
#include "base/text_table.h"
#include "train/report/html.h"

namespace moe8 {
namespace {

using Cells = std::vector<std::string>;

std::string percent_of(double part, double whole) {
  return formatted("%.1f %%", whole > 0 ? 100 * part / whole : 0);
}

std::string megabytes_text(double bytes) {
  return formatted("%.1f MB", bytes / 1e6);
}

// Of one run, a row per rank. Load of experts: rows against the mean of the ranks.
std::vector<Cells> rows_by_rank(const std::vector<RankUse>& ranks) {
  double rows = 0;
  for (const RankUse& rank : ranks) rows += rank.expert_rows;
  std::vector<Cells> cells;
  for (size_t r = 0; r < ranks.size(); ++r) {
    const RankUse& rank = ranks[r];
    cells.push_back(
        {std::to_string(r), formatted("%.3f s", rank.step_seconds),
         percent_of(rank.waited_seconds, rank.step_seconds), megabytes_text(rank.bytes_sent),
         megabytes_text(static_cast<double>(rank.peak_memory)),
         rows > 0 ? formatted("%.2f", rank.expert_rows * static_cast<double>(ranks.size()) / rows)
                  : ""});
  }
  return cells;
}

}  // namespace

std::string rank_table(const std::vector<RunRecord>& runs, size_t columns) {
  std::vector<Cells> rows{
      {"ranks", "", "slowest", "waiting", "most sent a step", "most rows of experts"}};
  for (const RunRecord& run : runs) {
    if (run.ranks.empty()) continue;
    const RanksSummary summary = summary_of(run.ranks);
    rows.push_back(
        {run.name, std::to_string(run.ranks.size()), formatted("rank %zu", summary.slowest),
         percent_of(summary.waited_share, 1), megabytes_text(summary.bytes_sent),
         summary.most_expert_rows > 0 ? formatted("%.2f of the mean", summary.most_expert_rows)
                                      : "-"});
  }
  return rows.size() == 1 ? "" : text_table(rows, {.columns = columns});
}

std::string ranks_section(const std::vector<RunRecord>& runs) {
  std::string html;
  for (size_t i = 0; i < runs.size(); ++i) {
    const RunRecord& run = runs[i];
    if (run.ranks.empty()) continue;
    const RanksSummary summary = summary_of(run.ranks);
    html += "<h3>" + run_label(i, run.name) +
            formatted(": rank %zu is the slowest, the ranks wait %s of the time</h3>\n",
                      summary.slowest, percent_of(summary.waited_share, 1).c_str()) +
            html_table({"rank", "a step", "waiting for others", "sent a step", "peak memory",
                        "rows of its experts"},
                       rows_by_rank(run.ranks));
  }
  if (html.empty()) return "";
  return section(
      "Ranks", html,
      "Means of the steps of the last process. Waiting is the host's; on a GPU the "
      "stream waits for other ranks instead. Rows of experts: 1 is the mean of the ranks.");
}

}  // namespace moe8
