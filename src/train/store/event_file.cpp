// SPDX-License-Identifier: BSD-3-Clause
// An event file is a sequence of TFRecords, each an Event in protocol buffers' wire format, of which
// four messages of scalars are needed: fields and numbers are those of tensorflow/core/util/event.proto
// and framework/summary.proto.
#include "train/store/event_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "base/check.h"

namespace moe8 {
namespace {

constexpr const char* kEventFile = "event_file";

// ---- bytes --------------------------------------------------------------------
template <typename T>
std::string little_endian(T value) {
  std::string bytes;
  for (size_t i = 0; i < sizeof(T); ++i) bytes += static_cast<char>((value >> (8 * i)) & 0xFF);
  return bytes;
}

// CRC-32C (Castagnoli), reflected.
uint32_t crc32c(std::string_view data) {
  static const auto table = [] {
    std::array<uint32_t, 256> all{};
    for (uint32_t byte = 0; byte < all.size(); ++byte) {
      uint32_t crc = byte;
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0x82F63B78u : 0);
      all[byte] = crc;
    }
    return all;
  }();
  uint32_t crc = ~0u;
  for (const char c : data) crc = (crc >> 8) ^ table[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  return ~crc;
}

// TFRecords store checksums so that data which holds some does not look like its own.
std::string masked_checksum(std::string_view data) {
  return little_endian(std::rotr(crc32c(data), 15) + 0xA282EAD8u);
}

// ---- messages -----------------------------------------------------------------
enum class Wire { VARINT = 0, FIXED64 = 1, LENGTH = 2, FIXED32 = 5 };

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>((value & 0x7F) | 0x80);
  return bytes + static_cast<char>(value);
}
std::string key(int field, Wire wire) {
  return varint((static_cast<uint64_t>(field) << 3) | static_cast<uint64_t>(wire));
}
std::string integer(int field, int64_t value) {
  return key(field, Wire::VARINT) + varint(static_cast<uint64_t>(value));
}
std::string real(int field, double value) {
  return key(field, Wire::FIXED64) + little_endian(std::bit_cast<uint64_t>(value));
}
std::string real(int field, float value) {
  return key(field, Wire::FIXED32) + little_endian(std::bit_cast<uint32_t>(value));
}
std::string bytes(int field, std::string_view value) {
  return key(field, Wire::LENGTH) + varint(value.size()) + std::string(value);
}

// Event: wall_time 1, step 2, file_version 3, summary 5, session_log 7.
std::string event(int64_t step, const std::string& what) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  return real(1, now.count()) + (step == 0 ? "" : integer(2, step)) + what;
}

// Summary: value 1; Summary.Value: tag 1, simple_value 2.
std::string summary(const std::vector<Scalar>& scalars) {
  std::string all;
  for (const Scalar& scalar : scalars) {
    all += bytes(1, bytes(1, scalar.tag) + real(2, static_cast<float>(scalar.value)));
  }
  return all;
}

// ---- the file -----------------------------------------------------------------
std::string host_name() {
  char name[256] = "";
  if (::gethostname(name, sizeof name - 1) != 0 || name[0] == '\0') return "localhost";
  return name;
}

[[noreturn]] void fail_to_make(const std::string& path, const std::error_code& error) {
  fail(kEventFile, path,
       concat("expected to make it, got: ", error.message(),
              ". output.tensorboard = false does without."));
}

Descriptor make_file(const std::string& folder, std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail_to_make(folder, error);
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(
      std::chrono::system_clock::now().time_since_epoch());
  for (int number = 0;; ++number) {
    path = concat(folder, "/events.out.tfevents.", seconds.count(), ".", host_name(), ".",
                  ::getpid(), ".", number);
    Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (file.get() >= 0) return file;
    if (errno != EEXIST) fail_to_make(path, {errno, std::generic_category()});
  }
}

}  // namespace

std::string event_record(std::string_view data) {
  const std::string length = little_endian(static_cast<uint64_t>(data.size()));
  return length + masked_checksum(length) + std::string(data) + masked_checksum(data);
}

EventFile::EventFile(const std::string& folder, int64_t first_step)
    : file_(make_file(folder, path_)) {
  append(event(0, bytes(3, "brain.Event:2")));
  append(event(first_step, bytes(7, integer(1, /*SessionLog.START*/ 1))));
}

void EventFile::write(int64_t step, const std::vector<Scalar>& scalars) {
  if (!scalars.empty()) append(event(step, bytes(5, summary(scalars))));
}

void EventFile::append(std::string_view event) {
  const std::string record = event_record(event);
  write_all(kEventFile, path_, file_, record.data(), record.size());
}

// ---- what is shown ------------------------------------------------------------
std::vector<Scalar> scalars_of(const StepMetrics& m) {
  std::vector<Scalar> all{{"train/loss", m.loss},
                          {"train/learning_rate", m.lr},
                          {"train/grad_norm", m.grad_norm},
                          {"experts/least_over_mean", m.expert_load_min},
                          {"experts/busiest_over_mean", m.expert_load_max},
                          {"speed/tokens_per_s", m.tokens_per_s}};
  const auto add = [&](const char* tag, const std::optional<double>& value) {
    if (value) all.push_back({tag, *value});
  };
  add("validation/loss", m.validation_loss);
  add("train/aux_loss", m.aux_loss);
  add("train/z_loss", m.z_loss);
  add("speed/tokens_per_cpu_s", m.tokens_per_cpu_s);
  add("speed/mfu", m.mfu);
  if (m.ms) {
    all.push_back({"ms/data", m.ms->data});
    all.push_back({"ms/forward", m.ms->forward});
    all.push_back({"ms/backward", m.ms->backward});
    all.push_back({"ms/optimizer", m.ms->optimizer});
  }
  if (m.gpu_memory) {
    constexpr double kGiB = 1 << 30;
    all.push_back({"memory/peak_gib", static_cast<double>(m.gpu_memory->peak) / kGiB});
    all.push_back({"memory/reserved_gib", static_cast<double>(m.gpu_memory->reserved) / kGiB});
  }
  return all;
}

std::vector<Scalar> scalars_of(const NumericsReport& report) {
  std::vector<Scalar> all;
  for (const WeightNumerics& weight : report.weights) {
    for (const ProductNumerics& product : weight.products) {
      const std::string name = "/" + weight.fqn + "/" + product.name;
      // Exact products have no finite one, which a chart cannot show.
      if (std::isfinite(product.sqnr_db)) all.push_back({"sqnr_db" + name, product.sqnr_db});
      all.push_back(
          {"underflow" + name, std::max(product.left.underflow, product.right.underflow)});
    }
  }
  for (const ExpertTokens& experts : report.experts) {
    all.push_back({"balance/" + experts.fqn, experts.balance()});
  }
  all.push_back({"numerics/warnings", static_cast<double>(report.warnings.size())});
  return all;
}

}  // namespace moe8
