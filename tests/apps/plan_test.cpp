// SPDX-License-Identifier: BSD-3-Clause
// moe8 plan on a small checkpoint and on configs: reports, their JSON, and every way to get none.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/run_command.h"
#include "moe8/safetensors.h"
#include "testing/folder.h"

namespace moe8::testing {
namespace {

using ::testing::ContainsRegex;
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

// ---- names of other models ---------------------------------------------------
// The conversion file that plan proposes: from its first table to the blank line after the last.
std::string proposed_file(const std::string& out) {
  const size_t begin = out.find("\n[[convert]]");
  const size_t end = out.find("\n\nEach expert");
  return begin == std::string::npos ? "" : out.substr(begin, end - begin) + "\n";
}

class PlanOfOtherNames : public ::testing::Test {
 protected:
  // The proposal must mean the same when it comes back as a file.
  void expect_file_works(const std::string& out, const std::string& converted) {
    EXPECT_THAT(out, HasSubstr(converted));
    const std::string file = folder_.write("convert.toml", proposed_file(out));
    const Ran ran = run_moe8({"plan", "--model", model_, "--convert", file});
    EXPECT_EQ(ran.status, 0) << ran.err;
    EXPECT_EQ(ran.out, out.substr(0, ran.out.size()));
  }

  TemporaryFolder folder_;
  std::string model_ = folder_ / "model.safetensors";
  at::TensorOptions bf16_{at::kBFloat16};
};

TEST_F(PlanOfOtherNames, SeparateExpertsAreLinears) {
  std::vector<std::pair<std::string, at::Tensor>> tensors{
      {"model.embed_tokens.weight", at::zeros({16, 8}, bf16_)},
      {"lm_head.weight", at::zeros({16, 8}, bf16_)}};
  for (const std::string layer : {"model.layers.0.", "model.layers.11."}) {
    tensors.emplace_back(layer + "self_attn.q_proj.weight", at::zeros({8, 8}, bf16_));
    tensors.emplace_back(layer + "self_attn.o_proj.weight", at::zeros({8, 8}, bf16_));
    tensors.emplace_back(layer + "self_attn.q_norm.weight", at::zeros({8}, bf16_));
    tensors.emplace_back(layer + "mlp.gate.weight", at::zeros({2, 8}, bf16_));
    for (const std::string expert : {"0.", "1."}) {
      for (const std::string name : {"gate_proj", "up_proj", "down_proj"}) {
        tensors.emplace_back(layer + "mlp.experts." + expert + name + ".weight",
                             at::zeros({8, 8}, bf16_));
      }
    }
  }
  save_safetensors(model_, tensors);
  const Ran ran = run_moe8({"plan", "--model", model_, "--recipe", "mxfp8_rceil"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("experts\\.\\d+\\.(gate_proj|up_proj|down_proj)\\.weight"));
  EXPECT_THAT(ran.out, HasSubstr("Each expert is a Linear of its own"));
  expect_file_works(ran.out, "16 of 22 parameters converted");
}

TEST_F(PlanOfOtherNames, StackedExpertsTakeTheRecipeItself) {
  save_safetensors(model_,
                   {{"model.embed_tokens.weight", at::zeros({16, 8}, bf16_)},
                    {"model.layers.0.self_attn.q_proj.weight", at::zeros({8, 8}, bf16_)},
                    {"model.layers.0.self_attn.q_proj.bias", at::zeros({8}, bf16_)},
                    {"model.layers.0.mlp.router.weight", at::zeros({2, 8}, bf16_)},
                    {"model.layers.0.mlp.experts.gate_up_proj", at::zeros({2, 8, 8}, bf16_)},
                    {"model.layers.0.mlp.experts.gate_up_proj_bias", at::zeros({2, 8}, bf16_)},
                    {"model.layers.0.mlp.experts.down_proj", at::zeros({2, 8, 8}, bf16_)}});
  const Ran ran = run_moe8({"plan", "--model", model_, "--recipe", "fp8_rowwise"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, ContainsRegex("recipe = .fp8_rowwise.\n"));
  EXPECT_THAT(ran.out, ContainsRegex("recipe = .rowwise.\n"));
  expect_file_works(ran.out, "3 of 7 parameters converted");
  const Ran linears = run_moe8({"plan", "--model", model_, "--recipe", "tensorwise"});
  expect_file_works(linears.out, "1 of 7 parameters converted");
}

// A folder stands for its files; what is wrong with it is one line.
TEST_F(PlanOfOtherNames, AFolderIsAModel) {
  const std::string olmoe = MOE8_CONFIGS "/../tests/models/cases/olmoe";
  std::filesystem::create_directories(folder_ / "olmoe");
  std::filesystem::copy_file(olmoe + "/model.safetensors", folder_ / "olmoe/model.safetensors");
  const Ran ran = run_moe8({"plan", "--model", folder_ / "olmoe", "--recipe", "fp8_rowwise"});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("of 45 parameters converted"));
  std::filesystem::remove(folder_ / "olmoe/model.safetensors");
  const Ran none = run_moe8({"plan", "--model", folder_ / "olmoe", "--recipe", "fp8_rowwise"});
  EXPECT_EQ(none.status, 1);
  EXPECT_THAT(none.err, HasSubstr("expected model.safetensors or model.safetensors.index.json"));
}

TEST_F(PlanOfOtherNames, NothingToConvertIsAnError) {
  save_safetensors(model_, {{"model.embed_tokens.weight", at::zeros({16, 8}, bf16_)},
                            {"model.layers.0.experts_blocks", at::zeros({2, 8, 8}, at::kByte)}});
  const Ran ran = run_moe8({"plan", "--model", model_, "--recipe", "fp8_rowwise"});
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(ran.err, HasSubstr("experts (3-D) or Linears"));
}

// ---- plan --config ----------------------------------------------------------
constexpr const char* kSmall = R"(
[model]
dim = 64
n_layers = 4
n_heads = 4
n_dense_layers = 1
dense_hidden_dim = 128
n_experts = 8
top_k = 2
hidden_dim = 32
n_shared_experts = 0
[training]
batch_size = 2
seq_len = 32
recipe = "mxfp8_rceil"
)";

TEST(PlanConfig, JsonHoldsCountsConversionAndMemory) {
  const TemporaryFolder folder;
  const std::string file = folder.write("run.toml", kSmall);
  const Ran ran = run_moe8({"plan", "--config", file, "--json"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  const nlohmann::json plan = nlohmann::json::parse(ran.out);
  const int64_t routed = int64_t{3} * 8 * 3 * 64 * 32, attention = int64_t{4} * 4 * 64 * 64;
  const int64_t rest = 3 * 64 * 128 + 3 * 8 * 64 + 9 * 64 + 2 * 256 * 64;  // dense, routers, ...
  EXPECT_EQ(plan["parameters"]["total"], routed + attention + rest);
  EXPECT_EQ(plan["parameters"]["active"], routed / 4 + attention + rest);
  EXPECT_EQ(plan["parameters"]["parts"]["routed experts"]["total"], routed);
  EXPECT_EQ(plan["parameters"]["parts"]["attention"]["active"], attention);
  EXPECT_EQ(plan["conversion"]["converted"], 3 * 3 + 4 * 4 + 3);
  ASSERT_GE(plan["memory"].size(), 15u);
  EXPECT_EQ(plan["memory"][0]["recipe"], "mxfp8_rceil");
  EXPECT_EQ(plan["memory"][0]["weights"], 2 * (routed + attention + rest));
  EXPECT_EQ(plan["memory"][0]["tokens"], 64);
  EXPECT_GT(plan["memory"][0]["quantized_weights_as_codes"], 2 * routed);
}

TEST(PlanConfig, TablesMergeLayersAndNameEveryPart) {
  const TemporaryFolder folder;
  const std::string file = folder.write("run.toml", kSmall);
  const Ran ran = run_moe8({"plan", "--config", file, "--recipe", "fp8_rowwise"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  for (const char* text :
       {"4 layers, 1 of them dense", "routed experts", "147,456", "layers.1-3.moe.experts.w1 ",
        "layers.0-3.attention.wq.weight ", "layers.0.feed_forward.w1.weight ",
        "28 of 42 parameters converted.", "\nfp8_rowwise ", "\nbf16 ", "loss: log-probabilities"}) {
    EXPECT_THAT(ran.out, HasSubstr(text));
  }
}

TEST(PlanConfig, AConversionFileAndOverridesCount) {
  const TemporaryFolder folder;
  const std::string file = folder.write("run.toml", kSmall);
  const std::string convert = folder.write(
      "convert.toml", "[[convert]]\nmatch = \"re:.*experts\"\nrecipe = \"mxfp8_floor\"\n");
  const Ran ran = run_moe8(
      {"plan", "--config", file, "--convert", convert, "--json", "--set", "model.n_layers=2"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  const nlohmann::json plan = nlohmann::json::parse(ran.out);
  EXPECT_EQ(plan["conversion"]["converted"], 3);
  EXPECT_EQ(plan["memory"].size(), 2u);
  EXPECT_EQ(plan["memory"][0]["recipe"], "custom");
  EXPECT_EQ(plan["memory"][1]["recipe"], "bf16");
}

TEST(PlanConfig, AGpuKeepsCodesAndGpusAreCounted) {
  const std::string config = std::string(MOE8_CONFIGS) + "/qwen3_30b_a3b.toml";
  const auto memory_of = [&](const std::string& device, const std::string& recipe,
                             const std::string& accumulation = "2") {
    const Ran ran = run_moe8({"plan", "--config", config, "--device", device, "--recipe", recipe,
                              "--json", "--set", "training.accumulation=" + accumulation});
    EXPECT_EQ(ran.status, 0) << ran.err;
    return nlohmann::json::parse(ran.out)["memory"][0];
  };
  const nlohmann::json fp8 = memory_of("cuda", "fp8_rowwise"),
                       mx = memory_of("cuda", "mxfp8_rceil");
  EXPECT_EQ(2 * fp8["quantized_weights"].get<double>(), mx["quantized_weights"].get<double>());
  EXPECT_GT(fp8["quantized_weights"], 0);
  const nlohmann::json once = memory_of("cuda", "fp8_rowwise", "1");
  EXPECT_EQ(2 * once["quantized_weights"].get<double>(), fp8["quantized_weights"].get<double>());
  EXPECT_LT(once["peak"], fp8["peak"]);
  EXPECT_LT(fp8["saved_a_token"], mx["saved_a_token"]);
  EXPECT_EQ(fp8["weights"], memory_of("cpu", "fp8_rowwise")["weights"]);
  const Ran table = run_moe8({"plan", "--config", config, "--device", "cuda"});
  EXPECT_THAT(table.out, HasSubstr("on a Hopper GPU"));
  EXPECT_THAT(table.out, HasSubstr("H200 141 GB"));
  EXPECT_THAT(run_moe8({"plan", "--config", config}).out, ::testing::Not(HasSubstr("H200")));
}

// The model of 4 billion parameters on GPUs, eight batches a step.
Ran plan_4b(const std::vector<std::string>& more) {
  std::vector<std::string> words{"plan", "--config"};
  words.push_back(std::string(MOE8_CONFIGS) + "/4b_bench.toml");
  words.insert(words.end(), {"--device", "cuda", "--set", "training.accumulation=8"});
  words.insert(words.end(), more.begin(), more.end());
  return run_moe8(words);
}

TEST(PlanConfig, OneOfSeveralRanksHoldsAPartOfTheOptimizer) {
  const Ran ran = plan_4b({"--world", "8", "--expert", "2", "--json"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  const nlohmann::json json = nlohmann::json::parse(ran.out);
  const nlohmann::json& rank = json["rank"];
  const nlohmann::json one = json["memory"][0];
  EXPECT_EQ(rank["rounds"], 1);
  EXPECT_EQ(rank["masters"].get<double>(), one["masters"].get<double>() / 8);
  EXPECT_EQ(rank["optimizer"].get<double>(), one["optimizer"].get<double>() / 8);
  const double experts = 2 * json["parameters"]["parts"]["routed experts"]["total"].get<double>();
  EXPECT_EQ(rank["weights"].get<double>(), one["weights"].get<double>() - experts / 2);
  // Seven eighths of what all hold, three quarters of half of the experts, of which four are alike.
  EXPECT_NEAR(rank["weights_sent"].get<double>(),
              (one["weights"].get<double>() - experts) * 7 / 8 + experts / 2 * 3 / 4, 1.0);
  EXPECT_EQ(rank["weights_sent_across"], 0);
  EXPECT_GT(rank["step_ms"]["total"].get<double>(), rank["step_ms"]["compute"].get<double>());
  const Ran pairs = plan_4b({"--world", "8", "--gpus-per-machine", "2", "--network", "25"});
  EXPECT_THAT(pairs.out, HasSubstr("one rank of 8"));
  EXPECT_THAT(pairs.out, HasSubstr("of it to other machines"));
  EXPECT_THAT(pairs.out, HasSubstr("time of a step on H200s, estimated"));
  EXPECT_THAT(plan_4b({"--world", "3"}).err, HasSubstr("that 3 data-parallel ranks can share"));
  EXPECT_THAT(plan_4b({"--world", "8", "--expert", "3"}).err, HasSubstr("parallel.expert"));
}

TEST(PlanConfig, OneOfATensorGroupHoldsPartsOfDenseWeights) {
  const auto with = [](const std::string& tensor) {
    return plan_4b({"--world", "8", "--json", "--tensor", tensor});
  };
  const Ran ran = with("2");
  ASSERT_EQ(ran.status, 0) << ran.err;
  const nlohmann::json json = nlohmann::json::parse(ran.out);
  const nlohmann::json& rank = json["rank"];
  const nlohmann::json one = json["memory"][0], parts = json["parameters"]["parts"];
  double split = 0;
  for (const char* part : {"attention", "shared experts", "dense feed-forward"}) {
    split += 2 * parts[part]["total"].get<double>();
  }
  EXPECT_GT(split, 0);
  EXPECT_EQ(rank["weights"].get<double>(), one["weights"].get<double>() - split / 2);
  EXPECT_EQ(rank["masters"].get<double>(), one["masters"].get<double>() / 8);
  EXPECT_GT(rank["activations_sent"].get<double>(), 0);
  EXPECT_EQ(rank["tokens_sent"].get<double>(), 0);
  EXPECT_THAT(with("3").err, HasSubstr("parallel.tensor"));
}

TEST(PlanConfig, AModelOfTerabytesIsPlannedInLittleMemory) {
  const Ran ran = run_moe8({"plan", "--config", MOE8_CONFIGS "/deepseek_v3.toml", "--json"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(nlohmann::json::parse(ran.out)["parameters"]["total"], 671'026'404'352);
  rusage use{};
  ASSERT_EQ(getrusage(RUSAGE_CHILDREN, &use), 0);
  EXPECT_LT(use.ru_maxrss, 2'000'000);  // kB; mostly LibTorch itself
}

TEST(PlanConfig, WhatIsWrongIsSaidInOneLine) {
  const TemporaryFolder folder;
  const auto expect_failure = [](int status, const std::vector<std::string>& arguments,
                                 const std::string& message) {
    const Ran ran = run_moe8(arguments);
    EXPECT_EQ(ran.status, status) << message;
    EXPECT_EQ(ran.out, "");
    EXPECT_THAT(ran.err, HasSubstr(message));
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  };
  const std::string file = folder.write("run.toml", kSmall);
  expect_failure(2, {"plan"}, "--config or --model is required");
  expect_failure(2, {"plan", "--config", file, "--model", "a.safetensors"}, "excludes");
  expect_failure(2, {"plan", "--config", file, "--recipe", "bf16", "--convert", "a.toml"},
                 "excludes");
  expect_failure(2, {"plan", "--config", file, "--recipe", "mxfp9"}, "mxfp8_rceil");
  expect_failure(2, {"plan", "--config", file, "--set", "model.dim=63"}, "multiple of 8");
}

}  // namespace
}  // namespace moe8::testing
