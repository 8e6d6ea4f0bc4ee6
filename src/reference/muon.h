// SPDX-License-Identifier: BSD-3-Clause
// What Muon does to elements before and after its products, written to be read: src/cuda/optim/muon.cu
// gives the same bits.
#pragma once

#include <cstdint>

#include "formats/float_type.h"
#include "kernels/muon.h"

namespace moe8::reference {

struct MuonDirections {
  MuonRule rule;
  const float* norm;  // [1], of all gradients; null: no clipping
  FloatType grad_type, momentum_type;
  const void* grad;
  void* momentum;       // updated, unless the norm is not finite
  BFloat16* direction;  // written; 0 where the norm is not finite
};

/// Elements [0, n).
void muon_directions(const MuonDirections& args, int64_t n);

struct MuonWeights {
  MuonScalars scalars;
  const float* norm;  // not finite: nothing changes; null: always a step
  FloatType weight_type;
  const BFloat16* direction;
  void* weight;    // updated
  BFloat16* copy;  // receives the new weight rounded to nearest; null: none
};

/// Elements [0, n).
void muon_weights(const MuonWeights& args, int64_t n);

}  // namespace moe8::reference
