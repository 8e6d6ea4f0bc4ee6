// SPDX-License-Identifier: BSD-3-Clause
// moe8 doctor: what this machine and build have, and what moe8 would use and why.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/headeronly/version.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"
#include "cli.h"
#include "commands.h"
#include "cpu/isa.h"
#include "device/cuda_backend.h"
#include "device/cuda_device.h"
#include "device/implementation.h"
#include "doctor/machine.h"
#include "doctor/speed.h"
#include "gemm/torch_gemm.h"
#include "moe8/version.h"

namespace moe8 {
namespace {

using Json = nlohmann::ordered_json;
using Rows = std::vector<std::vector<std::string>>;

bool is_set_to(const char* variable, std::initializer_list<std::string_view> values) {
  const char* value = std::getenv(variable);
  return value && std::find(values.begin(), values.end(), value) != values.end();
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

std::string kernels_line() {
  if (!kernels_wanted())
    return "LibTorch's operations, because MOE8_KERNELS=off takes the kernels away";
  const std::string_view used = cpu::to_string(cpu::best_isa());
  if (is_set_to("MOE8_CPU_ISA", {"portable", "avx2"})) {
    return concat(used, ", because MOE8_CPU_ISA asks for at most ", std::getenv("MOE8_CPU_ISA"));
  }
  std::vector<std::string> missing;
  for (const cpu::Isa isa : {cpu::Isa::AVX512, cpu::Isa::AVX2}) {
    if (!cpu::has_isa(isa)) missing.emplace_back(cpu::to_string(isa));
  }
  return concat(used, missing.empty() ? ", the widest there is"
                                      : ", because this CPU lacks " + join(missing, " and "));
}

std::string products_line() {
  const std::string used = cpu_prefers_bf16() ? "bf16" : "float32";
  if (is_set_to("MOE8_CPU_GEMM", {"bf16", "float32"})) {
    return used + ", because MOE8_CPU_GEMM says so";
  }
  return used + (cpu::has_bf16_products()
                     ? ", because this CPU multiplies bf16 (avx512_bf16)"
                     : ", because this CPU does not multiply bf16 (avx512_bf16)");
}

// What would run on each GPU, or why there is none.
std::string backends_line() {
  if (const std::optional<std::string> failure = load_cuda_backend()) {
    return "CPU only: " + *failure;
  }
  std::string line = "CPU and CUDA";
  for (size_t i = 0; i < at::getNumGPUs(); ++i) {
    const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(i));
    const std::optional<std::string> refusal = kernels_refusal(device);
    line += concat("; ", device, " ", device_name(device), ": ",
                   refusal             ? "LibTorch's operations, as " + *refusal
                   : is_hopper(device) ? "every kernel (sm_90a)"
                                       : "the quantizers; MX products by at::_scaled_grouped_mm, "
                                         "when a first try of it succeeds");
  }
  return line;
}

// A part of what a doctor finds: names and values.
struct Section {
  const char* title;
  Rows rows;
};

std::vector<Section> findings() {
  const std::vector<std::string> features = cpu_features();
  return {{"versions",
           {{"moe8", version()},
            {"LibTorch", concat(TORCH_VERSION)},
            {"compiler", compiler()},
            {"backends", backends_line()}}},
          {"machine",
           {{"CPU", cpu_model()},
            {"features", features.empty() ? "none that moe8 knows" : join(features, " ")},
            {"memory", memory_line()},
            {"GPU", gpu_line()}}},
          {"what moe8 uses",
           {{"quantizers", kernels_line()},
            {"products", products_line()},
            {"LibTorch kernels", at::get_cpu_capability()},
            {"threads", std::to_string(at::get_num_threads())}}}};
}

// What was measured, and what could not be: a doctor looks at ill machines as well.
struct Measured {
  Speeds speeds;
  std::vector<std::string> failures;
};

Measured measure() {
  Measured measured;
  const auto attempt = [&](const auto& measure_some) {
    try {
      measure_some();
    } catch (const std::exception& error) {
      measured.failures.emplace_back(message_of(error));
    }
  };
  attempt([&] { measured.speeds = measure_speeds(); });
  if (load_cuda_backend()) return measured;  // why not is said among the backends
  for (size_t i = 0; i < at::getNumGPUs(); ++i) {
    const at::Device gpu(at::kCUDA, static_cast<at::DeviceIndex>(i));
    attempt([&] {
      for (MeasuredSpeed& speed : measure_gpu(gpu))
        measured.speeds.rows.push_back(std::move(speed));
    });
  }
  return measured;
}

// Empty when moe8 multiplies as is fastest here.
std::string advice(const Speeds& speeds) {
  if (speeds.rows.empty()) return "";
  const bool bf16_faster = speeds.bf16_gflops > speeds.float32_gflops;
  if (bf16_faster == cpu_prefers_bf16()) return "";
  const std::string faster = bf16_faster ? "bf16" : "float32";
  return faster + " products measured faster; MOE8_CPU_GEMM=" + faster + " would use them";
}

// ---- for people -------------------------------------------------------------
void print_measured(const Measured& measured) {
  Rows rows;
  for (const MeasuredSpeed& speed : measured.speeds.rows) {
    rows.push_back({speed.what, formatted("%7.1f", speed.value), speed.unit});
  }
  std::cout << text_table(rows, table_style("  "));
  const std::string note = advice(measured.speeds);
  if (!note.empty()) std::cout << "  note: " << note << '\n';
  for (const std::string& failure : measured.failures) {
    std::cout << "  failed: " << failure << '\n';
  }
}

void print_for_people() {
  for (const Section& section : findings()) {
    std::cout << section.title << '\n' << text_table(section.rows, table_style("  ")) << '\n';
  }
  std::cout << "measured (a few seconds)" << std::endl;
  print_measured(measure());
  Rows environment;
  for (const std::string& line : environment_lines()) environment.push_back({line});
  if (environment.empty()) environment.push_back({"nothing is set"});
  std::cout << "\nenvironment\n" << text_table(environment, table_style("  "));
}

// ---- for programs -----------------------------------------------------------
void print_json() {
  Json json;
  for (const Section& section : findings()) {
    for (const auto& row : section.rows) json[section.title][row[0]] = row[1];
  }
  const Measured measured = measure();
  json["measured"] = Json::array();
  for (const MeasuredSpeed& speed : measured.speeds.rows) {
    json["measured"].push_back(
        {{"what", speed.what}, {"value", speed.value}, {"unit", speed.unit}});
  }
  json["failures"] = measured.failures;
  json["advice"] = advice(measured.speeds);
  json["environment"] = Json::object();
  for (const std::string& line : environment_lines()) {
    const size_t sign = line.find('=');
    json["environment"][line.substr(0, sign)] = line.substr(sign + 1);
  }
  // Values of the environment may hold any bytes.
  std::cout << json.dump(2, ' ', false, Json::error_handler_t::replace) << '\n';
}

}  // namespace

void add_doctor_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("doctor", "Show what this machine has and what moe8 would use and why.");
  const auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Print JSON instead of tables");
  command->footer(examples("moe8 doctor\nmoe8 doctor --json\nMOE8_CPU_ISA=avx2 moe8 doctor"));
  command->callback([json] { *json ? print_json() : print_for_people(); });
}

}  // namespace moe8
