// SPDX-License-Identifier: BSD-3-Clause
// Event files, read by a reader that knows nothing of the writer: records, checksums, messages; and
// those of a run that is stopped and goes on.
#include "train/store/event_file.h"

#include <algorithm>
#include <bit>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "testing/compare.h"
#include "testing/folder.h"
#include "train/tiny_run.h"
#include "train/trainer.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

// ---- a reader -----------------------------------------------------------------
// A bit at a time, by the polynomial 0x1EDC6F41 on reflected bits.
uint32_t crc_of(const std::string& data) {
  uint32_t crc = 0xFFFFFFFFu;
  for (const unsigned char byte : data) {
    for (int bit = 0; bit < 8; ++bit) {
      const bool is_set = ((crc ^ (uint32_t{byte} >> bit)) & 1) != 0;
      crc = (crc >> 1) ^ (is_set ? 0x82F63B78u : 0u);
    }
  }
  return ~crc;
}

uint64_t number_of(const std::string& bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) {
    value = (value << 8) | static_cast<unsigned char>(bytes[i]);
  }
  return value;
}

uint32_t masked(const std::string& data) {
  const uint32_t crc = crc_of(data);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

std::vector<std::string> records_of(const std::string& bytes) {
  std::vector<std::string> records;
  size_t at = 0;
  const auto next = [&](size_t count) {
    const std::string part = bytes.substr(at, count);
    EXPECT_EQ(part.size(), count);
    at += count;
    return part;
  };
  while (at < bytes.size()) {
    const std::string length = next(8);
    EXPECT_EQ(number_of(next(4)), masked(length));
    records.push_back(next(number_of(length)));
    EXPECT_EQ(number_of(next(4)), masked(records.back()));
  }
  return records;
}

// The fields of a message: numbers as they lie, everything else as bytes.
std::multimap<int, std::string> fields_of(const std::string& message) {
  std::multimap<int, std::string> fields;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(message.at(at++));
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < message.size()) {
    const uint64_t key = varint();
    const int field = static_cast<int>(key >> 3), wire = static_cast<int>(key & 7);
    size_t size = wire == 1 ? 8 : wire == 5 ? 4 : 0;
    if (wire == 0) {
      fields.emplace(field, std::to_string(varint()));
      continue;
    }
    if (wire == 2) size = varint();
    EXPECT_EQ(fields.emplace(field, message.substr(at, size))->second.size(), size);
    at += size;
  }
  return fields;
}

std::string only(const std::multimap<int, std::string>& fields, int field) {
  EXPECT_EQ(fields.count(field), 1u) << field;
  return fields.find(field)->second;
}

struct ReadEvents {
  std::vector<int64_t> starts;                              // steps of SessionLog.START
  std::map<std::string, std::map<int64_t, float>> scalars;  // by tag and step
};

ReadEvents read_events(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream bytes;
  bytes << in.rdbuf();
  const std::vector<std::string> records = records_of(bytes.str());
  EXPECT_GE(records.size(), 2u);
  EXPECT_EQ(only(fields_of(records.at(0)), 3), "brain.Event:2");
  ReadEvents all;
  for (size_t i = 1; i < records.size(); ++i) {
    const auto event = fields_of(records[i]);
    EXPECT_GT(std::bit_cast<double>(number_of(only(event, 1))), 1.7e9);  // seconds since 1970
    const int64_t step = std::stoll(only(event, 2));
    if (event.contains(7)) {
      EXPECT_EQ(only(fields_of(only(event, 7)), 1), "1");
      all.starts.push_back(step);
      continue;
    }
    for (const auto& [field, value] : fields_of(only(event, 5))) {
      EXPECT_EQ(field, 1);
      const auto scalar = fields_of(value);
      const auto bits = static_cast<uint32_t>(number_of(only(scalar, 2)));
      all.scalars[only(scalar, 1)][step] = std::bit_cast<float>(bits);
    }
  }
  return all;
}

std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

// ---- the format ---------------------------------------------------------------
TEST(EventFile, ChecksumsAreCastagnolis) {
  EXPECT_EQ(crc_of("123456789"), 0xE3069283u);  // the check value of the published CRC-32C
  const std::string record = event_record("123456789");
  ASSERT_EQ(record.size(), 8u + 4 + 9 + 4);
  EXPECT_EQ(records_of(record), std::vector<std::string>{"123456789"});
}

TEST(EventFile, HoldsWhatWasWritten) {
  const TemporaryFolder folder;
  const std::string out = folder / "events";
  EventFile file(out, 301);
  file.write(301, {{"a/b", 0.5}, {"c", -3}});
  file.write(int64_t{1} << 40, {{"a/b", 1e30}});
  file.write(302, {});
  const EventFile other(out, 1);  // in the same second: a file of its own
  ASSERT_EQ(files_in(out).size(), 2u);
  EXPECT_THAT(files_in(out)[0], HasSubstr("/events.out.tfevents."));
  const ReadEvents events = read_events(files_in(out)[0]);
  EXPECT_EQ(events.starts, std::vector<int64_t>{301});
  const std::map<int64_t, float> ab{{301, 0.5f}, {int64_t{1} << 40, 1e30f}}, c{{301, -3.0f}};
  EXPECT_EQ(events.scalars.at("a/b"), ab);
  EXPECT_EQ(events.scalars.at("c"), c);
  EXPECT_EQ(events.scalars.size(), 2u);
}

TEST(EventFile, SaysWhatIsInItsWay) {
  const TemporaryFolder folder;
  const std::string taken = folder.write("taken", "");
  EXPECT_THAT(error_of([&] { EventFile(taken, 1); }), HasSubstr("output.tensorboard = false"));
}

// ---- runs -----------------------------------------------------------------------
TEST(EventFile, FollowsARunThatGoesOn) {
  const TemporaryFolder folder;
  RunConfig config = testing::tiny_config(folder);
  config.training.recipe = "fp8_rowwise";
  config.training.steps = 6;
  config.numerics.interval = 4;
  config.output.tensorboard = true;
  const std::string events = RunFolder{config.output.folder}.events();
  int steps = 0;
  RunOptions options;
  options.interrupted = [&] { return steps++ < 3 ? 0 : SIGTERM; };
  train(config, options);
  ASSERT_EQ(files_in(events).size(), 1u);
  options = {};
  options.existing = ExistingRun::RESUME;
  train(config, options);
  const std::vector<std::string> files = files_in(events);
  ASSERT_EQ(files.size(), 2u);

  std::map<std::string, std::map<int64_t, float>> scalars;
  std::vector<int64_t> starts;
  for (const std::string& file : files) {
    const ReadEvents read = read_events(file);
    starts.insert(starts.end(), read.starts.begin(), read.starts.end());
    for (const auto& [tag, values] : read.scalars)
      scalars[tag].insert(values.begin(), values.end());
  }
  EXPECT_EQ(starts.front(), 1);
  EXPECT_GT(starts.back(), 1);
  const MetricsRecord record = read_all_metrics(RunFolder{config.output.folder}.metrics());
  ASSERT_EQ(record.steps.size(), 6u);
  for (const StepMetrics& step : record.steps) {
    EXPECT_EQ(scalars.at("train/loss").at(step.step), static_cast<float>(step.loss));
    EXPECT_EQ(scalars.at("train/learning_rate").at(step.step), static_cast<float>(step.lr));
    EXPECT_EQ(scalars.at("speed/tokens_per_s").at(step.step),
              static_cast<float>(step.tokens_per_s));
  }
  EXPECT_EQ(scalars.at("train/loss").size(), 6u);
  EXPECT_EQ(scalars.at("validation/loss").at(6),
            static_cast<float>(*record.steps.back().validation_loss));
  ASSERT_FALSE(record.numerics.empty());
  for (const NumericsLine& look : record.numerics) {
    EXPECT_TRUE(scalars.at("numerics/warnings").contains(look.step));
    EXPECT_TRUE(scalars.at("sqnr_db/layers.1.moe.experts.w1/out").contains(look.step));
  }
  options.existing = ExistingRun::REPLACE;
  train(config, options);
  EXPECT_EQ(files_in(events).size(), 1u);
}

}  // namespace
}  // namespace moe8
