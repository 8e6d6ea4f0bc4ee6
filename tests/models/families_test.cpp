// SPDX-License-Identifier: BSD-3-Clause
// config.json in both directions, options that are refused, and the parameters of published models.
#include "models/families.h"

#include <fstream>

#include "models/quantization_config.h"
#include "testing/compare.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;

OrderedJson json_of(const std::string& family) {
  std::ifstream file(std::string(MOE8_MODEL_CASES) + "/" + family + "/config.json");
  return OrderedJson::parse(file);
}

std::string refusal(const std::string& family, const std::string& key, const OrderedJson& value) {
  OrderedJson json = json_of(family);
  json[key] = value;
  return error_of([&] { read_config(json, "config.json"); });
}

TEST(Families, AConfigThatWasReadIsWrittenAlike) {
  for (const Family& family : families()) {
    const TransformerConfig config = read_config(json_of(std::string(family.model_type)), "");
    const WrittenConfig written = write_config(config);
    EXPECT_EQ(written.family->model_type, family.model_type);
    EXPECT_EQ(read_config(written.json, ""), config) << written.json.dump(2);
  }
}

TEST(Families, WhatIsNotComputedIsRefused) {
  EXPECT_THAT(refusal("qwen3_moe", "model_type", "llama"),
              HasSubstr("\"model_type\": expected one of qwen3_moe, olmoe, mixtral, gpt_oss, "
                        "deepseek_v3, got \"llama\""));
  EXPECT_THAT(refusal("qwen3_moe", "use_sliding_window", true),
              HasSubstr("\"use_sliding_window\": expected false, got true. moe8 does not compute"));
  EXPECT_THAT(refusal("qwen3_moe", "decoder_sparse_step", 2), HasSubstr("expected 1, got 2"));
  EXPECT_THAT(refusal("qwen3_moe", "mlp_only_layers", {1}), HasSubstr("expected the first layers"));
  EXPECT_THAT(refusal("qwen3_moe", "hidden_act", "gelu"), HasSubstr("expected \"silu\""));
  EXPECT_THAT(
      refusal("qwen3_moe", "an_invention", 3),
      HasSubstr("\"an_invention\": expected no key of this name, got 3. moe8 does not know"));
  EXPECT_THAT(refusal("qwen3_moe", "hidden_size", "wide"), HasSubstr("expected a whole number"));
  EXPECT_THAT(refusal("qwen3_moe", "hidden_size", nullptr),
              HasSubstr("expected a value, got none"));
  EXPECT_THAT(refusal("qwen3_moe", "rope_scaling", {{"rope_type", "yarn"}}),
              HasSubstr("\"rope_scaling\": expected none beside rope_parameters"));
  EXPECT_THAT(refusal("olmoe", "clip_qkv", 8.0), HasSubstr("expected null or none, got 8.0"));
  EXPECT_THAT(refusal("olmoe", "attention_dropout", 0.1), HasSubstr("expected 0.0, got 0.1"));
  EXPECT_THAT(refusal("mixtral", "router_jitter_noise", 0.01), HasSubstr("does not compute"));
  EXPECT_THAT(refusal("mixtral", "num_experts_per_tok", 9), HasSubstr("top_k"));
  EXPECT_THAT(refusal("gpt_oss", "layer_types", {"full_attention", "sliding_attention"}),
              HasSubstr("for every n-th layer"));
  EXPECT_THAT(refusal("gpt_oss", "quantization_config", {{"quant_method", "gptq"}}),
              HasSubstr("expected quant_method mxfp4"));
  EXPECT_THAT(refusal("deepseek_v3", "scoring_func", "softmax"), HasSubstr("expected \"sigmoid\""));
  EXPECT_THAT(refusal("deepseek_v3", "quantization_config",
                      {{"quant_method", "fp8"}, {"weight_block_size", {64, 64}}}),
              HasSubstr("blocks of 128 x 128"));
  OrderedJson quantized = quantization_config(kMxfp8Quantized);
  EXPECT_EQ(refusal("olmoe", "quantization_config", quantized), "(no error)");
  quantized["config_groups"]["group_0"]["weights"]["group_size"] = 16;
  EXPECT_THAT(refusal("olmoe", "quantization_config", quantized), HasSubstr("mxfp8-quantized"));
  quantized = quantization_config(kFloatQuantized);
  EXPECT_EQ(refusal("mixtral", "quantization_config", quantized), "(no error)");
  quantized["config_groups"]["group_0"]["weights"]["strategy"] = "tensor";
  EXPECT_THAT(refusal("mixtral", "quantization_config", quantized), HasSubstr("by channel"));
  quantized = quantization_config(kFloatQuantized);
  quantized["kv_cache_scheme"] = {{"num_bits", 8}};
  EXPECT_THAT(refusal("mixtral", "quantization_config", quantized), HasSubstr("by channel"));
  EXPECT_THAT(refusal("gpt_oss", "quantization_config", quantization_config(kFloatQuantized)),
              HasSubstr("expected quant_method mxfp4"));
  OrderedJson json = json_of("qwen3_moe");
  json["rope_parameters"] = {{"rope_type", "longrope"}};
  EXPECT_THAT(error_of([&] { read_config(json, "config.json"); }),
              HasSubstr("expected default, linear, yarn or llama3, got longrope"));
  json["rope_parameters"] = {{"rope_type", "yarn"}, {"factor", 2.0}, {"wavelength", 3}};
  EXPECT_THAT(error_of([&] { read_config(json, "config.json"); }), HasSubstr("\"wavelength\""));
}

TEST(Families, WhatNoFamilyHasIsNotWritten) {
  TransformerConfig config = read_config(json_of("qwen3_moe"), "");
  config.score_function = ScoreFunction::SIGMOID;
  EXPECT_THAT(error_of([&] { write_config(config); }),
              HasSubstr("Nearest is qwen3_moe, which has model.score_function = softmax, not "
                        "sigmoid"));
  EXPECT_THAT(error_of([&] { write_config(TransformerConfig()); }),
              HasSubstr("expected a model of one of the families"));
}

// ---- published models -----------------------------------------------------------
// What their config.json say, without what decides nothing.
constexpr const char* kQwen3 = R"({"model_type": "qwen3_moe", "attention_bias": false,
  "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
  "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
  "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": true,
  "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
  "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000.0,
  "sliding_window": null, "tie_word_embeddings": false, "use_sliding_window": false,
  "vocab_size": 151936})";
constexpr const char* kOlmoe = R"({"model_type": "olmoe", "attention_bias": false, "clip_qkv": null,
  "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 1024,
  "max_position_embeddings": 4096, "norm_topk_prob": false, "num_attention_heads": 16,
  "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_key_value_heads": 16,
  "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0, "tie_word_embeddings": false,
  "vocab_size": 50304})";
constexpr const char* kMixtral = R"({"model_type": "mixtral", "hidden_act": "silu",
  "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
  "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
  "num_key_value_heads": 8, "num_local_experts": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
  "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 32000})";
constexpr const char* kGptOss = R"({"model_type": "gpt_oss", "attention_bias": true,
  "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
  "initial_context_length": 4096, "intermediate_size": 2880, "max_position_embeddings": 131072,
  "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24,
  "num_key_value_heads": 8, "num_local_experts": 32, "quantization_config": {"quant_method": "mxfp4"},
  "rms_norm_eps": 1e-05, "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
  "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false},
  "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
  "tie_word_embeddings": false, "vocab_size": 201088})";
constexpr const char* kDeepseek = R"({"model_type": "deepseek_v3", "attention_bias": false,
  "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
  "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
  "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
  "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
  "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
  "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
  "qk_rope_head_dim": 64, "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
  "quant_method": "fp8", "weight_block_size": [128, 128]}, "rms_norm_eps": 1e-06,
  "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
  "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
  "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
  "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc", "v_head_dim": 128,
  "vocab_size": 129280})";

TransformerConfig published(const char* text) {
  return read_config(OrderedJson::parse(text), "config.json");
}

// DeepSeek-V3's number counts its balancing biases, which are no parameters here.
TEST(Families, PublishedModelsHaveTheirNumberOfParameters) {
  EXPECT_EQ(count_parameters(published(kQwen3)).total, 30'532'122'624);
  EXPECT_EQ(count_parameters(published(kOlmoe)).total, 6'919'161'856);
  EXPECT_EQ(count_parameters(published(kMixtral)).total, 46'702'792'704);
  EXPECT_EQ(count_parameters(published(kGptOss)).total, 20'914'757'184);
  EXPECT_EQ(count_parameters(published(kDeepseek)).total + int64_t{58} * 256, 671'026'419'200);
}

TEST(Families, PublishedConfigsAreUnderstood) {
  const TransformerConfig oss = published(kGptOss);
  EXPECT_EQ(oss.window_of(0), 128);
  EXPECT_EQ(oss.window_of(1), 0);
  EXPECT_NEAR(oss.rope_magnitude, 1.3465735902799727, 1e-12);
  EXPECT_FALSE(oss.rope_whole_pairs);
  const TransformerConfig deepseek = published(kDeepseek);
  EXPECT_EQ(deepseek.rope_magnitude, 1);
  EXPECT_NEAR(deepseek.attention_scale, 0.1352337788608801, 1e-12);
  EXPECT_EQ(deepseek.query_width(), 192);
  for (const char* text : {kQwen3, kOlmoe, kMixtral, kGptOss, kDeepseek}) {
    const TransformerConfig config = published(text);
    EXPECT_EQ(read_config(write_config(config).json, ""), config);
  }
}

}  // namespace
}  // namespace moe8
