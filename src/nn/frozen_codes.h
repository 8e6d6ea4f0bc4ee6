// SPDX-License-Identifier: BSD-3-Clause
// Converted weights that nothing trains, kept as codes and scales alone: half of the memory of bf16. What
// products read is made of them for each call, so that it lasts no longer than the call, or than what
// autograd saves of it: activation checkpointing lets that go.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <string>

#include "moe8/config.h"

namespace moe8 {

/// Whether weights of this config can be kept so: those whose codes along their rows stand for bf16
/// numbers exactly (MX, and FP8 with a power-of-two scale per row). Quantizing these numbers again gives
/// them back, so that forward computes what it does with the weights themselves. Along columns, for the
/// gradient of the input, products quantize what the codes stand for.
bool can_be_codes(const Config& config);

/// Turns every such weight into buffers of its module, "NAME_codes" and "NAME_scales". The parameter
/// keeps its name, sizes, dtype and conversion, and no memory: whatever asks for its elements gets a
/// c10::Error that says where they are.
/// @return  how many weights
int64_t keep_as_codes(torch::nn::Module& model);

/// Of a parameter: whether keep_as_codes() took its memory.
bool is_kept_as_codes(const at::Tensor& parameter);

/// What its codes stand for, in its dtype; not a converted weight.
at::Tensor values_of_codes(const at::Tensor& parameter, const at::Tensor& codes,
                           const at::Tensor& scales);

/// The parameter `name` of the module, itself or made of its codes, converted as it is.
at::Tensor weight_of(const torch::nn::Module& module, const at::Tensor& parameter,
                     const char* name);

}  // namespace moe8
