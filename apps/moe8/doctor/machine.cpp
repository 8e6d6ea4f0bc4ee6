// SPDX-License-Identifier: BSD-3-Clause
#include "doctor/machine.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string_view>

#include "base/plain_text.h"

namespace moe8 {
namespace {

// The rest of the line that starts with `key` and a colon, or nothing: /proc/cpuinfo,
// /proc/meminfo.
std::string proc_value(const std::string& path, std::string_view key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t start = line.find_first_not_of(" \t", colon + 1);
    return start == std::string::npos ? "" : line.substr(start);
  }
  return "";
}

std::string gibibytes_of(const std::string& kilobytes) {
  std::istringstream in(kilobytes);
  double value = 0;
  if (!(in >> value)) return "unknown";
  return formatted("%.1f GiB", value / (1 << 20));
}

}  // namespace

std::string cpu_model() {
  for (const char* key : {"model name", "Model", "Hardware"}) {
    if (std::string value = proc_value("/proc/cpuinfo", key); !value.empty()) return value;
  }
  return "unknown";
}

std::vector<std::string> cpu_features() {
  std::istringstream flags(proc_value("/proc/cpuinfo", "flags"));
  const std::vector<std::string> present{std::istream_iterator<std::string>(flags), {}};
  std::vector<std::string> features;
  for (const char* feature : {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl",
                              "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"}) {
    if (std::find(present.begin(), present.end(), feature) != present.end()) {
      features.emplace_back(feature);
    }
  }
  return features;
}

std::string total_memory() {
  return gibibytes_of(proc_value("/proc/meminfo", "MemTotal"));
}

std::string memory_line() {
  return total_memory() + ", " + gibibytes_of(proc_value("/proc/meminfo", "MemAvailable")) +
         " available";
}

std::string gpu_line() {
  std::error_code ignored;
  std::vector<std::string> models;
  for (std::filesystem::directory_iterator entry("/proc/driver/nvidia/gpus", ignored), end;
       !ignored && entry != end; entry.increment(ignored)) {
    models.push_back(proc_value((entry->path() / "information").string(), "Model"));
  }
  if (models.empty()) return "no NVIDIA driver found";
  std::string text = std::to_string(models.size()) + " with a driver";
  for (const std::string& model : models) text += ", " + (model.empty() ? "unknown model" : model);
  return text;
}

std::vector<std::string> environment_lines() {
  std::vector<std::string> lines;
  for (char** entry = environ; entry && *entry; ++entry) {
    const std::string_view line = *entry;
    for (const std::string_view name :
         {"MOE8_", "OMP_", "GOMP_", "MKL_", "LIBTORCH_PREFIX", "LD_LIBRARY_PATH"}) {
      if (line.starts_with(name)) lines.emplace_back(line);
    }
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

}  // namespace moe8
