// SPDX-License-Identifier: BSD-3-Clause
// moe8 plan on a small checkpoint: the report, its JSON, and every way to get no report.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <nlohmann/json.hpp>

#include "apps/run_command.h"
#include "moe8/safetensors.h"
#include "testing/folder.h"

namespace moe8::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class Plan : public ::testing::Test {
 protected:
  Plan() {
    const auto bf16 = at::TensorOptions(at::kBFloat16);
    save_safetensors(model_, {{"tok_embeddings.weight", at::zeros({16, 8}, bf16)},
                              {"layers.0.attention.wq.weight", at::zeros({8, 8}, bf16)},
                              {"layers.0.attention_norm.weight", at::zeros({8}, bf16)},
                              {"layers.0.moe.experts.w1", at::zeros({2, 8, 8}, bf16)},
                              {"layers.0.moe.experts.w2", at::zeros({2, 8, 8}, bf16)},
                              {"step", at::zeros({1}, at::kLong)}});
  }

  Ran plan(const std::string& toml, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments{"plan", "--model", model_, "--convert",
                                       folder_.write("convert.toml", toml)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_moe8(arguments);
  }

  TemporaryFolder folder_;
  std::string model_ = folder_ / "model.safetensors";
};

constexpr const char* kConvert = R"(
[[convert]]
match = "re:.*experts.*"
recipe = "mxfp8_rceil"
wgrad_with_hp = true

[[convert]]
match = "layers.0.moe.experts.w2"
recipe = "none"

[[convert]]
match = "_default"
recipe = "rowwise"
)";

TEST_F(Plan, JsonSaysWhatBecomesOfEveryTensorAndTheCheckpointStays) {
  const std::string before = folder_.read("model.safetensors");
  const Ran ran = plan(kConvert, {"--json"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  const nlohmann::json report = nlohmann::json::parse(ran.out);
  std::map<std::string, nlohmann::json> rows;
  for (const nlohmann::json& row : report["parameters"]) rows[row["fqn"]] = row;
  ASSERT_EQ(rows.size(), 6u);
  EXPECT_EQ(report["converted"], 2);
  EXPECT_EQ(rows["layers.0.moe.experts.w1"]["config"], "mxfp8_rceil_wgrad_with_hp");
  EXPECT_EQ(rows["layers.0.moe.experts.w1"]["dtype"], "bfloat16");
  EXPECT_EQ(rows["layers.0.moe.experts.w1"]["shape"], nlohmann::json({2, 8, 8}));
  EXPECT_EQ(rows["layers.0.moe.experts.w2"]["config"], nullptr);
  EXPECT_EQ(rows["layers.0.attention.wq.weight"]["config"], "rowwise");
  EXPECT_EQ(rows["layers.0.attention.wq.weight"]["key"], "_default");
  for (const char* name : {"tok_embeddings.weight", "layers.0.attention_norm.weight", "step"}) {
    EXPECT_EQ(rows[name]["config"], nullptr) << name;
  }
  EXPECT_EQ(folder_.read("model.safetensors"), before);
  EXPECT_EQ(folder_.names(), (std::vector<std::string>{"convert.toml", "model.safetensors"}));
}

TEST_F(Plan, TableNamesParametersAndRecipes) {
  const Ran ran = plan(kConvert);
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("layers.0.moe.experts.w1"));
  EXPECT_THAT(ran.out, HasSubstr("mxfp8_rceil_wgrad_with_hp"));
  EXPECT_THAT(ran.out, HasSubstr("2 of 6 parameters converted"));
}

TEST_F(Plan, CheckpointsOfSeveralFilesAreOneModel) {
  const std::string second = folder_ / "second.safetensors";
  save_safetensors(second, {{"output.weight", at::zeros({16, 8})}});
  const Ran ran =
      plan("[[convert]]\nmatch = \"output\"\nrecipe = \"mxfp8_emulated\"\n", {"--model", second});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("1 of 7 parameters converted"));
}

TEST_F(Plan, WhatIsWrongIsSaidInOneLine) {
  const auto expect_failure = [](const Ran& ran, const std::string& message) {
    EXPECT_EQ(ran.status, 1);
    EXPECT_EQ(ran.out, "");
    EXPECT_THAT(ran.err, StartsWith("moe8: ["));
    EXPECT_THAT(ran.err, HasSubstr(message));
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  };
  expect_failure(plan("[[convert]]\nmatch = \"re:.*expert\"\nrecipe = \"mxfp8_rceil\"\n"),
                 "re:.*expert");
  expect_failure(plan("[[convert]]\nmatch = \"output\"\nrecipe = \"mxfp8\"\n"), "mxfp8_rceil");
  expect_failure(plan("[[convert\n"), "convert.toml");
  expect_failure(run_moe8({"plan", "--model", folder_ / "no.safetensors", "--convert",
                           folder_ / "convert.toml"}),
                 "");
  folder_.write("model.safetensors", "not a checkpoint");
  expect_failure(plan(kConvert), "model.safetensors");
}

}  // namespace
}  // namespace moe8::testing
