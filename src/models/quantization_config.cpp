// SPDX-License-Identifier: BSD-3-Clause
#include "models/quantization_config.h"

#include <algorithm>
#include <string_view>

#include "moe8/formats.h"

namespace moe8 {
namespace {

constexpr const char* kKey = "quantization_config";
constexpr const char* kCompressedTensors = "compressed-tensors";

// What one of compressed-tensors' groups says of its weights, or of the inputs of its products.
OrderedJson arguments(std::string_view format, const char* strategy, bool dynamic) {
  OrderedJson json{{"num_bits", 8},        {"type", "float"},    {"symmetric", true},
                   {"strategy", strategy}, {"dynamic", dynamic}, {"group_size", nullptr}};
  if (format == kMxfp8Quantized) {
    json["strategy"] = "group";
    json["group_size"] = kMxBlock;
    json["scale_dtype"] = "torch.uint8";
  }
  return json;
}

bool is_fp8_in_blocks(const OrderedJson& config) {
  const bool has_size = config.is_object() && config.contains("weight_block_size");
  return text_at(config, "quant_method") == "fp8" && has_size &&
         config["weight_block_size"] == OrderedJson({128, 128});
}

// Keys that decide what the codes mean must be those of `wanted`.
bool mean_the_same(const OrderedJson& weights, const OrderedJson& wanted) {
  if (!weights.is_object()) return false;
  for (const char* key : {"num_bits", "type", "symmetric", "strategy", "group_size"}) {
    const auto found = weights.find(key);
    static const OrderedJson kNone;
    const OrderedJson& value = found == weights.end() ? kNone : *found;  // may be of any depth
    // A whole row is a group of -1 as well.
    const bool is_row = std::string_view(key) == "group_size" && value == -1;
    if (value != wanted[key] && !(is_row && wanted[key].is_null())) return false;
  }
  return true;
}

bool is_compressed_tensors(const OrderedJson& config) {
  if (text_at(config, "quant_method") != kCompressedTensors) return false;
  const std::string format = text_at(config, "format");
  if (format != kFloatQuantized && format != kMxfp8Quantized) return false;
  const bool has_cache = config.contains("kv_cache_scheme") && !config["kv_cache_scheme"].is_null();
  const auto groups = config.find("config_groups");
  if (has_cache || groups == config.end() || !groups->is_object()) return false;
  return std::ranges::all_of(*groups, [&](const OrderedJson& group) {
    const auto weights = group.is_object() ? group.find("weights") : group.end();
    return weights != group.end() && mean_the_same(*weights, arguments(format, "channel", false));
  });
}

}  // namespace

void read_quantization(ConfigReader& json) {
  const OrderedJson* const config = json.find(kKey);
  if (!config || is_fp8_in_blocks(*config) || is_compressed_tensors(*config)) return;
  json.refuse(
      kKey,
      concat("quant_method fp8 with blocks of 128 x 128, or compressed-tensors with format ",
             kFloatQuantized, " by channel or ", kMxfp8Quantized),
      dumped(*config));
}

void read_mxfp4_quantization(ConfigReader& json) {
  const OrderedJson* const config = json.find(kKey);
  if (config && text_at(*config, "quant_method") != "mxfp4") {
    json.refuse(kKey, "quant_method mxfp4", dumped(*config));
  }
}

OrderedJson quantization_config(const char* format) {
  const OrderedJson group{{"targets", {"Linear"}},
                          {"weights", arguments(format, "channel", false)},
                          {"input_activations", arguments(format, "token", true)},
                          {"output_activations", nullptr},
                          {"format", format}};
  return {{"quant_method", kCompressedTensors},     {"format", format},
          {"quantization_status", "compressed"},    {"config_groups", {{"group_0", group}}},
          {"ignore", {"lm_head", "re:.*\\.gate$"}}, {"kv_cache_scheme", nullptr}};
}

}  // namespace moe8
