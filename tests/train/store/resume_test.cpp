// SPDX-License-Identifier: BSD-3-Clause
// Going on with a stopped run: the same losses, what may change, and every way to be refused.
// Killed runs: kill_test.cpp.
#include "train/store/resume.h"

#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include "moe8/transformer.h"
#include "testing/compare.h"
#include "testing/folder.h"
#include "train/store/checkpoint.h"
#include "train/store/named_tensors.h"
#include "train/store/run_lock.h"
#include "train/tiny_run.h"
#include "train/trainer.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::FullDisk;
using ::testing::HasSubstr;
using testing::repeatable;
using testing::TemporaryFolder;

RunConfig short_config(const TemporaryFolder& folder, const std::string& out = "run") {
  RunConfig config = testing::tiny_config(folder, out);
  config.training.steps = 12;
  config.training.validation_interval = 3;
  config.training.validation_batches = 1;
  config.checkpoint.interval = 4;
  return config;
}

RunResult resume(const RunConfig& config, std::ostream* progress = nullptr) {
  RunOptions options;
  options.existing = ExistingRun::RESUME;
  options.progress = progress;
  return train(config, options);
}

// Stops the run when it has done `steps` more steps, as SIGTERM would.
RunResult resume_for(const RunConfig& config, int steps) {
  RunOptions options;
  options.existing = ExistingRun::RESUME;
  options.interrupted = [steps]() mutable { return steps-- > 0 ? 0 : SIGTERM; };
  return train(config, options);
}

std::vector<StepMetrics> metrics_of(const RunConfig& config) {
  return repeatable(RunFolder{config.output.folder}.metrics());
}

std::vector<std::string> checkpoints_of(const RunConfig& config) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(RunFolder{config.output.folder}.checkpoints())) {
    names.push_back(entry.path().filename());
  }
  std::ranges::sort(names);
  return names;
}

void flip_a_bit(const std::string& path) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(1000);
  const int byte = file.get();
  file.seekp(1000);
  file.put(static_cast<char>(byte ^ 1));
}

// ---- the same run -----------------------------------------------------------
TEST(Resume, AStoppedRunGoesOnBitForBit) {
  const TemporaryFolder folder;
  for (const Weights weights : {Weights::MASTER, Weights::BF16, Weights::FLOAT32}) {
    const std::string name(to_string(weights));
    RunConfig config = short_config(folder, name + "-unbroken");
    config.training.weights = weights;
    config.training.accumulation = weights == Weights::BF16 ? 2 : 1;
    config.training.recipe = weights == Weights::MASTER ? "mxfp8_rceil" : "bf16";
    const RunResult unbroken = train(config);
    RunConfig broken = config;
    broken.output.folder = folder / name;
    EXPECT_EQ(resume_for(broken, 5).stopped_by, SIGTERM);
    EXPECT_EQ(metrics_of(broken).size(), 5u);
    EXPECT_EQ(resume_for(broken, 0).steps, 5);  // stopped before it did anything
    EXPECT_EQ(resume_for(broken, 4).steps, 9);
    EXPECT_FALSE(fs::exists(folder / (name + "/result.json")));
    const RunResult end = resume(broken);
    EXPECT_EQ(end.stopped_by, 0);
    EXPECT_EQ(end.steps, 12);
    EXPECT_EQ(metrics_of(broken), metrics_of(config)) << name;
    EXPECT_EQ(end.train_loss, unbroken.train_loss);
    EXPECT_EQ(end.validation_loss, unbroken.validation_loss);
    EXPECT_EQ(folder.read(name + "/model.safetensors"),
              folder.read(name + "-unbroken/model.safetensors"));
  }
}

TEST(Resume, CheckpointsComeWithTheIntervalTheBestAndTheEnd) {
  const TemporaryFolder folder;
  RunConfig config = short_config(folder);
  config.checkpoint.keep = 100;
  train(config);  // the loss falls, so that every validation is the best so far
  EXPECT_EQ(checkpoints_of(config),
            (std::vector<std::string>{"best", "step-00000003", "step-00000004", "step-00000006",
                                      "step-00000008", "step-00000009", "step-00000012"}));
  config.output.folder = folder / "only-when-stopped";
  config.checkpoint.interval = 0;
  EXPECT_EQ(resume_for(config, 7).steps, 7);
  EXPECT_EQ(checkpoints_of(config), std::vector<std::string>{"step-00000007"});
}

TEST(Resume, BeginsAnewWhereThereIsNoCheckpointYet) {
  const TemporaryFolder folder;
  RunConfig config = short_config(folder);
  std::ostringstream said;
  resume(config, &said);
  EXPECT_THAT(said.str(), HasSubstr("There is no checkpoint yet: beginning with step 1\n"));
  const auto unbroken = metrics_of(config);
  fs::remove_all(folder / "run/checkpoints");
  fs::remove(folder / "run/result.json");  // or else the run is finished
  config.model.dim = 64;
  EXPECT_THAT(error_of([&] { resume(config); }),
              HasSubstr("[resume] model.dim: expected 32, as in " + (folder / "run/run.toml")));
  config.model.dim = 32;
  resume(config);
  EXPECT_EQ(metrics_of(config), unbroken);
}

TEST(Resume, AFinishedRunOnlyWritesItsResultsAgain) {
  const TemporaryFolder folder;
  const RunConfig config = short_config(folder);
  const RunResult first = train(config);
  const std::string metrics = folder.read("run/metrics.jsonl");
  fs::remove(folder / "run/result.json");
  fs::remove(folder / "run/model.safetensors");
  const RunResult again = resume(config);
  EXPECT_EQ(again.train_loss, first.train_loss);
  EXPECT_EQ(again.validation_loss, first.validation_loss);
  EXPECT_EQ(again.tokens_per_s, first.tokens_per_s);
  EXPECT_TRUE(fs::exists(folder / "run/result.json"));
  EXPECT_TRUE(fs::exists(folder / "run/model.safetensors"));
  EXPECT_EQ(folder.read("run/metrics.jsonl"), metrics);
}

// Of every file but the lock, which names the last process.
std::map<std::string, std::pair<std::string, fs::file_time_type>> files_of(
    const RunConfig& config) {
  std::map<std::string, std::pair<std::string, fs::file_time_type>> files;
  for (const auto& entry : fs::recursive_directory_iterator(config.output.folder)) {
    if (!entry.is_regular_file() || entry.path().filename() == "run.lock") continue;
    std::ifstream in(entry.path(), std::ios::binary);
    files[entry.path()] = {{std::istreambuf_iterator<char>(in), {}}, entry.last_write_time()};
  }
  return files;
}

TEST(Resume, AFinishedRunStaysAsItIs) {
  const TemporaryFolder folder;
  for (const int64_t interval : {4, 0}) {  // with checkpoints and without any
    RunConfig config = short_config(folder, "run" + std::to_string(interval));
    config.checkpoint.interval = interval;
    const RunResult first = train(config);
    const auto before = files_of(config);
    RunConfig other = config;
    other.optimizer.learning_rate = 1;  // may change, and changes nothing any more
    std::ostringstream said;
    const RunResult again = resume(other, &said);
    EXPECT_EQ(files_of(config), before);
    EXPECT_EQ(said.str(),
              "This run is finished: nothing is changed. More steps: --set training.steps=N\n");
    EXPECT_EQ(again.folder, config.output.folder);
    EXPECT_EQ(again.steps, 12);
    EXPECT_EQ(again.train_loss, first.train_loss);
    EXPECT_EQ(again.validation_loss, first.validation_loss);
    EXPECT_EQ(again.tokens_per_s, first.tokens_per_s);
    EXPECT_EQ(again.peak_memory, first.peak_memory);
    other.model.dim = 64;
    EXPECT_THAT(error_of([&] { resume(other); }), HasSubstr("[resume] model.dim: expected 32"));
  }
}

TEST(Resume, ThePeakMemoryIsThatOfAllProcesses) {
  const TemporaryFolder folder;
  const RunConfig config = short_config(folder);
  resume_for(config, 5);
  const std::string path = folder / "run/checkpoints/step-00000005";
  CheckpointInfo info = read_checkpoint_info(path);
  EXPECT_GT(info.state.peak_memory, 50 << 20);
  info.state.peak_memory = int64_t{1} << 50;  // as if that process had been larger
  const auto pieces_of = [&](const char* file) {
    std::vector<TensorPiece> pieces;
    for (const auto& [name, tensor] : load_safetensors(path + file)) {
      pieces.push_back(piece_of(name, 0, tensor));
    }
    return pieces;
  };
  const CheckpointTensors tensors{pieces_of("/model.safetensors"),
                                  pieces_of("/training.safetensors")};
  fs::remove_all(path);
  write_checkpoint(path, info, tensors);
  EXPECT_EQ(resume(config).peak_memory, int64_t{1} << 50);
  EXPECT_EQ(read_result(folder / "run/result.json").peak_memory, int64_t{1} << 50);
}

TEST(Resume, LinesAfterTheCheckpointAreWrittenAnew) {
  const TemporaryFolder folder;
  RunConfig config = short_config(folder);
  train(config);
  const auto unbroken = metrics_of(config);
  for (const char* step : {"step-00000012", "step-00000009"}) {
    fs::remove_all(folder / ("run/checkpoints/" + std::string(step)));
  }
  std::ofstream(folder / "run/metrics.jsonl", std::ios::app) << R"({"step":13,"loss":1.)";
  resume(config);  // from step 8
  EXPECT_EQ(metrics_of(config), unbroken);
}

TEST(Resume, LinesOfOtherKindsAreCutLikewise) {
  const TemporaryFolder folder;
  const auto line = [](int step) {
    return c10::str(R"({"step":)", step,
                    R"(,"loss":1,"lr":1,"grad_norm":1,"tokens_per_s":1,"expert_load_min":1,)",
                    R"("expert_load_max":1})", "\n");
  };
  const auto other = [](int step) {
    return c10::str(R"({"step":)", step, R"(,"kind":"x"})", "\n");
  };
  const std::string kept = line(1) + other(1) + other(2) + line(2) + other(2);
  for (const std::string& rest : {std::string(), line(3), other(3) + line(3), kept.substr(0, 20),
                                  std::string("\n"), std::string("{\"step\":2")}) {
    const std::string path = folder.write("m.jsonl", kept + rest);
    const MetricsFile cut(path, 2);
    EXPECT_EQ(folder.read("m.jsonl"), kept) << rest;
  }
}

// ---- refused ----------------------------------------------------------------
TEST(Resume, MetricsWithAGapAreRefused) {
  const TemporaryFolder folder;
  RunConfig config = short_config(folder);
  config.numerics.interval = 0;  // every line but the first is a step's
  resume_for(config, 6);
  const std::string text = folder.read("run/metrics.jsonl");
  const size_t steps = text.find('\n') + 1, second = text.find('\n', steps) + 1;
  const std::string start = text.substr(0, steps), first = text.substr(0, second);
  for (const std::string& wrong : {start + text.substr(second), first, first + text.substr(steps),
                                   text.substr(0, text.size() - 1), std::string()}) {
    folder.write("run/metrics.jsonl", wrong);
    EXPECT_THAT(error_of([&] { resume(config); }),
                HasSubstr("run/metrics.jsonl: expected the lines of steps 1 to 6, "));
    EXPECT_EQ(folder.read("run/metrics.jsonl"), wrong);
  }
  folder.write("run/metrics.jsonl", text);
  EXPECT_EQ(resume(config).steps, 12);
}

TEST(Resume, ADamagedCheckpointIsPassedOver) {
  const TemporaryFolder folder;
  RunConfig config = short_config(folder);
  train(config);
  const auto unbroken = metrics_of(config);
  flip_a_bit(folder / "run/checkpoints/step-00000012/model.safetensors");
  ::testing::internal::CaptureStderr();
  std::ostringstream said;
  resume(config, &said);
  const std::string warning = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(warning, HasSubstr("step-00000012/model.safetensors: expected the bytes that were"));
  EXPECT_EQ(std::ranges::count(warning, '\n'), 1) << warning;
  EXPECT_THAT(said.str(),
              HasSubstr("Going on after " + (folder / "run/checkpoints/step-00000009")));
  EXPECT_EQ(metrics_of(config), unbroken);
  EXPECT_EQ(checkpoints_of(config),
            (std::vector<std::string>{"best", "step-00000009", "step-00000012",
                                      "step-00000012.damaged"}));
}

TEST(Resume, OnlyDamagedCheckpointsAreRefusedAndLeftAlone) {
  const TemporaryFolder folder;
  RunConfig config = short_config(folder);
  config.checkpoint.keep = 1;
  train(config);
  flip_a_bit(folder / "run/checkpoints/step-00000012/training.safetensors");
  const auto before = checkpoints_of(config);
  const std::string metrics = folder.read("run/metrics.jsonl");
  EXPECT_THAT(error_of([&] { resume(config); }),
              HasSubstr("expected at least one whole checkpoint, got 1 damaged one: "));
  EXPECT_EQ(checkpoints_of(config), before);
  EXPECT_EQ(folder.read("run/metrics.jsonl"), metrics);
}

TEST(Resume, AnotherRunIsRefusedByTheKeyThatDiffers) {
  const TemporaryFolder folder;
  const RunConfig config = short_config(folder);
  resume_for(config, 5);
  const auto before = checkpoints_of(config);
  const std::string where = "as in " + (folder / "run/checkpoints/step-00000005") + ", got ";
  const auto message = [&](const std::function<void(RunConfig&)>& change) {
    RunConfig other = config;
    change(other);
    return error_of([&] { resume(other); });
  };
  EXPECT_THAT(
      message([](RunConfig& c) { c.model.hidden_dim = 64; }),
      HasSubstr("[resume] model.hidden_dim: expected 32, " + where + "64. This is another"));
  EXPECT_THAT(message([](RunConfig& c) { c.training.recipe = "fp8_rowwise"; }),
              HasSubstr("[resume] training.recipe: expected 'bf16', " + where + "'fp8_rowwise'"));
  EXPECT_THAT(message([](RunConfig& c) { c.training.seed = 2; }),
              HasSubstr("[resume] training.seed: expected 1, " + where + "2"));
  EXPECT_THAT(message([](RunConfig& c) { c.training.weights = Weights::BF16; }),
              HasSubstr("[resume] training.weights: expected 'master', " + where + "'bf16'"));
  EXPECT_THAT(message([](RunConfig& c) { c.training.steps = 4; }),
              HasSubstr("[resume] training.steps: expected at least the 5 steps of "));
  EXPECT_THAT(message([&](RunConfig& c) {
                c.data.files = {folder.write("other.txt", testing::tiny_text() + "!")};
              }),
              HasSubstr("[resume] data.files: expected the text that "));
  EXPECT_EQ(checkpoints_of(config), before);
  EXPECT_EQ(metrics_of(config).size(), 5u);
}

// The config may match and the weights not, when somebody copied files about.
TEST(Resume, WeightsOfAnotherModelAreRefused) {
  const TemporaryFolder folder;
  const TransformerConfig small = short_config(folder).model;
  Transformer model(small, 1, at::kBFloat16);
  NamedTensors tensors = learned_tensors(*model);
  const at::Tensor before = tensors[0].second.clone();
  const auto load = [&](const NamedTensors& other) {
    save_safetensors(folder / "m", other);
    return error_of([&] { load_into(tensors, PieceReader({folder / "m"})); });
  };
  NamedTensors other;
  for (const auto& [name, tensor] : tensors) other.emplace_back(name, at::zeros_like(tensor));
  other[3].second = at::zeros({1, 2}, at::kBFloat16);
  EXPECT_THAT(load(other), HasSubstr("[checkpoint] " + (folder / "m") + ": tensor '" +
                                     tensors[3].first + "': expected BFloat16 ["));
  other[3].second = tensors[3].second.to(at::kFloat);
  EXPECT_THAT(load(other), HasSubstr("got Float ["));
  other[3].first = "extra";
  EXPECT_THAT(load(other), HasSubstr(tensors[3].first));
  other.pop_back();
  EXPECT_THAT(load(other), HasSubstr("tensors of this run's model, got "));
  EXPECT_TRUE(testing::same_bits(tensors[0].second, before));
}

TEST(Resume, WhatMayChangeIsSaid) {
  const TemporaryFolder folder;
  RunConfig config = short_config(folder);
  train(config);
  config.training.steps = 14;
  config.optimizer.learning_rate = 2e-2;
  config.checkpoint.keep = 1;
  config.training.activation_checkpointing = Recompute::FULL;
  config.data.files = {folder.write("moved.txt", testing::tiny_text())};
  std::ostringstream said;
  EXPECT_EQ(resume(config, &said).steps, 14);
  EXPECT_THAT(said.str(), HasSubstr("training.steps = 14 (was 12)\n"));
  EXPECT_THAT(said.str(), HasSubstr("training.activation_checkpointing = 'full' (was 'none')\n"));
  EXPECT_THAT(said.str(), HasSubstr("optimizer.learning_rate = 0.02 (was 0.01)\n"));
  EXPECT_EQ(said.str().find("data.files"), std::string::npos);
  EXPECT_EQ(metrics_of(config).size(), 14u);
  EXPECT_EQ(load_run_config(folder / "run/run.toml").training.steps, 14);
}

TEST(Resume, DifferencesThatMayChangeTheLastBits) {
  EXPECT_EQ(changes({{"threads", "2"}, {"CPU", "AVX2"}}, {{"threads", "2"}, {"CPU", "AVX2"}}), "");
  EXPECT_EQ(changes({{"threads", "2"}}, {{"threads", "1"}, {"CPU", "AVX512"}}),
            "CPU AVX512 (was unknown), threads 1 (was 2)");
  const TemporaryFolder folder;
  RunConfig config = short_config(folder);
  resume_for(config, 5);
  config.training.threads = 2;
  ::testing::internal::CaptureStderr();
  resume_for(config, 1);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("threads 2 (was 1)"));
}

// ---- where nothing can be written -------------------------------------------
TEST(Resume, AFullDiskIsOneLineAndTheLastCheckpointStays) {
  const TemporaryFolder folder;
  RunConfig config = short_config(folder);
  config.output.folder = folder / "unbroken";
  train(config);
  const auto unbroken = metrics_of(config);
  config.output.folder = folder / "run";
  resume_for(config, 6);
  {
    const FullDisk full(30'000);  // less than the weights, more than the metrics
    const std::string message = error_of([&] { resume(config); });
    EXPECT_THAT(message, HasSubstr("step-00000008.partial/model.safetensors: expected to write "));
    EXPECT_THAT(message, HasSubstr("File too large"));
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
  const auto names = checkpoints_of(config);
  EXPECT_EQ(names.back(), "step-00000006");
  check_checkpoint(folder / "run/checkpoints/step-00000006");
  resume(config);
  EXPECT_EQ(metrics_of(config), unbroken);
}

// Root may write everywhere, so it becomes nobody for a while.
class Unprivileged {
 public:
  Unprivileged() : done_(::geteuid() != 0 || ::seteuid(65534) == 0) {}
  ~Unprivileged() {
    if (::getuid() == 0 && ::seteuid(0) != 0) std::abort();
  }
  Unprivileged(const Unprivileged&) = delete;
  Unprivileged& operator=(const Unprivileged&) = delete;
  bool done() const { return done_; }

 private:
  bool done_;
};

TEST(Resume, AReadOnlyFolderIsOneLine) {
  const TemporaryFolder folder;
  const RunConfig config = short_config(folder);
  resume_for(config, 5);
  const auto read_only = fs::perms::owner_read | fs::perms::owner_exec | fs::perms::group_read |
                         fs::perms::group_exec | fs::perms::others_read | fs::perms::others_exec;
  fs::permissions(folder / "", read_only);
  fs::permissions(folder / "run", read_only);
  fs::permissions(folder / "run/run.lock", fs::perms::owner_read | fs::perms::others_read);
  {
    const Unprivileged user;
    if (!user.done()) GTEST_SKIP() << "cannot become another user";
    RunConfig fresh = config;
    fresh.output.folder = folder / "new";
    EXPECT_THAT(error_of([&] { train(fresh); }),
                HasSubstr("[train] output.folder: expected to make the folder '"));
    EXPECT_THAT(error_of([&] { resume(config); }),
                HasSubstr("[train] output.folder: expected a folder that can be written to, got '" +
                          (folder / "run") + "': Permission denied"));
  }
  fs::permissions(folder / "", fs::perms::owner_all);
  fs::permissions(folder / "run", fs::perms::owner_all);
  fs::permissions(folder / "run/run.lock", fs::perms::owner_read | fs::perms::owner_write);
  EXPECT_EQ(resume(config).steps, 12);
}

TEST(Resume, AFileInPlaceOfTheCheckpointsIsOneLine) {
  const TemporaryFolder folder;
  folder.write("checkpoints", "");
  const RunConfig config = short_config(folder, "");
  EXPECT_THAT(error_of([&] { resume(config); }),
              HasSubstr("checkpoints: expected to make the folder"));
}

// ---- one run per folder -----------------------------------------------------
TEST(RunLock, TwoRunsInOneFolderAreRefused) {
  const TemporaryFolder folder;
  const RunConfig config = short_config(folder);
  resume_for(config, 2);
  const std::string before = folder.read("run/metrics.jsonl");
  {
    const RunLock lock(RunFolder{config.output.folder}.lock());
    RunOptions replace;
    replace.existing = ExistingRun::REPLACE;
    const std::string expected = "[train] output.folder: expected no other run in '" +
                                 (folder / "run") + "', but one is going on (process " +
                                 std::to_string(::getpid()) + ")";
    EXPECT_EQ(error_of([&] { resume(config); }), expected);
    EXPECT_EQ(error_of([&] { train(config, replace); }), expected);
  }
  EXPECT_EQ(folder.read("run/metrics.jsonl"), before);
  EXPECT_EQ(resume(config).steps, 12);
}

}  // namespace
}  // namespace moe8
