// SPDX-License-Identifier: BSD-3-Clause
#include "harness.h"

#include <ATen/Parallel.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <sstream>
#include <string_view>
#include <utility>

#include "moe8/version.h"

namespace moe8::bench {
namespace {

double seconds_of(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Timing {
  double p10, median, p90;
};

Timing timing_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  const auto at = [&](double share) {
    return seconds[static_cast<size_t>(share * static_cast<double>(seconds.size() - 1))];
  };
  return {at(0.1), at(0.5), at(0.9)};
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string output_of(const char* command) {
  std::string text;
  if (FILE* pipe = popen(command, "r")) {
    char buffer[128];
    while (std::fgets(buffer, sizeof buffer, pipe)) text += buffer;
    pclose(pipe);
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

struct Options {
  int rounds = 15;
  std::string json;
};

std::string json_file(const std::string& wanted, const std::string& program) {
  const std::filesystem::path path = wanted;
  if (!std::filesystem::is_directory(path)) return wanted;
  return path / (std::filesystem::path(program).filename().string() + ".json");
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (i + 1 < argc && flag == "--rounds") {
      options.rounds =
          static_cast<int>(std::clamp(std::strtol(argv[++i], nullptr, 10), 1L, 100000L));
    } else if (i + 1 < argc && flag == "--json") {
      options.json = json_file(argv[++i], argv[0]);
    } else {
      std::cerr << "usage: " << argv[0] << " [--rounds N] [--json FILE or FOLDER]\n";
      std::exit(2);
    }
  }
  return options;
}

// Seconds of one call for every row, `rounds` of them.
std::vector<std::vector<double>> measure(const std::vector<Row>& rows, int rounds) {
  std::vector<std::vector<double>> seconds(rows.size());
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937 random(1);
  for (int round = -1; round < rounds; ++round) {
    // A chip is slower after a row that heated it: no row shall always follow the same one.
    std::shuffle(order.begin(), order.end(), random);
    for (size_t i : order) {
      if (rows[i].prepare) rows[i].prepare();
      const double s = seconds_of(rows[i].run);
      if (round >= 0) seconds[i].push_back(s / static_cast<double>(rows[i].calls));
    }
  }
  return seconds;
}

double work_of(const Row& row) {
  return row.flops > 0 ? row.flops : row.bytes;
}

// Prints the line of row i and returns its record.
nlohmann::json report_row(const std::vector<Row>& rows, const std::vector<Timing>& timings,
                          size_t i) {
  const Row& row = rows[i];
  const Timing& timing = timings[i];
  const double rate = work_of(row) / timing.median * 1e-9;
  nlohmann::json record = {{"op", row.op},         {"shape", row.shape},
                           {"recipe", row.recipe}, {"median_s", timing.median},
                           {"p10_s", timing.p10},  {"p90_s", timing.p90}};
  char rate_text[32] = "-";
  char of_ceiling[32] = "-";
  char against[32] = "-";
  if (work_of(row) > 0) {
    const bool products = row.flops > 0;
    std::snprintf(rate_text, sizeof rate_text, "%.1f %s", rate, products ? "GFLOP/s" : "GB/s");
    record[products ? "gflops" : "gbytes_per_s"] = rate;
  }
  if (row.ceiling >= 0) {
    const double top = work_of(rows[row.ceiling]) / timings[row.ceiling].median * 1e-9;
    std::snprintf(of_ceiling, sizeof of_ceiling, "%.0f %%", 100 * rate / top);
    record["share_of_ceiling"] = rate / top;
  }
  if (row.baseline >= 0) {
    const double factor = timings[row.baseline].median / timing.median;
    std::snprintf(against, sizeof against, "%.2f", factor);
    record["x_baseline"] = factor;
    record["baseline"] = rows[row.baseline].op;
  }
  std::printf("| %s | %s | %s | %.4g (%.4g-%.4g) | %s | %s | %s |\n", row.op.c_str(),
              row.shape.c_str(), row.recipe.c_str(), timing.median * 1e3, timing.p10 * 1e3,
              timing.p90 * 1e3, rate_text, of_ceiling, against);
  return record;
}

}  // namespace

int run_table(const std::string& title, const std::vector<Row>& rows, int argc, char** argv) {
  const Options options = parse(argc, argv);
  std::vector<Timing> timings;
  timings.reserve(rows.size());
  for (std::vector<double>& seconds : measure(rows, options.rounds))
    timings.push_back(timing_of(std::move(seconds)));

  std::printf("%s: %s, %d threads, LibTorch %s, %d rounds\n\n", title.c_str(), cpu_name().c_str(),
              at::get_num_threads(), TORCH_VERSION, options.rounds);
  std::printf("| op | shape | recipe | median ms (p10-p90) | rate | of ceiling | x baseline |\n");
  std::printf("|---|---|---|---|---|---|---|\n");
  nlohmann::json records = nlohmann::json::array();
  for (size_t i = 0; i < rows.size(); ++i) records.push_back(report_row(rows, timings, i));
  if (!options.json.empty()) {
    const nlohmann::json report = {{"title", title},
                                   {"cpu", cpu_name()},
                                   {"threads", at::get_num_threads()},
                                   {"libtorch", TORCH_VERSION},
                                   {"moe8", version()},
                                   {"commit", output_of("git rev-parse --short HEAD 2>/dev/null")},
                                   {"rounds", options.rounds},
                                   {"rows", records}};
    std::ofstream file(options.json);
    file << report.dump(1) << "\n";
    if (!file.flush()) {
      std::cerr << "cannot write " << options.json << "\n";
      return 1;
    }
  }
  return 0;
}

bool is_listed(const char* variable, const std::string& name) {
  const char* names = std::getenv(variable);
  if (!names) return true;
  std::istringstream list(names);
  for (std::string listed; std::getline(list, listed, ',');) {
    if (listed == name) return true;
  }
  return false;
}

}  // namespace moe8::bench
