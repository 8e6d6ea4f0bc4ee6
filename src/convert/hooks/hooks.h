// SPDX-License-Identifier: BSD-3-Clause
// The families of hooks. Each function registers a family in a library of one dispatch key.
#pragma once

#include <torch/library.h>

namespace moe8::hooks {

/// Which of the layers of layers.h a library belongs to.
enum class LayerKind { AUTOGRAD, INFERENCE };

/// Matrix products (products.cpp).
void add_products(torch::Library& library, LayerKind layer);

/// Tensors that are made of converted weights by autograd's operations, and set_data (made.cpp).
void add_made(torch::Library& library, LayerKind layer);

/// Copies (made.cpp), at a backend's own key: seen in every mode.
void add_copies(torch::Library& library);

/// In-place writes that LibTorch does not count (writes.cpp), at autograd keys.
void add_writes(torch::Library& library);

}  // namespace moe8::hooks
