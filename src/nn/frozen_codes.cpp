// SPDX-License-Identifier: BSD-3-Clause
#include "nn/frozen_codes.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>
#include <variant>

#include "autograd/training_formats.h"
#include "base/check.h"
#include "base/overloaded.h"
#include "moe8/float8.h"
#include "moe8/mx.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

constexpr const char* kCodes = "_codes";
constexpr const char* kScales = "_scales";

OperandFormat format_along_rows(const Config& config) {
  return training_formats(config).out.right;
}

struct CodesAndScales {
  at::Tensor codes, scales;
};

CodesAndScales quantized(const at::Tensor& weight, const OperandFormat& format) {
  if (const auto* mx = std::get_if<MxFormat>(&format)) {
    const MXTensor made = quantize_mx(weight, mx->elem, mx->mode);
    return {made.data, made.scale};
  }
  const auto& float8 = std::get<Float8Format>(format);
  const Float8Tensor made = quantize_float8(weight, Float8Granularity::axiswise(-1), float8.elem,
                                            float8.round_scales_to_power_of_2);
  return {made.data, made.scale};
}

// Sizes without memory. LibTorch asks storage for its address in whatever reads or writes a tensor.
at::Tensor placeholder(const at::Tensor& parameter, const std::string& name) {
  const at::Tensor one = at::zeros({1}, parameter.options().requires_grad(false));
  one.storage().unsafeGetStorageImpl()->release_data_and_set_meta_custom_data_ptr_error_msg_(
      concat("[lora] ", name,
             ": expected nobody to read or write a weight that is kept as codes. "
             "They are the buffers ",
             name, kCodes, " and ", name, kScales,
             "; base = \"weights\" in [lora] keeps weights as they are."));
  return one.expand(parameter.sizes());
}

}  // namespace

bool can_be_codes(const Config& config) {
  return std::visit(
      Overloaded{[](const HighPrecision&) { return false; }, [](const MxFormat&) { return true; },
                 [](const Float8Format& format) {
                   return format.granularity == ScalingGranularity::AXISWISE &&
                          format.round_scales_to_power_of_2;
                 }},
      format_along_rows(config));
}

int64_t keep_as_codes(torch::nn::Module& model) {
  const at::NoGradGuard no_grad;
  int64_t count = 0;
  for (const auto& [path, module] : model.named_modules().pairs()) {
    for (const auto& parameter : module->named_parameters(/*recurse=*/false)) {
      at::Tensor weight = parameter.value();
      const std::optional<Config> config = config_of(weight);
      if (weight.requires_grad() || is_kept_as_codes(weight)) continue;
      if (!config || !can_be_codes(*config)) continue;
      auto [codes, scales] = quantized(weight.detach(), format_along_rows(*config));
      module->register_buffer(parameter.key() + kCodes, std::move(codes));
      module->register_buffer(parameter.key() + kScales, std::move(scales));
      weight.set_data(
          placeholder(weight, path.empty() ? parameter.key() : concat(path, '.', parameter.key())));
      ++count;
    }
  }
  return count;
}

bool is_kept_as_codes(const at::Tensor& parameter) {
  return parameter.dim() >= 2 && parameter.numel() > 1 &&
         std::ranges::all_of(parameter.strides(), [](int64_t stride) { return stride == 0; });
}

at::Tensor values_of_codes(const at::Tensor& parameter, const at::Tensor& codes,
                           const at::Tensor& scales) {
  const std::optional<Config> config = config_of(parameter);
  MOE8_CHECK(config, "frozen_codes", "parameter",
             "expected a converted weight, got one that is not");
  const OperandFormat format = format_along_rows(*config);
  const at::ScalarType dtype = parameter.scalar_type();
  if (const auto* mx = std::get_if<MxFormat>(&format)) {
    return dequantize(MXTensor{.data = codes,
                               .scale = scales,
                               .elem = mx->elem,
                               .axis = parameter.dim() - 1,
                               .orig_dtype = dtype,
                               .shape = parameter.sizes().vec(),
                               .offs = std::nullopt});
  }
  const auto& float8 = std::get<Float8Format>(format);
  return dequantize(Float8Tensor{.data = codes,
                                 .scale = scales,
                                 .elem = float8.elem,
                                 .granularity = Float8Granularity::axiswise(-1),
                                 .round_scales_to_power_of_2 = float8.round_scales_to_power_of_2,
                                 .orig_dtype = dtype,
                                 .offs = std::nullopt});
}

at::Tensor weight_of(const torch::nn::Module& module, const at::Tensor& parameter,
                     const char* name) {
  if (!is_kept_as_codes(parameter)) return parameter;
  const at::NoGradGuard no_grad;
  const auto buffers = module.named_buffers(/*recurse=*/false);
  const at::Tensor made = values_of_codes(parameter, buffers[std::string(name) + kCodes],
                                          buffers[std::string(name) + kScales]);
  tag_copy(parameter, made);
  return made;
}

}  // namespace moe8
