// SPDX-License-Identifier: BSD-3-Clause
// metrics.jsonl, written and read.
#include "train/store/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/plain_text.h"
#include "formats/elem.h"
#include "moe8/config.h"
#include "numerics/bounds.h"

namespace moe8 {
namespace {

constexpr const char* kMetricsFile = "metrics";

// Three decimals say all that a load or a time can.
double rounded(double value) {
  return std::round(value * 1000) / 1000;
}

[[noreturn]] void fail_to_write(const std::string& path, int error) {
  fail(kMetricsFile, path,
       "expected a writable file, got: " + std::generic_category().message(error));
}

// Where the lines of the steps up to `last_step` end.
uint64_t end_of_step(const std::string& path, int64_t last_step) {
  std::ifstream in(path, std::ios::binary);
  uint64_t end = 0;
  int64_t steps = 0;
  for (std::string text; std::getline(in, text) && !in.eof(); end += text.size() + 1) {
    if (text.find('\0') != std::string::npos) break;  // to the parser it is the end of the line
    const auto line = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer()) break;
    const auto step = line["step"].get<int64_t>();
    if (step > last_step) break;
    if (line.contains("kind")) continue;
    if (step != steps + 1) break;
    steps = step;
  }
  MOE8_CHECK(steps == last_step, kMetricsFile, path, "expected the lines of steps 1 to ", last_step,
             ", as the checkpoint was made after them, got ", steps,
             ". Put the file back as it was.");
  return end;
}

// Calls visit(line) for every line of the file.
template <typename Visit>
void for_each_line(const std::string& path, Visit visit) {
  std::ifstream in(path);
  MOE8_CHECK(in.is_open(), kMetricsFile, "file", "expected a readable file, got '", path, "'");
  int64_t number = 0;
  for (std::string text; std::getline(in, text) && !in.eof();) {  // half a line is none yet
    ++number;
    check_no_nul(kMetricsFile, concat(path, ":", number), text);
    try {
      visit(nlohmann::json::parse(text));
    } catch (const nlohmann::json::exception& error) {
      fail(kMetricsFile, "file",
           concat("expected one step per line, got at ", path, ":", number, ": ", error.what()));
    }
  }
}

std::vector<LayerLoad> layers_from(const nlohmann::json& line) {
  std::vector<LayerLoad> layers;
  if (!line.contains("busiest")) return layers;
  const auto busiest = line.at("busiest").get<std::vector<double>>();
  const auto idle = line.at("idle").get<std::vector<int64_t>>();
  for (size_t i = 0; i < std::min(busiest.size(), idle.size()); ++i) {
    layers.push_back({busiest[i], idle[i]});
  }
  return layers;
}

// The parts of a step, and what they are called in the file.
constexpr std::pair<const char*, double PartTimes::*> kPartTimes[] = {
    {"data", &PartTimes::data},
    {"forward", &PartTimes::forward},
    {"backward", &PartTimes::backward},
    {"optimizer", &PartTimes::optimizer}};

void write_more(nlohmann::ordered_json& line, const StepMetrics& m) {
  if (m.aux_loss) line["aux_loss"] = *m.aux_loss;
  if (m.z_loss) line["z_loss"] = *m.z_loss;
  if (m.mfu) line["mfu"] = *m.mfu;
  if (m.ms) {
    for (const auto& [name, part] : kPartTimes) line["ms"][name] = rounded((*m.ms).*part);
  }
  if (m.gpu_memory) {
    line["gpu_memory"] = {{"peak_bytes", m.gpu_memory->peak},
                          {"reserved_bytes", m.gpu_memory->reserved}};
  }
}

void read_more(const nlohmann::json& line, StepMetrics& m) {
  if (line.contains("aux_loss")) m.aux_loss = line.at("aux_loss");
  if (line.contains("z_loss")) m.z_loss = line.at("z_loss");
  if (line.contains("mfu")) m.mfu = line.at("mfu");
  if (line.contains("ms")) {
    m.ms.emplace();
    for (const auto& [name, part] : kPartTimes) (*m.ms).*part = line.at("ms").at(name);
  }
  if (!line.contains("gpu_memory")) return;
  const auto& memory = line.at("gpu_memory");
  m.gpu_memory = {memory.at("peak_bytes"), memory.at("reserved_bytes")};
}

StepMetrics step_from(const nlohmann::json& line) {
  StepMetrics m;
  m.step = line.at("step");
  m.loss = line.at("loss");
  m.lr = line.at("lr");
  m.grad_norm = line.at("grad_norm");
  m.tokens_per_s = line.at("tokens_per_s");
  m.expert_load_min = line.at("expert_load_min");
  m.expert_load_max = line.at("expert_load_max");
  if (line.contains("validation_loss")) m.validation_loss = line.at("validation_loss");
  if (line.contains("tokens_per_cpu_s")) m.tokens_per_cpu_s = line.at("tokens_per_cpu_s");
  m.layers = layers_from(line);
  read_more(line, m);
  return m;
}

RunStart start_from(const nlohmann::json& line) {
  return {.step = line.at("step"),
          .date = line.value("date", ""),
          .program = line.value("program", ""),
          .command = line.value("command", ""),
          .machine = line.value("machine", ""),
          .device = line.value("device", ""),
          .threads = line.value("threads", int64_t{0})};
}

// JSON has no infinity and no NaN: they are null, and `otherwise` is which.
double number_or(const nlohmann::json& value, double otherwise) {
  return value.is_null() ? otherwise : value.get<double>();
}

// The element format that an operand's format names: "mx float8_e4m3fn rceil".
std::optional<ElemDtype> elem_in(std::string_view format) {
  for (size_t i = 0; i < kElemLayouts.size(); ++i) {
    const auto elem = static_cast<ElemDtype>(i);
    if (format.find(to_string(elem)) != std::string_view::npos) return elem;
  }
  return std::nullopt;
}

NumericsLine::Product product_from(const std::string& weight, const std::string& name,
                                   const nlohmann::json& json) {
  NumericsLine::Product product{.weight = weight, .product = name};
  product.sqnr_db = number_or(json.at("sqnr_db"), INFINITY);
  for (const auto& [key, operand] : json.items()) {
    if (!operand.is_object()) continue;
    product.elem = coarser(product.elem, elem_in(operand.value("format", "")));
    const double amax = number_or(operand.at("amax"), NAN);
    product.underflow = std::max(product.underflow, operand.at("underflow").get<double>());
    product.saturated = std::max(product.saturated, operand.at("saturated").get<double>());
    if (!(amax <= product.amax) && !std::isnan(product.amax)) product.amax = amax;
  }
  return product;
}

NumericsLine numerics_from(const nlohmann::json& json) {
  NumericsLine line;
  line.step = json.at("step");
  for (const auto& weight : json.at("weights")) {
    for (const auto& [name, product] : weight.at("products").items()) {
      line.products.push_back(product_from(weight.at("fqn"), name, product));
    }
  }
  for (const auto& module : json.at("experts")) {
    line.experts.push_back({module.at("fqn"), module.at("tokens")});
  }
  for (const auto& warning : json.at("warnings")) line.warnings.push_back(warning.at("text"));
  return line;
}

}  // namespace

MetricsFile::MetricsFile(const std::string& path, int64_t last_step) : path_(path) {
  const uint64_t end = last_step == 0 ? 0 : end_of_step(path, last_step);
  fd_ = Descriptor(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (fd_.get() < 0 || ::ftruncate(fd_.get(), static_cast<off_t>(end)) != 0) {
    fail_to_write(path, errno);
  }
}

void MetricsFile::sync() {
  if (::fsync(fd_.get()) != 0) fail_to_write(path_, errno);
}

void MetricsFile::write(const StepMetrics& m) {
  nlohmann::ordered_json line{{"step", m.step},
                              {"loss", m.loss},
                              {"lr", m.lr},
                              {"grad_norm", m.grad_norm},
                              {"tokens_per_s", m.tokens_per_s},
                              {"expert_load_min", m.expert_load_min},
                              {"expert_load_max", m.expert_load_max}};
  if (m.validation_loss) line["validation_loss"] = *m.validation_loss;
  if (m.tokens_per_cpu_s) line["tokens_per_cpu_s"] = *m.tokens_per_cpu_s;
  write_more(line, m);
  if (!m.layers.empty()) {
    auto busiest = nlohmann::ordered_json::array(), idle = nlohmann::ordered_json::array();
    for (const LayerLoad& layer : m.layers) {
      busiest.push_back(rounded(layer.busiest));
      idle.push_back(layer.idle);
    }
    line["busiest"] = std::move(busiest);
    line["idle"] = std::move(idle);
  }
  write(line.dump());
}

void MetricsFile::write(const RunStart& start) {
  const nlohmann::ordered_json line{{"kind", "start"},          {"step", start.step},
                                    {"date", start.date},       {"program", start.program},
                                    {"command", start.command}, {"machine", start.machine},
                                    {"device", start.device},   {"threads", start.threads}};
  // A command line may hold any bytes.
  write(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void MetricsFile::write_numerics(int64_t step, std::string_view report) {
  write(concat(R"({"kind":"numerics","step":)", step, ",", report.substr(1)));
}

void MetricsFile::write(const std::string& line) {
  const std::string text = line + '\n';
  write_all(kMetricsFile, path_, fd_, text.data(), text.size());
}

std::vector<StepMetrics> read_metrics(const std::string& path) {
  std::vector<StepMetrics> all;
  for_each_line(path, [&](const nlohmann::json& line) {
    if (!line.contains("kind")) all.push_back(step_from(line));
  });
  return all;
}

std::vector<NumericsLine> read_numerics(const std::string& path) {
  return read_all_metrics(path).numerics;
}

MetricsRecord read_all_metrics(const std::string& path) {
  MetricsRecord all;
  for_each_line(path, [&](const nlohmann::json& line) {
    const std::string kind = line.value("kind", "step");
    if (kind == "step") all.steps.push_back(step_from(line));
    if (kind == "numerics") all.numerics.push_back(numerics_from(line));
    if (kind == "start") all.starts.push_back(start_from(line));
  });
  return all;
}

}  // namespace moe8
