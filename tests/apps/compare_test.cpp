// SPDX-License-Identifier: BSD-3-Clause
// `moe8 compare`: exit statuses, the table, the page.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "apps/run_command.h"
#include "testing/folder.h"

namespace moe8 {
namespace {

using ::testing::HasSubstr;
using testing::Ran;
using testing::run_moe8;
using testing::TemporaryFolder;

// A run of two steps, written by hand: files of other versions stay readable.
std::string make_run(const TemporaryFolder& folder, const std::string& name, double loss) {
  std::filesystem::create_directories(folder / name);
  folder.write(name + "/run.toml", "[training]\nsteps = 3\nrecipe = \"rowwise\"\n");
  std::string lines;
  for (const char* step : {"1", "2"}) {
    lines += std::string("{\"step\":") + step + ",\"loss\":" + std::to_string(loss) +
             ",\"lr\":0.1,\"grad_norm\":1,\"tokens_per_s\":500,\"expert_load_min\":1,"
             "\"expert_load_max\":1,\"validation_loss\":" +
             std::to_string(loss) + "}\n";
  }
  folder.write(name + "/metrics.jsonl", lines + "{\"step\":3,\"los");  // killed while it wrote
  return folder / name;
}

TEST(Compare, PrintsATableAndWritesThePage) {
  const TemporaryFolder folder;
  const std::string a = make_run(folder, "a", 2), b = make_run(folder, "b", 2.1);
  const Ran ran = run_moe8({"compare", a, b, "--out", folder / "page.html"});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("b    rowwise  2 of 3  2.1000      2.1000      +5.00%"));
  EXPECT_THAT(ran.out, HasSubstr("Report: "));
  EXPECT_THAT(folder.read("page.html"), HasSubstr("2 runs compared</h1>"));
}

TEST(Compare, MistakesHaveOneLine) {
  const TemporaryFolder folder;
  const Ran none = run_moe8({"compare", folder / "none", "--out", folder / "page.html"});
  EXPECT_EQ(none.status, 1);
  EXPECT_THAT(none.err, HasSubstr("none: expected the folder of a run"));
  EXPECT_EQ(run_moe8({"compare"}).status, 2);
  const std::string a = make_run(folder, "a", 2);
  const Ran nowhere = run_moe8({"compare", a, "--out", folder / "no/page.html"});
  EXPECT_EQ(nowhere.status, 1);
  EXPECT_THAT(nowhere.err, HasSubstr("no/page.html"));
  EXPECT_EQ(std::count(nowhere.err.begin(), nowhere.err.end(), '\n'), 1);
}

}  // namespace
}  // namespace moe8
