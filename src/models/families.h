// SPDX-License-Identifier: BSD-3-Clause
// The families of published models: what their config.json means, and where each tensor of the
// transformer lies in their files. All of it is in families.cpp; weights.cpp moves the bytes.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/config_json.h"
#include "moe8/transformer_config.h"

namespace moe8 {

/// How a tensor of the files and the transformer's differ.
enum class TensorLayout {
  SAME,
  EXPERTS,       // a file's tensor per expert, {E} in its name: slices of ours
  TRANSPOSED,    // (E, in, out) there, (E, out, in) here
  EVEN_COLUMNS,  // TRANSPOSED, of which ours is every second row, from the first
  ODD_COLUMNS,   // ... from the second
  EVEN,          // every second element of the last axis, from the first
  ODD,           // ... from the second
};

/// A row of a family's table. {L} stands for the number of a layer, {E} for that of an expert.
struct TensorRow {
  std::string_view ours;
  std::string_view theirs;
  TensorLayout layout = TensorLayout::SAME;
};

struct Family {
  std::string_view model_type;    // in config.json: "qwen3_moe"
  std::string_view architecture;  // "Qwen3MoeForCausalLM"
  std::vector<std::span<const TensorRow>> tensors;
  void (*read)(ConfigReader&, TransformerConfig&);
  void (*write)(ConfigWriter&, TransformerConfig&);
};

const std::vector<Family>& families();
/// nullptr when there is none.
const Family* find_family(std::string_view model_type);

/// Where a tensor of the transformer lies in the files, {E} left as it is.
struct TensorPlace {
  std::string name;
  TensorLayout layout;
};

/// @param ours  "layers.3.moe.experts.w1"
/// @throws c10::Error when the family has no such tensor.
TensorPlace place_of(const Family& family, const std::string& ours);
std::string of_expert(const std::string& name, int64_t expert);

/// @throws c10::Error naming the key that is missing, wrong, or not computed here.
TransformerConfig read_config(const OrderedJson& json, const std::string& where);

/// The family that can say all of a config, and its config.json.
struct WrittenConfig {
  const Family* family;
  OrderedJson json;
};

/// @throws c10::Error naming what the nearest family cannot say.
WrittenConfig write_config(const TransformerConfig& config);

}  // namespace moe8
