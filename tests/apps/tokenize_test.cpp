// SPDX-License-Identifier: BSD-3-Clause
// moe8 tokenize, as it is run: what it prints, and a kill in the middle.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "apps/run_command.h"
#include "testing/compare.h"
#include "testing/folder.h"
#include "train/tiny_run.h"

namespace moe8::testing {
namespace {

using ::testing::HasSubstr;

class TokenizeCommand : public ::testing::Test {
 protected:
  TokenizeCommand() {
    const auto recorded = nlohmann::json::parse(
        std::ifstream(std::string(MOE8_TOKENIZER_CASES) + "/byte_level_prefix.json"));
    tokenizer_ = folder_.write("tokenizer.json", recorded["tokenizer"].dump());
  }
  std::vector<std::string> words(const std::string& file, const std::string& out) const {
    return {"tokenize",    file,     "--tokenizer", tokenizer_,
            "--end-token", "<mask>", "--out",       folder_ / out};
  }
  TemporaryFolder folder_;
  std::string tokenizer_;
};

TEST_F(TokenizeCommand, SaysWhatItMade) {
  const std::string file = folder_.write("a.txt", "one\n\ntwo");
  std::vector<std::string> line = words(file, "out");
  line.insert(line.end(), {"--separator", "\\n\\n", "--megatron", "--threads", "2"});
  const Ran ran = run_moe8(line);
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr(" tokens (uint16) of 2 documents"));
  for (const char* name : {"documents.u64", "index.json", "tokens.bin", "tokens.idx"}) {
    EXPECT_TRUE(std::filesystem::exists(folder_ / (std::string("out/") + name))) << name;
  }
  EXPECT_THAT(run_moe8(line).out, HasSubstr("(was done already)"));
}

TEST_F(TokenizeCommand, ErrorsAreOneLine) {
  const Ran ran = run_moe8(words(folder_.write("a.jsonl", "{\n"), "out"));
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(ran.err, HasSubstr("a.jsonl:1: expected a JSON object"));
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  EXPECT_EQ(run_moe8({"tokenize", "x"}).status, 2);
}

// Killed at some places, started again to the end: the same files.
TEST_F(TokenizeCommand, AKillDoesNoHarm) {
  std::string lines;
  for (int i = 0; i < 90000; ++i) {
    lines += "{\"text\": \"" + std::to_string(i * 7919);
    for (int k = 0; k < i % 20; ++k) lines += " words again";
    lines += "\"}\n";
  }
  const std::string file = folder_.write("a.jsonl", lines);  // 12 MB
  ASSERT_EQ(run_moe8(words(file, "whole")).status, 0);
  for (const int milliseconds : {30, 200, 500, 900}) {
    Moe8Process process(words(file, "killed"));
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    process.signal(SIGKILL);
    process.wait();
  }
  ASSERT_EQ(run_moe8(words(file, "killed")).status, 0);
  for (const char* name : {"tokens.bin", "documents.u64", "index.json"}) {
    EXPECT_EQ(folder_.read(std::string("whole/") + name),
              folder_.read(std::string("killed/") + name))
        << name;
  }
}

// From text to a model: mixed by weight, stopped and gone on with, in the bits of a run that was not.
TEST_F(TokenizeCommand, WhatItMakesIsTrainedOn) {
  std::string text;
  for (int i = 0; i < 4000; ++i) text += "words again and again " + std::to_string(i) + "\n";
  const std::string file = folder_.write("a.txt", text);
  ASSERT_EQ(run_moe8(words(file, "one")).status, 0);
  ASSERT_EQ(run_moe8(words(folder_.write("b.txt", text + text), "two")).status, 0);
  RunConfig config = tiny_config(folder_);
  config.model.vocab_size = 512;
  config.data.files = {folder_ / "one", folder_ / "two"};
  config.data.weights = {0.75, 0.25};
  config.training.steps = 6;
  config.optimizer.schedule = Schedule::CONSTANT;  // whatever the number of steps
  config.checkpoint.interval = 3;
  const std::string toml = folder_.write("config.toml", to_toml(config));
  const auto train = [&](const std::string& out, const std::string& set) {
    return run_moe8({"train", "--config", toml, "--resume", "--out", folder_ / out, "--set", set},
                    {"GOMP_SPINCOUNT=1"});
  };
  EXPECT_EQ(train("whole", "training.steps=6").status, 0);
  EXPECT_EQ(train("parts", "training.steps=3").status, 0);
  EXPECT_EQ(train("parts", "training.steps=6").status, 0);
  EXPECT_EQ(folder_.read("whole/model.safetensors"), folder_.read("parts/model.safetensors"));
  EXPECT_THAT(train("parts", "data.weights=[1, 1]").err,
              HasSubstr("data.weights: expected [ 0.75, 0.25 ]"));
  EXPECT_THAT(train("small", "model.vocab_size=300").err,
              HasSubstr("model.vocab_size: expected at least "));
}

}  // namespace
}  // namespace moe8::testing
