// SPDX-License-Identifier: BSD-3-Clause
// metrics.jsonl and result.json: what is refused, and numbers that do not depend on the locale.
#include "train/store/metrics.h"

#include "testing/compare.h"
#include "testing/folder.h"
#include "testing/locale.h"
#include "train/store/run_result.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

StepMetrics step(int64_t number, double rate = 1000.5) {
  return {.step = number, .loss = 0.1, .lr = 1e-5, .grad_norm = 12345.5, .tokens_per_s = rate};
}

RunResult some_result() {
  return {.recipe = "bf16",
          .folder = "",
          .steps = 4000,
          .train_loss = 0.05,
          .validation_loss = 1e-5,
          .tokens_per_s = 12345.5,
          .peak_memory = 123'456'789};
}

TEST(Metrics, AreTheSameInEveryLocale) {
  const TemporaryFolder folder;
  MetricsFile(folder / "plain").write(step(1000));
  write_result(folder / "plain.json", some_result());
  EXPECT_THAT(folder.read("plain"), HasSubstr(R"({"step":1000,"loss":0.1,"lr":1e-05,)"));
  const testing::GermanStreams german;
  MetricsFile(folder / "german").write(step(1000));
  write_result(folder / "german.json", some_result());
  EXPECT_EQ(folder.read("german"), folder.read("plain"));
  EXPECT_EQ(folder.read("german.json"), folder.read("plain.json"));
  EXPECT_EQ(read_metrics(folder / "german").front().grad_norm, 12345.5);
  const RunResult result = read_result(folder / "german.json");
  EXPECT_EQ(result.train_loss, 0.05);
  EXPECT_EQ(result.peak_memory, 123'456'789);
}

TEST(Metrics, ANulByteDoesNotEndALine) {
  const TemporaryFolder folder;
  MetricsFile(folder / "m").write(step(1));
  std::string text = folder.read("m");
  text.insert(text.size() - 1, std::string("\0anything", 9));
  const std::string path = folder.write("m", text);
  const std::string expected = path + ":1: expected text, got a NUL byte at byte ";
  EXPECT_THAT(error_of([&] { read_metrics(path); }), HasSubstr(expected));
  EXPECT_THAT(error_of([&] { read_numerics(path); }), HasSubstr(expected));
  EXPECT_THAT(error_of([&] { MetricsFile(path, 1); }),
              HasSubstr("expected the lines of steps 1 to 1"));
  EXPECT_EQ(folder.read("m"), text);
}

TEST(RunResult, ANulByteDoesNotEndIt) {
  const TemporaryFolder folder;
  write_result(folder / "result.json", some_result());
  const std::string text = folder.read("result.json") + std::string("\0", 1) + "x";
  folder.write("result.json", text);
  EXPECT_THAT(error_of([&] { read_result(folder / "result.json"); }),
              HasSubstr("result.json: expected text, got a NUL byte at byte "));
}

TEST(Metrics, TheMedianStepIsTheSpeedOfARun) {
  EXPECT_EQ(median_tokens_per_s({}), 0);
  EXPECT_EQ(median_tokens_per_s({step(1, 10), step(2, 5000), step(3, 900)}), 900);
}

}  // namespace
}  // namespace moe8
