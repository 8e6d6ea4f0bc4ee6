// SPDX-License-Identifier: BSD-3-Clause
// Where a run computes, and what of LibTorch has to be set there so that it repeats itself.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "train/config/run_config.h"
#include "train/store/named_tensors.h"

namespace moe8 {

/// The device that the setting stands for. Call it before the first tensor is made.
/// @throws c10::Error when CUDA was asked for and LibTorch cannot compute there; the message says
///         why.
c10::Device training_device(TrainingDevice setting);

/// "cuda:0 (NVIDIA H200) quantizes by moe8's kernels", or by LibTorch's operations and why.
std::string describe_device(const c10::Device& device);

/// While it lives, LibTorch is set as a run wants it on its device. On a GPU: deterministic
/// algorithms where there is a choice, so that a run repeats itself bit for bit as one on a CPU does
/// anyway, unless the setting is OFF; and which kernel attention takes, of those that read fewer
/// heads of K and V than of Q without copying them. Flash Attention is first, whose backward adds
/// in a fixed order when that is asked for; with OFF cuDNN's is, the fastest on Hopper.
class DeviceSettings {
 public:
  DeviceSettings(const c10::Device& device, Deterministic deterministic);
  ~DeviceSettings();
  DeviceSettings(const DeviceSettings&) = delete;
  DeviceSettings& operator=(const DeviceSettings&) = delete;

 private:
  bool changed_;
  bool algorithms_, warn_only_, fill_, cudnn_attention_;
  std::vector<int64_t> attention_order_;
};

/// The states of LibTorch's own random numbers, the CPU's and the device's. Nothing in the trainer
/// draws any so far, but a model's dropout would.
NamedTensors generator_states(const c10::Device& device);
/// Takes them over from a checkpoint. One of a run on another device is left as it is.
void restore_generators(const PieceReader& files, const c10::Device& device);

/// Restarts the measure of peak_memory(device).
void restart_peak_memory(const c10::Device& device);
/// Bytes held now, counted in the same way.
int64_t memory_in_use(const c10::Device& device);
/// Bytes that LibTorch has taken from a GPU and not given back, free ones among them; 0 of a CPU.
int64_t reserved_memory(const c10::Device& device);
/// The most memory held since, in bytes: of tensors on a GPU, or of the whole process on a CPU.
int64_t peak_memory(const c10::Device& device);

}  // namespace moe8
