// SPDX-License-Identifier: BSD-3-Clause
// A step of a small transformer, on one process or as a rank's part of one, for tests that compare.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <map>
#include <string>

#include "moe8/tensor_parallel.h"
#include "moe8/transformer.h"

namespace moe8::testing {

struct Step {
  double loss;  // the sum over the positions of this rank
  std::map<std::string, at::Tensor> grads;
};

/// @param tokens  [B, 17]: those of this rank or of all; of a tensor group's positions each has a part
inline Step step(Transformer& model, const at::Tensor& tokens) {
  model->zero_grad();
  const at::Tensor logits = model->forward(tokens.narrow(1, 0, 16)).to(at::kFloat);
  const at::Tensor targets = sequence_part(model->tensor_group(), tokens.narrow(1, 1, 16));
  const at::Tensor loss = at::cross_entropy_loss(logits.reshape({-1, logits.size(2)}),
                                                 targets.reshape({-1}), {}, at::Reduction::Sum);
  loss.backward();
  Step made{loss.item<double>(), {}};
  for (const auto& parameter : model->named_parameters()) {
    made.grads[parameter.key()] = parameter.value().grad().clone();
  }
  return made;
}

inline double relative_error(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.to(at::kDouble), y = b.to(at::kDouble);
  return (x - y).norm().item<double>() / std::max(y.norm().item<double>(), 1e-30);
}

}  // namespace moe8::testing
