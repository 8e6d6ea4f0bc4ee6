// SPDX-License-Identifier: BSD-3-Clause
// One checkpoint and a folder of them: written whole, checked byte by byte, kept and set aside.
#include "train/store/checkpoint.h"

#include <ATen/ops/arange.h>

#include <filesystem>

#include "testing/compare.h"
#include "testing/folder.h"
#include "train/store/checkpoint_folder.h"
#include "train/store/checksum.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::FullDisk;
using ::testing::HasSubstr;
using testing::same_bits;
using testing::TemporaryFolder;

CheckpointInfo some_info(int64_t step) {
  CheckpointInfo info;
  info.config.training.recipe = "mxfp8_rceil";
  info.config.data.files = {"/a text"};
  info.state.step = step;
  info.state.next_batch = 2 * step;
  info.state.last_losses = {0.1 + 0.2, 5.5};
  info.state.validation_loss = 1.0 / 3;
  info.state.best = {step - 1, 0.25};
  info.state.seconds = 1e9;
  info.state.peak_memory = 123'456'789'012;
  info.text = {"abc", "def"};
  info.environment = this_environment();
  return info;
}

CheckpointTensors some_tensors() {
  return {{{"w", {0}, at::arange(1000).to(at::kBFloat16)}},
          {{"exp_avg.w", {0}, at::arange(1000.0)}}};
}

void flip_a_bit(const std::string& path, size_t position) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(position));
  const int byte = file.get();
  file.seekp(static_cast<std::streamoff>(position));
  file.put(static_cast<char>(byte ^ 1));
}

// ---- one --------------------------------------------------------------------
TEST(Checkpoint, ReadsBackWhatWasWritten) {
  const TemporaryFolder folder;
  const CheckpointFiles files{folder / "c"};
  write_checkpoint(files.path, some_info(3), some_tensors());
  check_checkpoint(files.path);
  EXPECT_EQ(read_checkpoint_info(files.path), some_info(3));
  EXPECT_TRUE(same_bits(load_safetensors(files.model()).at("w"), some_tensors().model[0].data));
  EXPECT_TRUE(same_bits(load_safetensors(files.training()).at("exp_avg.w"),
                        some_tensors().training[0].data));
  EXPECT_EQ(folder.names(), std::vector<std::string>{"c"});

  CheckpointInfo none;  // what is optional may be missing
  write_checkpoint(folder / "d", none, some_tensors());
  EXPECT_EQ(read_checkpoint_info(folder / "d").state, none.state);
}

TEST(Checkpoint, EveryFlippedBitIsFound) {
  const TemporaryFolder folder;
  const std::string path = folder / "c";
  write_checkpoint(path, some_info(3), some_tensors());
  for (const auto& entry : fs::directory_iterator(path)) {
    const std::string file = entry.path();
    const size_t size = fs::file_size(file), stride = std::max<size_t>(1, size / 50);
    for (size_t at = 0; at < size; at += stride) {
      flip_a_bit(file, at);
      EXPECT_THAT(error_of([&] { check_checkpoint(path); }), HasSubstr("its checksum differs"))
          << file << " byte " << at;
      flip_a_bit(file, at);
    }
  }
  check_checkpoint(path);
}

TEST(Checkpoint, WhatIsMissingCutOrAddedIsFound) {
  const TemporaryFolder folder;
  const CheckpointFiles files{folder / "c"};
  write_checkpoint(files.path, some_info(3), some_tensors());
  const auto message = [&] { return error_of([&] { check_checkpoint(files.path); }); };
  fs::copy_file(files.model(), folder / "model");
  fs::resize_file(files.model(), 100);
  EXPECT_THAT(message(), HasSubstr("c/model.safetensors: expected the bytes that were written"));
  fs::remove(files.model());
  EXPECT_THAT(message(), HasSubstr("c/model.safetensors: expected a readable file"));
  fs::copy_file(folder / "model", files.model());
  check_checkpoint(files.path);
  folder.write("c/checksums.txt", folder.read("c/checksums.txt") + "\n");
  EXPECT_THAT(message(), HasSubstr("expected 4 lines, got 5"));
  folder.write("c/checksums.txt", "");
  EXPECT_THAT(message(), HasSubstr("its checksum differs"));
  EXPECT_THAT(error_of([&] { check_checkpoint(folder / "none"); }), HasSubstr("does not exist"));
}

TEST(Checkpoint, OfANewerFormatIsRefusedByName) {
  const TemporaryFolder folder;
  write_checkpoint(folder / "c", some_info(3), some_tensors());
  std::string text = folder.read("c/state.json");
  text.replace(text.find("\"format\": 1"), 11, "\"format\": 2");
  folder.write("c/state.json", text);
  EXPECT_THAT(error_of([&] { read_checkpoint_info(folder / "c"); }),
              HasSubstr("c/state.json: expected format 1, got 2. Another version"));
  folder.write("c/state.json", std::string_view("{}\0", 3));
  EXPECT_THAT(error_of([&] { read_checkpoint_info(folder / "c"); }),
              HasSubstr("c/state.json: expected text, got a NUL byte at byte 2"));
  folder.write("c/state.json", "[]");
  EXPECT_THAT(error_of([&] { read_checkpoint_info(folder / "c"); }),
              HasSubstr("expected the state of a run, got: "));
}

TEST(Checkpoint, AFullDiskLeavesNothingBehind) {
  const TemporaryFolder folder;
  write_checkpoint(folder / "good", some_info(3), some_tensors());
  {
    const FullDisk full;
    EXPECT_THAT(error_of([&] { write_checkpoint(folder / "c", some_info(4), some_tensors()); }),
                HasSubstr("File too large"));
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"good"});
  check_checkpoint(folder / "good");
}

TEST(Checkpoint, ATakenNameIsNotReplaced) {
  const TemporaryFolder folder;
  write_checkpoint(folder / "c", some_info(3), some_tensors());
  EXPECT_THAT(error_of([&] { write_checkpoint(folder / "c", some_info(4), some_tensors()); }),
              HasSubstr("expected to rename the finished folder, got: "));
  EXPECT_EQ(read_checkpoint_info(folder / "c").state.step, 3);
  folder.write("file", "");
  EXPECT_THAT(error_of([&] { write_checkpoint(folder / "file/c", some_info(4), some_tensors()); }),
              HasSubstr("expected to make a folder, got: Not a directory"));
}

TEST(Checksum, IsXxh128) {
  const TemporaryFolder folder;
  const auto checksum_of = [&](const std::string& bytes) {
    return checksum(InputFile("op", folder.write("a", bytes)));
  };
  // What `xxh128sum` prints.
  EXPECT_EQ(checksum_of(""), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(checksum_of("moe8"), "8ddd72e69f6be38e16f30fa76a7f1e78");
  std::string large(3'500'000, 'x');  // more than one piece
  large[3'200'000] = 'y';
  EXPECT_EQ(checksum_of(large), "2e9c0dbccc6d6ee6413e7728697fca96");
}

// ---- several ----------------------------------------------------------------
std::string make(const TemporaryFolder& folder, int64_t step) {
  CheckpointFolder all(folder / "all");
  all.prepare();
  write_checkpoint(all.path_of(step), some_info(step), some_tensors());
  return all.path_of(step);
}

std::vector<std::string> names_in(const TemporaryFolder& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder / "all")) {
    names.push_back(entry.path().filename());
  }
  std::ranges::sort(names);
  return names;
}

TEST(CheckpointFolder, FindsTheNewestByNumber) {
  const TemporaryFolder folder;
  CheckpointFolder all(folder / "all");
  EXPECT_FALSE(all.newest_good());
  for (const int64_t step : {20, 100'000'000, 3}) make(folder, step);
  for (const char* other : {"step-1", "step-00000004x", "notes", "step-00000030.damaged"}) {
    fs::create_directory(folder / ("all/" + std::string(other)));
  }
  std::vector<int64_t> steps;
  for (const auto& entry : all.entries()) steps.push_back(entry.step);
  EXPECT_EQ(steps, (std::vector<int64_t>{100'000'000, 20, 3}));
  EXPECT_EQ(all.newest_good()->step, 100'000'000);
}

TEST(CheckpointFolder, PassesOverDamagedOnes) {
  const TemporaryFolder folder;
  CheckpointFolder all(folder / "all");
  make(folder, 1);
  flip_a_bit(make(folder, 2) + "/state.json", 10);
  fs::remove_all(make(folder, 3));
  fs::create_directory(all.path_of(3));  // empty
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(all.newest_good()->step, 1);
  const std::string warnings = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(warnings, HasSubstr("step-00000003/checksums.txt"));
  EXPECT_THAT(warnings, HasSubstr("step-00000002/state.json: expected the bytes"));
  EXPECT_EQ(std::ranges::count(warnings, '\n'), 2) << warnings;

  fs::create_directory(folder / "all/step-00000003.damaged");  // of an earlier accident
  all.set_aside_after(1);
  EXPECT_EQ(names_in(folder), (std::vector<std::string>{"step-00000001", "step-00000002.damaged",
                                                        "step-00000003.damaged"}));
}

TEST(CheckpointFolder, OnlyDamagedOnesAreAnErrorThatChangesNothing) {
  const TemporaryFolder folder;
  flip_a_bit(make(folder, 2) + "/run.toml", 0);
  const auto message = [&] {
    return error_of([&] { CheckpointFolder(folder / "all").newest_good(); });
  };
  EXPECT_THAT(message(), HasSubstr("expected at least one whole checkpoint, got 1 damaged one: "));
  EXPECT_THAT(message(), HasSubstr("step-00000002/run.toml"));
  EXPECT_EQ(names_in(folder), std::vector<std::string>{"step-00000002"});
}

TEST(CheckpointFolder, KeepsTheNewestAndTheBest) {
  const TemporaryFolder folder;
  CheckpointFolder all(folder / "all");
  for (int64_t step = 1; step <= 6; ++step) make(folder, step);
  all.keep(2, 3);
  EXPECT_EQ(names_in(folder),
            (std::vector<std::string>{"best", "step-00000003", "step-00000005", "step-00000006"}));
  EXPECT_EQ(fs::read_symlink(folder / "all/best"), "step-00000003");
  all.keep(2, 6);
  EXPECT_EQ(names_in(folder), (std::vector<std::string>{"best", "step-00000005", "step-00000006"}));
  EXPECT_EQ(fs::read_symlink(folder / "all/best"), "step-00000006");
  all.keep(1, 5'000);  // not there: no link to nothing
  EXPECT_EQ(names_in(folder), std::vector<std::string>{"step-00000006"});
}

TEST(CheckpointFolder, RemovesWhatAKilledProcessLeft) {
  const TemporaryFolder folder;
  make(folder, 1);
  fs::create_directories(folder / "all/step-00000002.partial/deep");
  folder.write("all/step-00000002.partial/model.safetensors", "half");
  CheckpointFolder(folder / "all").prepare();
  EXPECT_EQ(names_in(folder), std::vector<std::string>{"step-00000001"});
}

}  // namespace
}  // namespace moe8
