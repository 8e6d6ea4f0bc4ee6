// SPDX-License-Identifier: BSD-3-Clause
#include "convert/model_names.h"

#include <c10/util/Type.h>

#include <algorithm>

#include "base/check.h"
#include "base/plain_text.h"

namespace moe8 {
namespace {

using torch::nn::Module;

// ---- owners -------------------------------------------------------------------
std::string dtype_of(const at::Tensor& tensor) {
  const std::string name = std::string(c10::getDtypeNames(tensor.scalar_type()).first);
  return tensor.layout() == at::kStrided ? name : concat(name, " with layout ", tensor.layout());
}

// "Conv1d" of torch::nn::Conv1dImpl.
template <typename Impl>
std::string type_name() {
  std::string name = c10::demangle_type<Impl>();
  name = name.substr(name.rfind(':') + 1);
  return name.substr(0, name.rfind("Impl"));
}

// The name of the first of these types that the module is.
template <typename... Impls>
std::string first_type(const Module& module) {
  std::string name;
  static_cast<void>(((module.as<Impls>() && !(name = type_name<Impls>()).empty()) || ...));
  return name;
}

// LibTorch's own modules whose parameters are no weights of products that a conversion could
// change.
std::string type_without_products(const Module& module) {
  namespace nn = torch::nn;
  return first_type<nn::Conv1dImpl, nn::Conv2dImpl, nn::Conv3dImpl, nn::ConvTranspose1dImpl,
                    nn::ConvTranspose2dImpl, nn::ConvTranspose3dImpl, nn::BilinearImpl, nn::RNNImpl,
                    nn::LSTMImpl, nn::GRUImpl, nn::RNNCellImpl, nn::LSTMCellImpl, nn::GRUCellImpl,
                    nn::LayerNormImpl, nn::GroupNormImpl, nn::BatchNorm1dImpl, nn::BatchNorm2dImpl,
                    nn::BatchNorm3dImpl, nn::InstanceNorm1dImpl, nn::InstanceNorm2dImpl,
                    nn::InstanceNorm3dImpl, nn::PReLUImpl>(module);
}

void set_owner(ParameterInfo& info, const Module& module) {
  if (module.as<torch::nn::LinearImpl>()) {
    info.owner = OwnerKind::LINEAR;
    info.has_known_use = true;
  } else if (module.as<torch::nn::EmbeddingImpl>() || module.as<torch::nn::EmbeddingBagImpl>()) {
    info.owner = OwnerKind::EMBEDDING;
  } else if (std::string type = type_without_products(module); !type.empty()) {
    info.owner = OwnerKind::WITHOUT_PRODUCTS;
    info.owner_type = std::move(type);
  }
}

// ---- the walk -----------------------------------------------------------------
std::string join_name(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

void collect(const Module& module, const std::string& fqn, std::vector<const Module*>& path,
             ModelNames& names) {
  MOE8_CHECK(std::find(path.begin(), path.end(), &module) == path.end(), "quantize_", "model",
             "expected a tree of modules, got '", fqn, "', which contains itself");
  path.push_back(&module);
  names.modules.emplace_back(fqn, &module);
  for (const auto& parameter : module.named_parameters(/*recurse=*/false)) {
    const at::Tensor& tensor = parameter.value();
    ParameterInfo info{.fqn = join_name(fqn, parameter.key()),
                       .shape = tensor.sizes().vec(),
                       .dtype = dtype_of(tensor)};
    set_owner(info, module);
    info.is_replaced = parameter.key() == "weight" && computes_with_another(module, tensor);
    names.parameters.push_back(std::move(info));
    names.tensors.push_back(tensor);
    names.owners.push_back(&module);
  }
  for (const auto& buffer : module.named_buffers(/*recurse=*/false)) {
    names.buffers.push_back(join_name(fqn, buffer.key()));
  }
  for (const auto& child : module.named_children()) {
    collect(*child.value(), join_name(fqn, child.key()), path, names);
  }
  path.pop_back();
}

}  // namespace

std::vector<std::string> ModelNames::module_names() const {
  std::vector<std::string> list;
  list.reserve(modules.size());
  for (const auto& [fqn, module] : modules) list.push_back(fqn);
  return list;
}

ModelNames names_of(const Module& model) {
  ModelNames names;
  std::vector<const Module*> path;
  collect(model, "", path, names);
  return names;
}

bool computes_with_another(const Module& module, const at::Tensor& parameter) {
  const auto* linear = module.as<torch::nn::LinearImpl>();
  return linear && !linear->weight.is_same(parameter);
}

}  // namespace moe8
