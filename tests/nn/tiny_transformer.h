// SPDX-License-Identifier: BSD-3-Clause
// A model that is small but has all parts: a dense layer, experts, fewer heads for keys.
#pragma once

#include "moe8/transformer_config.h"

namespace moe8::testing {

inline TransformerConfig tiny_transformer() {
  TransformerConfig config;
  config.vocab_size = 40;
  config.dim = 32;
  config.n_layers = 3;
  config.n_heads = 4;
  config.n_kv_heads = 2;
  config.max_seq_len = 24;
  config.dense_hidden_dim = 64;
  config.hidden_dim = 32;
  config.n_experts = 4;
  return config;
}

}  // namespace moe8::testing
