// SPDX-License-Identifier: BSD-3-Clause
// moe8 doctor: what this machine and build have, and what moe8 would use and why.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/headeronly/version.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/nearest.h"
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
#include "text_table.h"

namespace moe8 {
namespace {

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
    return c10::str(used, ", because MOE8_CPU_ISA asks for at most ", std::getenv("MOE8_CPU_ISA"));
  }
  std::vector<std::string> missing;
  for (const cpu::Isa isa : {cpu::Isa::AVX512, cpu::Isa::AVX2}) {
    if (!cpu::has_isa(isa)) missing.emplace_back(cpu::to_string(isa));
  }
  return c10::str(used, missing.empty() ? ", the widest there is"
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
    line += c10::str("; ", device, " ", device_name(device), ": ",
                     refusal             ? "LibTorch's operations, as " + *refusal
                     : is_hopper(device) ? "every kernel (sm_90a)"
                                         : "the quantizers; MX products by at::_scaled_grouped_mm, "
                                           "when a first try of it succeeds");
  }
  return line;
}

void print(const char* title, const Rows& rows) {
  std::cout << title << '\n' << text_table(rows, "  ") << '\n';
}

void print_speeds(const Speeds& speeds) {
  Rows rows;
  for (const Speed& speed : speeds.rows) {
    char value[32];
    std::snprintf(value, sizeof value, "%7.1f", speed.value);
    rows.push_back({speed.what, value, speed.unit});
  }
  std::cout << text_table(rows, "  ");
  const bool bf16_faster = speeds.bf16_gflops > speeds.float32_gflops;
  if (bf16_faster != cpu_prefers_bf16()) {
    const char* faster = bf16_faster ? "bf16" : "float32";
    std::cout << "  note: " << faster << " products measured faster; MOE8_CPU_GEMM=" << faster
              << " would use them\n";
  }
}

// Ill machines are what a doctor is for: what cannot be measured is said, and the rest follows.
void print_measured() {
  std::cout << "measured (about two seconds)" << std::endl;
  try {
    print_speeds(measure_speeds());
  } catch (const std::exception& error) {
    std::cout << "  failed: " << message_of(error) << '\n';
  }
  std::cout << '\n';
}

void run() {
  print("versions", {{"moe8", version()},
                     {"LibTorch", c10::str(TORCH_VERSION)},
                     {"compiler", compiler()},
                     {"backends", backends_line()}});
  const std::vector<std::string> features = cpu_features();
  print("machine", {{"CPU", cpu_model()},
                    {"features", features.empty() ? "none that moe8 knows" : join(features, " ")},
                    {"memory", memory_line()},
                    {"GPU", gpu_line()}});
  print("what moe8 uses", {{"quantizers", kernels_line()},
                           {"products", products_line()},
                           {"LibTorch kernels", at::get_cpu_capability()},
                           {"threads", std::to_string(at::get_num_threads())}});
  print_measured();
  Rows environment;
  for (const std::string& line : environment_lines()) environment.push_back({line});
  if (environment.empty()) environment.push_back({"nothing is set"});
  std::cout << "environment\n" << text_table(environment, "  ");
}

}  // namespace

void add_doctor_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("doctor", "Show what this machine has and what moe8 would use and why.");
  command->footer(examples("moe8 doctor\nMOE8_CPU_ISA=avx2 moe8 doctor"));
  command->callback(run);
}

}  // namespace moe8
