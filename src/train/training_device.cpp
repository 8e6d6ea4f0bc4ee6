// SPDX-License-Identifier: BSD-3-Clause
#include "train/training_device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/SDPBackend.h>
#include <ATen/ops/ones.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>

#include "base/check.h"
#include "base/plain_text.h"
#include "device/cuda_backend.h"
#include "device/cuda_device.h"
#include "device/implementation.h"
#include "moe8/parallel.h"
#include "train/process_memory.h"

namespace moe8 {
namespace {

constexpr const char* kCpuGenerator = "generator.cpu";  // in a checkpoint
constexpr const char* kCudaGenerator = "generator.cuda";

// Why LibTorch cannot compute on a GPU that is there: one too old, or newer than this LibTorch.
std::optional<std::string> failure_on(const c10::Device& gpu) {
  try {
    const at::Tensor two = at::ones({1}, at::TensorOptions(gpu).dtype(at::kBFloat16)).mul(2);
    if (two.item<float>() == 2) return std::nullopt;
    return concat("LibTorch computes wrongly on ", gpu);
  } catch (const std::exception& error) {
    return concat("LibTorch cannot compute on ", gpu, ": ", message_of(error));
  }
}

// The first GPU; of several processes of this machine each has its own, as Parallel chooses them.
c10::Device own_gpu() {
  const Launch launch = launch_from_environment();
  if (launch.world == 1) return {c10::kCUDA, 0};
  const int64_t count = static_cast<uint8_t>(c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount());
  return {c10::kCUDA, static_cast<c10::DeviceIndex>(count > 1 ? launch.local_rank % count : 0)};
}

// Why no run can train on this process's GPU.
std::optional<std::string> refusal_of_gpu() {
  if (std::optional<std::string> failure = load_cuda_backend()) return failure;
  static const std::optional<std::string> failure = failure_on(own_gpu());
  return failure;
}

constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);

c10::CachingDeviceAllocator::DeviceStats stats_of(const c10::Device& device) {
  return c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
}

c10::CachingDeviceAllocator::Stat bytes_on(const c10::Device& device) {
  return stats_of(device).allocated_bytes[kAll];
}

// The kernels of attention in LibTorch's order, but for cuDNN's.
std::vector<int64_t> cudnn_first(std::vector<int64_t> order) {
  constexpr auto kCuDNN = static_cast<int64_t>(at::SDPBackend::cudnn_attention);
  std::stable_partition(order.begin(), order.end(),
                        [](int64_t backend) { return backend == kCuDNN; });
  return order;
}

void restore(const PieceReader& files, const char* name, at::Generator generator) {
  generator.set_state(read_like(files, name, generator.get_state()));
}

}  // namespace

c10::Device training_device(TrainingDevice setting) {
  const c10::Device cpu(c10::kCPU);
  if (setting == TrainingDevice::CPU) return cpu;
  // cuBLAS asks for this before it promises equal bits; too late once it has begun.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*replace=*/0);
  const std::optional<std::string> refusal = refusal_of_gpu();
  MOE8_CHECK(!refusal || setting == TrainingDevice::AUTO, "train", "training.device",
             "expected a GPU that moe8 can train on, got none: ", *refusal,
             ". `moe8 doctor` shows what there is; device = \"cpu\" trains without.");
  if (refusal) return cpu;
  const c10::Device gpu = own_gpu();
  at::globalContext().lazyInitDevice(gpu.type());
  return gpu;
}

std::string describe_device(const c10::Device& device) {
  const std::optional<std::string> refusal = kernels_refusal(device);
  const std::string by = refusal ? "quantizes by LibTorch's operations, as " + *refusal
                                 : "quantizes by moe8's kernels";
  return device.is_cpu() ? "cpu " + by : concat(device, " (", device_name(device), ") ", by);
}

DeviceSettings::DeviceSettings(const c10::Device& device, Deterministic deterministic)
    : changed_(device.is_cuda()) {
  at::Context& context = at::globalContext();
  algorithms_ = context.deterministicAlgorithms();
  warn_only_ = context.deterministicAlgorithmsWarnOnly();
  fill_ = context.deterministicFillUninitializedMemory();
  cudnn_attention_ = context.userEnabledCuDNNSDP();
  for (const at::SDPBackend backend : context.sDPPriorityOrder()) {
    attention_order_.push_back(static_cast<int64_t>(backend));
  }
  if (!changed_) return;
  const bool repeats = deterministic != Deterministic::OFF;
  // A warning would not stop Flash Attention.
  context.setDeterministicAlgorithms(repeats, /*warn_only=*/false);
  context.setDeterministicFillUninitializedMemory(false);  // a pass over every new tensor
  context.setSDPUseCuDNN(!repeats);  // its backward pass adds in no fixed order
  if (!repeats) context.setSDPPriorityOrder(cudnn_first(attention_order_));
}

DeviceSettings::~DeviceSettings() {
  if (!changed_) return;
  at::Context& context = at::globalContext();
  context.setDeterministicAlgorithms(algorithms_, warn_only_);
  context.setDeterministicFillUninitializedMemory(fill_);
  context.setSDPUseCuDNN(cudnn_attention_);
  context.setSDPPriorityOrder(attention_order_);
}

NamedTensors generator_states(const c10::Device& device) {
  NamedTensors states{{kCpuGenerator, at::detail::getDefaultCPUGenerator().get_state()}};
  if (device.is_cuda()) {
    states.emplace_back(kCudaGenerator, at::globalContext().defaultGenerator(device).get_state());
  }
  return states;
}

void restore_generators(const PieceReader& files, const c10::Device& device) {
  restore(files, kCpuGenerator, at::detail::getDefaultCPUGenerator());
  if (device.is_cuda() && files.contains(kCudaGenerator)) {
    restore(files, kCudaGenerator, at::globalContext().defaultGenerator(device));
  }
}

void restart_peak_memory(const c10::Device& device) {
  restart_peak_memory();
  if (device.is_cuda()) c10::getDeviceAllocator(device.type())->resetPeakStats(device.index());
}

int64_t memory_in_use(const c10::Device& device) {
  return device.is_cuda() ? bytes_on(device).current : resident_memory();
}

int64_t reserved_memory(const c10::Device& device) {
  return device.is_cuda() ? stats_of(device).reserved_bytes[kAll].current : 0;
}

int64_t peak_memory(const c10::Device& device) {
  return device.is_cuda() ? bytes_on(device).peak : peak_memory();
}

}  // namespace moe8
