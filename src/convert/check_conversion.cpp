// SPDX-License-Identifier: BSD-3-Clause
// check_conversion: what is known of the use of a model's converted weights.
#include <torch/torch.h>

#include <unordered_set>
#include <utility>

#include "convert/model_names.h"
#include "moe8/quantize_model.h"
#include "weights/tags.h"
#include "weights/usage.h"

namespace moe8 {

ConversionCheck check_conversion(const torch::nn::Module& model) {
  const ModelNames names = names_of(model);
  ConversionCheck check;
  std::unordered_set<const c10::TensorImpl*> seen;  // tied parameters: the first name counts
  for (size_t i = 0; i < names.tensors.size(); ++i) {
    const at::Tensor& tensor = names.tensors[i];
    if (!config_of(tensor) || !seen.insert(tensor.unsafeGetTensorImpl()).second) continue;
    WeightUse use = use_of(find_tag(tensor)->id());
    use.fqn = names.parameters[i].fqn;
    use.shape = names.parameters[i].shape;
    check.weights.push_back(std::move(use));
  }
  return check;
}

}  // namespace moe8
