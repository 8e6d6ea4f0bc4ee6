// SPDX-License-Identifier: BSD-3-Clause
// The memory of a training step as its last backward goes through the model: what forward kept goes,
// gradients come.
#pragma once

#include <vector>

namespace moe8 {

/// What the embedding, a layer, or the end of a model has of a step. Bytes.
struct PartMemory {
  double saved = 0;       // by forward, until backward is through this part
  double recomputed = 0;  // beside it while backward is there
  double passing = 0;     // temporary tensors, likewise
  double forms = 0;       // quantized weights when backward begins
  double kept_forms = 0;  // of them what outlives this part's backward
  double gradients = 0;   // at most, after this part's backward
  double earlier = 0;     // of them what earlier backwards of the step have left
  double travelling = 0;  // what its gradients take on their way to other ranks
};

struct StepMemory {
  double fixed = 0;                 // weights, masters, moments
  double before = 0;                // the first step, when weights are not codes yet; 0: no more
  double most_travelling = 0;       // at once, of all parts
  std::vector<PartMemory> parts{};  // in the order of forward

  double begin_of_backward() const;
  double end_of_backward() const;
  /// Of all moments between them.
  double peak() const;
};

}  // namespace moe8
