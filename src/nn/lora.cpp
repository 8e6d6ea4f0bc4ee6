// SPDX-License-Identifier: BSD-3-Clause
// Making adapters, adding them to weights, and the products of those of Linears. Those of experts are in
// src/experts/unfused.cpp.
#include "moe8/lora.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>

#include <cmath>

#include "base/check.h"
#include "moe8/transformer.h"
#include "nn/init.h"
#include "nn/lora.h"
#include "nn/lora_names.h"

namespace moe8 {
namespace {

constexpr const char* kLora = "lora";
constexpr const char* kLoraScale = "lora_scale";

// ---- adding them --------------------------------------------------------------
// On the device and in the dtype of the weight.
// @param part  which of the equal parts, along the first dimension, of the whole weight it is
ExpertAdapter new_adapter(const at::Tensor& weight, int64_t rank, at::Generator& generator,
                          int64_t part = 0) {
  const LoraShape shape = lora_shape(weight.sizes().vec(), rank);
  const at::TensorOptions options = weight.options().requires_grad(false);
  at::Tensor a = at::empty(shape.a, options.device(at::kCPU));
  const double in = static_cast<double>(weight.size(-1));
  const double std = 1 / std::sqrt(3 * in);  // as wide as U(-1 / sqrt(in), 1 / sqrt(in))
  trunc_normal_(a, generator, std, part * a.numel());
  return {a.to(weight.device()), at::zeros(shape.b, options)};
}

void add_to_linear(torch::nn::LinearImpl& linear, const LoraOptions& options,
                   at::Generator& generator) {
  const ExpertAdapter made = new_adapter(linear.weight, options.rank, generator);
  linear.register_parameter(kLoraA, made.a);
  linear.register_parameter(kLoraB, made.b);
  const double scale = options.alpha / static_cast<double>(options.rank);
  linear.register_buffer(kLoraScale,
                         at::full({}, scale, at::dtype(at::kFloat).device(linear.weight.device())));
}

void add_to_experts(ExpertsImpl& experts, const std::string& which, const LoraOptions& options,
                    at::Generator& generator) {
  const bool is_first = which == "w1", is_second = which == "w2";
  const at::Tensor& weight = is_first ? experts.w1 : is_second ? experts.w2 : experts.w3;
  ExpertAdapter& adapter = is_first ? experts.lora1 : is_second ? experts.lora2 : experts.lora3;
  adapter = new_adapter(weight, options.rank, generator, experts.group().rank());
  adapter.a = experts.register_parameter(which + "_" + kLoraA, adapter.a);
  adapter.b = experts.register_parameter(which + "_" + kLoraB, adapter.b);
  experts.lora_scale = options.alpha / static_cast<double>(options.rank);
}

}  // namespace

void add_lora(TransformerImpl& model, const LoraOptions& options, uint64_t seed) {
  const std::vector<ParameterShape> weights = lora_targets(model.config(), options);
  MOE8_CHECK(model.tensor_group().size() == 1, kLora, "model",
             "expected dense weights that each rank has whole, got parts on ",
             model.tensor_group().size(), " ranks");
  for (const auto& parameter : model.named_parameters()) {
    MOE8_CHECK(parameter.key().find(kLoraA) == std::string::npos, kLora, "model",
               "expected none with adapters, got ", parameter.key());
    parameter.value().requires_grad_(false);
  }
  const torch::NoGradGuard no_grad;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto modules = model.named_modules();
  for (const ParameterShape& weight : weights) {
    const size_t dot = weight.name.rfind('.');
    const std::shared_ptr<torch::nn::Module> owner = modules[weight.name.substr(0, dot)];
    if (auto* experts = owner->as<ExpertsImpl>()) {
      add_to_experts(*experts, weight.name.substr(dot + 1), options, generator);
    } else {
      add_to_linear(*owner->as<torch::nn::LinearImpl>(), options, generator);
    }
  }
}

at::Tensor merged_lora(const std::string& name, const LoraOptions& options,
                       const std::function<bool(const std::string&)>& has,
                       const std::function<at::Tensor(const std::string&)>& tensor) {
  const at::Tensor weight = tensor(name);
  const std::string begin = lora_beginning(name);
  if (begin.empty() || !has(begin + kLoraA)) return weight;
  const at::NoGradGuard no_grad;
  const auto read = [&](const char* part) { return tensor(begin + part).to(at::kFloat); };
  const double scale = options.alpha / static_cast<double>(options.rank);
  const at::Tensor low = at::matmul(read(kLoraB), read(kLoraA)).mul_(scale);
  return low.add_(weight.to(at::kFloat)).to(weight.scalar_type());
}

torch::Tensor with_lora(const torch::Tensor& out, const torch::Tensor& x,
                        const torch::nn::Linear& module) {
  const auto parameters = module->named_parameters(/*recurse=*/false);
  const torch::Tensor* const a = parameters.find(kLoraA);
  if (!a) return out;
  const torch::Tensor scale = *module->named_buffers(/*recurse=*/false).find(kLoraScale);
  return out + at::linear(at::linear(x, *a), parameters[kLoraB]) * scale;
}

}  // namespace moe8
