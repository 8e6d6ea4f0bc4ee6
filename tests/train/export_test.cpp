// SPDX-License-Identifier: BSD-3-Clause
// From a published model by way of a run to a published model.
#include "train/export.h"

#include <ATen/TensorOperators.h>

#include <cmath>
#include <filesystem>

#include "moe8/pretrained.h"
#include "moe8/safetensors.h"
#include "testing/compare.h"
#include "train/tiny_run.h"
#include "train/trainer.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

using testing::error_of;
using ::testing::HasSubstr;
using testing::same_bits;
using testing::TemporaryFolder;

class ExportTest : public ::testing::Test {
 protected:
  // A copy of a case with a tokenizer's file, whose vocabulary has 48 tokens.
  std::string published(const std::string& family) {
    const std::string to = folder_ / family;
    fs::copy(std::string(MOE8_MODEL_CASES) + "/" + family, to);
    folder_.write(family + "/tokenizer.json", "{}");
    return to;
  }

  RunConfig config_from(const std::string& model, const std::string& out) {
    std::string tokens;
    for (int i = 0; i < 4000; ++i) {
      tokens += static_cast<char>(i * 7 % 48);
      tokens += '\0';
    }
    const std::string file = folder_.write("tokens.bin", tokens);
    return parse_run_config(
        "[model]\nfrom = \"" + model + "\"\n[data]\nfiles = [\"" + file + "\"]\n" +
            "tokens = \"uint16\"\n[training]\nsteps = 2\nbatch_size = 2\nseq_len = 32\n" +
            "validation_batches = 1\nthreads = 1\ndevice = \"cpu\"\n[checkpoint]\ninterval = 1\n" +
            "[output]\nfolder = \"" + folder_ / out + "\"\n",
        "run.toml", {"training.weights=float32"});
  }

  TemporaryFolder folder_;
};

TEST_F(ExportTest, ARunBeginsWithAModelAndLeavesOne) {
  for (const std::string family : {"qwen3_moe", "gpt_oss", "deepseek_v3"}) {
    const std::string model = published(family);
    RunConfig config = config_from(model, family + "_run");
    config.optimizer.learning_rate = config.optimizer.min_learning_rate = 1e-3;
    const RunResult result = train(config, {});
    EXPECT_TRUE(std::isfinite(result.train_loss));
    const std::string run = config.output.folder;
    const ExportResult made = export_run(run, folder_ / (family + "_out"));
    EXPECT_EQ(made.parameters, count_parameters(config.model).total);
    EXPECT_TRUE(fs::exists(folder_ / (family + "_out/tokenizer.json")));
    EXPECT_EQ(read_pretrained_config(folder_ / (family + "_out")), read_pretrained_config(model));
    const auto before = load_safetensors(model + "/model.safetensors");
    const auto after = load_safetensors(folder_ / (family + "_out/model.safetensors"));
    ASSERT_EQ(before.size(), after.size());
    size_t changed = 0;
    for (const auto& [name, tensor] : before) {
      ASSERT_TRUE(after.contains(name)) << name;
      // Two steps of 1e-3: near where they began, and not there.
      EXPECT_LT((tensor - after.at(name)).abs().max().item<double>(), 0.02) << name;
      changed += tensor.equal(after.at(name)) ? 0 : 1;
    }
    EXPECT_GT(changed, before.size() / 2);
    // The checkpoint of the last step has the same weights.
    export_run(run + "/checkpoints/step-00000002", folder_ / (family + "_again"));
    for (const auto& [name, tensor] :
         load_safetensors(folder_ / (family + "_again/model.safetensors"))) {
      EXPECT_TRUE(same_bits(after.at(name), tensor)) << name;
    }
  }
}

TEST_F(ExportTest, ARunGoesOnWithoutTheFolder) {
  const std::string model = published("olmoe");
  RunConfig config = config_from(model, "run");
  train(config, {});
  fs::remove_all(model);
  RunConfig more = load_run_config(config.output.folder + "/run.toml");
  EXPECT_EQ(more.model, config.model);
  more.training.steps = 3;
  RunOptions options;
  options.existing = ExistingRun::RESUME;
  EXPECT_EQ(train(more, options).steps, 3);
}

TEST_F(ExportTest, TextIsRefusedForAPublishedModel) {
  RunConfig config = config_from(published("qwen3_moe"), "run");
  config.data.files = {folder_.write("text.txt", testing::tiny_text())};
  config.data.tokens = DataTokens::AUTO;
  config.model.vocab_size = 256;
  EXPECT_THAT(error_of([&] { train(config, {}); }),
              HasSubstr("data.files: expected token files for the model of model.from, got text"));
}

TEST_F(ExportTest, WhatCannotBeExported) {
  EXPECT_THAT(
      error_of([&] { export_run(folder_ / "none", folder_ / "out"); }),
      HasSubstr("expected the folder of a run or a checkpoint, with run.toml, or of a published "
                "model, with config.json, got none"));
  RunConfig config = testing::tiny_config(folder_);
  config.training.steps = 1;
  train(config, {});
  EXPECT_THAT(error_of([&] { export_run(config.output.folder, folder_ / "out"); }),
              HasSubstr("expected a model of one of the families"));
  EXPECT_THAT(
      error_of([&] { export_run(config.output.folder, folder_ / "out", {.adapter = true}); }),
      HasSubstr("[export] adapter: expected a run with [lora], got "));
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

TEST_F(ExportTest, KeysBesideFromMustAgree) {
  const std::string text = "[model]\nfrom = \"" + published("qwen3_moe") + "\"\n";
  const RunConfig config =
      parse_run_config(text + "max_seq_len = 1024\naux_loss_coeff = 0.01\n", "run.toml");
  EXPECT_EQ(config.model.max_seq_len, 1024);
  EXPECT_EQ(config.model.aux_loss_coeff, 0.01);
  EXPECT_EQ(config.model.load_balance_coeff, 0);
  EXPECT_EQ(config.model.qk_norm, QkNorm::HEAD);
  EXPECT_EQ(parse_run_config(to_toml(config), "again.toml"), config);
  EXPECT_THAT(error_of([&] { parse_run_config(text + "n_heads = 8\n", "run.toml"); }),
              HasSubstr("model.n_heads: expected 4, as in "));
  EXPECT_THAT(error_of([&] { parse_run_config("[model]\nfrom = \"nowhere\"\n", "run.toml"); }),
              HasSubstr("expected the folder of a model"));
}

}  // namespace
}  // namespace moe8
