// SPDX-License-Identifier: BSD-3-Clause
// Published families, one after the other: config.json, then tensors. To add one: a function that
// goes through its keys, a table of what differs from kCommon, a line in families().
#include "models/families.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "base/nearest.h"
#include "models/quantization_config.h"
#include "nn/model_settings.h"

namespace moe8 {
namespace {

// ---- what all families share ------------------------------------------------
constexpr std::array<TensorRow, 9> kCommon{{
    {"tok_embeddings.weight", "model.embed_tokens.weight"},
    {"norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
    {"layers.{L}.attention_norm.weight", "model.layers.{L}.input_layernorm.weight"},
    {"layers.{L}.ffn_norm.weight", "model.layers.{L}.post_attention_layernorm.weight"},
    {"layers.{L}.attention.wo.weight", "model.layers.{L}.self_attn.o_proj.weight"},
    {"layers.{L}.feed_forward.w1.weight", "model.layers.{L}.mlp.gate_proj.weight"},
    {"layers.{L}.feed_forward.w2.weight", "model.layers.{L}.mlp.down_proj.weight"},
    {"layers.{L}.feed_forward.w3.weight", "model.layers.{L}.mlp.up_proj.weight"},
}};

constexpr std::array<TensorRow, 9> kAttention{{
    {"layers.{L}.attention.wq.weight", "model.layers.{L}.self_attn.q_proj.weight"},
    {"layers.{L}.attention.wk.weight", "model.layers.{L}.self_attn.k_proj.weight"},
    {"layers.{L}.attention.wv.weight", "model.layers.{L}.self_attn.v_proj.weight"},
    {"layers.{L}.attention.wq.bias", "model.layers.{L}.self_attn.q_proj.bias"},
    {"layers.{L}.attention.wk.bias", "model.layers.{L}.self_attn.k_proj.bias"},
    {"layers.{L}.attention.wv.bias", "model.layers.{L}.self_attn.v_proj.bias"},
    {"layers.{L}.attention.wo.bias", "model.layers.{L}.self_attn.o_proj.bias"},
    {"layers.{L}.attention.q_norm.weight", "model.layers.{L}.self_attn.q_norm.weight"},
    {"layers.{L}.attention.k_norm.weight", "model.layers.{L}.self_attn.k_norm.weight"},
}};

constexpr std::array<TensorRow, 4> kExperts{{
    {"layers.{L}.moe.router.gate.weight", "model.layers.{L}.mlp.gate.weight"},
    {"layers.{L}.moe.experts.w1", "model.layers.{L}.mlp.experts.{E}.gate_proj.weight",
     TensorLayout::EXPERTS},
    {"layers.{L}.moe.experts.w2", "model.layers.{L}.mlp.experts.{E}.down_proj.weight",
     TensorLayout::EXPERTS},
    {"layers.{L}.moe.experts.w3", "model.layers.{L}.mlp.experts.{E}.up_proj.weight",
     TensorLayout::EXPERTS},
}};

template <typename Config>
void common(Config& json, TransformerConfig& c) {
  json.value("vocab_size", c.vocab_size);
  json.value("hidden_size", c.dim);
  json.value("num_hidden_layers", c.n_layers);
  json.value("num_attention_heads", c.n_heads);
  json.value("num_key_value_heads", c.n_kv_heads, c.n_heads);
  json.value("max_position_embeddings", c.max_seq_len);
  json.value("rms_norm_eps", c.norm_eps);
  json.value("tie_word_embeddings", c.tied_embeddings, false);
  json.only("hidden_act", "silu");
  json.only("attention_dropout", 0.0);
  json.ignore({"architectures", "model_type", "auto_map", "_name_or_path", "transformers_version",
               "torch_dtype", "dtype", "use_cache", "initializer_range", "bos_token_id",
               "eos_token_id", "pad_token_id", "pretraining_tp"});
  if constexpr (Config::kReads) {
    // Published models balance their experts by no bias; their auxiliary loss only where they say so.
    c.load_balance_coeff = 0;
    c.rotary_pairs = RotaryPairs::HALVES;
    bool wants_loss = false;
    double loss = 0;
    json.value("output_router_logits", wants_loss, false);
    json.value("router_aux_loss_coef", loss, 0.0);
    c.aux_loss_coeff = wants_loss ? loss : 0;
  } else {
    json.value("output_router_logits", c.aux_loss_coeff > 0);
    json.value("router_aux_loss_coef", c.aux_loss_coeff);
  }
}

// Quantized weights are dequantized when they are read.
template <typename Config>
void quantization(Config& json) {
  if constexpr (Config::kReads) read_quantization(json);
}

// ---- rotary positions -------------------------------------------------------
// YaRN's magnitude of a factor, and of magnitudes that DeepSeek's configs give as weights of it.
double yarn_magnitude(double factor, double weight = 1) {
  constexpr double kPerLog = 0.1;
  return factor <= 1 ? 1.0 : kPerLog * weight * std::log(factor) + 1;
}

double yarn_weight(double factor, double magnitude) {
  constexpr double kDigits = 1e12;
  const double weight = (magnitude - 1) / (yarn_magnitude(factor) - 1);
  return std::round(weight * kDigits) / kDigits;
}

double plain_attention_scale(const TransformerConfig& c) {
  return 1 / std::sqrt(static_cast<double>(c.query_width()));
}

void read_yarn(ConfigReader& rope, TransformerConfig& c) {
  c.rope_scaling = RopeScaling::YARN;
  rope.value("factor", c.rope_factor);
  rope.value("beta_fast", c.rope_fast_turns, 32.0);
  rope.value("beta_slow", c.rope_slow_turns, 1.0);
  rope.value("truncate", c.rope_whole_pairs, true);
  rope.value("original_max_position_embeddings", c.rope_original_len, c.max_seq_len);
  double weight = 0, weight_of_all = 0;
  rope.value("mscale", weight, 0.0);
  rope.value("mscale_all_dim", weight_of_all, 0.0);
  const double magnitude =
      weight != 0 && weight_of_all != 0
          ? yarn_magnitude(c.rope_factor, weight) / yarn_magnitude(c.rope_factor, weight_of_all)
          : yarn_magnitude(c.rope_factor);
  rope.value("attention_factor", c.rope_magnitude, magnitude);
  if (c.has_latent_attention() && weight_of_all != 0) {
    const double both = yarn_magnitude(c.rope_factor, weight_of_all);
    c.attention_scale = plain_attention_scale(c) * both * both;
  }
}

void read_llama3(ConfigReader& rope, TransformerConfig& c) {
  c.rope_scaling = RopeScaling::LLAMA3;
  rope.value("factor", c.rope_factor);
  rope.value("low_freq_factor", c.rope_slow_turns);
  rope.value("high_freq_factor", c.rope_fast_turns);
  rope.value("original_max_position_embeddings", c.rope_original_len, c.max_seq_len);
}

void read_rope_type(ConfigReader& rope, TransformerConfig& c) {
  const OrderedJson* type = rope.find("rope_type");
  const OrderedJson* const older = rope.find("type");
  if (!type) type = older;
  const std::string name = type && type->is_string() ? type->get<std::string>() : "default";
  rope.only("partial_rotary_factor", 1.0);
  if (name == "yarn") {
    read_yarn(rope, c);
  } else if (name == "llama3") {
    read_llama3(rope, c);
  } else if (name == "linear") {
    c.rope_scaling = RopeScaling::LINEAR;
    rope.value("factor", c.rope_factor);
  } else if (name != "default") {
    rope.refuse("rope_type", "default, linear, yarn or llama3", name,
                ". moe8 does not compute this option.");
  }
}

// "rope_parameters" since transformers 5, before that "rope_theta" and "rope_scaling".
void rope(ConfigReader& json, TransformerConfig& c, double default_theta) {
  const OrderedJson* scaling = json.find("rope_scaling");
  const OrderedJson* const parameters = json.find("rope_parameters");
  if (parameters && scaling) {
    json.refuse("rope_scaling", "none beside rope_parameters", dumped(*scaling));
  }
  if (parameters) scaling = parameters;
  json.value("rope_theta", c.rope_theta, default_theta);
  if (!scaling) return;
  if (!scaling->is_object()) json.refuse("rope_scaling", "an object", dumped(*scaling));
  ConfigReader inner(*scaling, json.where() + " \"rope_scaling\"");
  inner.value("rope_theta", c.rope_theta, double{c.rope_theta});
  read_rope_type(inner, c);
  inner.check_all_known();
}

OrderedJson written_yarn(const TransformerConfig& c) {
  OrderedJson rope{{"rope_type", "yarn"},
                   {"factor", c.rope_factor},
                   {"beta_fast", c.rope_fast_turns},
                   {"beta_slow", c.rope_slow_turns},
                   {"truncate", c.rope_whole_pairs},
                   {"original_max_position_embeddings", c.rope_original_len}};
  if (c.attention_scale > 0 && c.rope_factor > 1) {
    const double both = std::sqrt(c.attention_scale / plain_attention_scale(c));
    rope["mscale"] = yarn_weight(c.rope_factor, both * c.rope_magnitude);
    rope["mscale_all_dim"] = yarn_weight(c.rope_factor, both);
  } else if (c.rope_magnitude != yarn_magnitude(c.rope_factor)) {
    rope["attention_factor"] = c.rope_magnitude;
  }
  return rope;
}

void rope(ConfigWriter& json, TransformerConfig& c, double) {
  json.value("rope_theta", c.rope_theta);
  OrderedJson& scaling = json.json()["rope_scaling"];
  if (c.rope_scaling == RopeScaling::YARN) scaling = written_yarn(c);
  if (c.rope_scaling == RopeScaling::LINEAR) {
    scaling = {{"rope_type", "linear"}, {"factor", c.rope_factor}};
  }
  if (c.rope_scaling == RopeScaling::LLAMA3) {
    scaling = {{"rope_type", "llama3"},
               {"factor", c.rope_factor},
               {"low_freq_factor", c.rope_slow_turns},
               {"high_freq_factor", c.rope_fast_turns},
               {"original_max_position_embeddings", c.rope_original_len}};
  }
}

// A head's own width where files give one.
template <typename Config>
void head_dim(Config& json, TransformerConfig& c) {
  if constexpr (Config::kReads) {
    json.value("head_dim", c.head_dim, int64_t{0});
    if (c.head_dim * c.n_heads == c.dim) c.head_dim = 0;  // as a file that gives none
  } else {
    json.value("head_dim", c.head_width());
  }
}

// Softmax over all experts, without shared ones.
void softmax_router(TransformerConfig& c) {
  c.n_shared_experts = 0;
  c.score_function = ScoreFunction::SOFTMAX;
}

// Of layers without experts there are none.
void only_experts(TransformerConfig& c) {
  c.n_dense_layers = 0;
  softmax_router(c);
}

// ---- Qwen3-MoE --------------------------------------------------------------
// Layers without experts may be anywhere in it, by mlp_only_layers; here they are the first.
void read_qwen3_dense_layers(ConfigReader& json, TransformerConfig& c) {
  c.n_dense_layers = 0;
  const OrderedJson* const dense = json.find("mlp_only_layers");
  if (!dense) return;
  if (!dense->is_array()) json.refuse("mlp_only_layers", "a list of layers", dumped(*dense));
  std::vector<int64_t> layers;
  for (const OrderedJson& layer : *dense) {
    if (!layer.is_number_integer()) json.refuse("mlp_only_layers", "whole numbers", dumped(*dense));
    layers.push_back(layer.get<int64_t>());
  }
  std::ranges::sort(layers);
  for (const int64_t layer : layers) {
    if (layer != c.n_dense_layers++) {
      json.refuse("mlp_only_layers", "the first layers, 0 to some n", dumped(*dense),
                  ". moe8 does not compute others.");
    }
  }
}

template <typename Config>
void qwen3_moe(Config& json, TransformerConfig& c) {
  common(json, c);
  quantization(json);
  head_dim(json, c);
  rope(json, c, 10000.0);
  json.value("attention_bias", c.attention_bias, false);
  json.value("intermediate_size", c.dense_hidden_dim);
  json.value("moe_intermediate_size", c.hidden_dim);
  json.value("num_experts_per_tok", c.top_k);
  json.value("norm_topk_prob", c.route_norm, false);
  json.only("decoder_sparse_step", 1);
  json.only("use_sliding_window", false);
  json.ignore({"sliding_window", "max_window_layers"});  // without use_sliding_window nothing
  if constexpr (Config::kReads) {
    // transformers 5 calls it num_local_experts
    json.find("num_local_experts") ? json.value("num_local_experts", c.n_experts)
                                   : json.value("num_experts", c.n_experts);
    json.ignore({"num_experts"});
    read_qwen3_dense_layers(json, c);
    softmax_router(c);
    c.qk_norm = QkNorm::HEAD;
  } else {
    json.value("num_experts", c.n_experts);
    std::vector<int64_t> dense;
    while (static_cast<int64_t>(dense.size()) < c.n_dense_layers) {
      dense.push_back(static_cast<int64_t>(dense.size()));
    }
    json.value("mlp_only_layers", dense);
  }
}

// ---- OLMoE ------------------------------------------------------------------
template <typename Config>
void olmoe(Config& json, TransformerConfig& c) {
  common(json, c);
  quantization(json);
  rope(json, c, 10000.0);
  json.value("attention_bias", c.attention_bias, false);
  json.value("intermediate_size", c.hidden_dim);
  json.value("num_experts", c.n_experts);
  json.value("num_experts_per_tok", c.top_k);
  json.value("norm_topk_prob", c.route_norm, false);
  json.nothing("clip_qkv");
  if constexpr (Config::kReads) {
    only_experts(c);
    c.qk_norm = QkNorm::WIDTH;
  }
}

// ---- Mixtral ----------------------------------------------------------------
constexpr std::array<TensorRow, 4> kMixtralExperts{{
    {"layers.{L}.moe.router.gate.weight", "model.layers.{L}.block_sparse_moe.gate.weight"},
    {"layers.{L}.moe.experts.w1", "model.layers.{L}.block_sparse_moe.experts.{E}.w1.weight",
     TensorLayout::EXPERTS},
    {"layers.{L}.moe.experts.w2", "model.layers.{L}.block_sparse_moe.experts.{E}.w2.weight",
     TensorLayout::EXPERTS},
    {"layers.{L}.moe.experts.w3", "model.layers.{L}.block_sparse_moe.experts.{E}.w3.weight",
     TensorLayout::EXPERTS},
}};

template <typename Config>
void mixtral(Config& json, TransformerConfig& c) {
  common(json, c);
  quantization(json);
  head_dim(json, c);
  rope(json, c, 1000000.0);
  json.value("intermediate_size", c.hidden_dim);
  json.value("num_local_experts", c.n_experts);
  json.value("num_experts_per_tok", c.top_k);
  json.only("router_jitter_noise", 0.0);
  if constexpr (Config::kReads) {
    json.value("sliding_window", c.sliding_window, int64_t{0});
    only_experts(c);
    c.route_norm = true;
  } else if (c.sliding_window > 0) {
    json.value("sliding_window", c.sliding_window);
  }
}

// ---- gpt-oss ----------------------------------------------------------------
constexpr std::array<TensorRow, 9> kGptOss{{
    {"layers.{L}.attention.sinks", "model.layers.{L}.self_attn.sinks"},
    {"layers.{L}.moe.router.gate.weight", "model.layers.{L}.mlp.router.weight"},
    {"layers.{L}.moe.router.gate.bias", "model.layers.{L}.mlp.router.bias"},
    {"layers.{L}.moe.experts.w1", "model.layers.{L}.mlp.experts.gate_up_proj",
     TensorLayout::EVEN_COLUMNS},
    {"layers.{L}.moe.experts.w3", "model.layers.{L}.mlp.experts.gate_up_proj",
     TensorLayout::ODD_COLUMNS},
    {"layers.{L}.moe.experts.w2", "model.layers.{L}.mlp.experts.down_proj",
     TensorLayout::TRANSPOSED},
    {"layers.{L}.moe.experts.b1", "model.layers.{L}.mlp.experts.gate_up_proj_bias",
     TensorLayout::EVEN},
    {"layers.{L}.moe.experts.b3", "model.layers.{L}.mlp.experts.gate_up_proj_bias",
     TensorLayout::ODD},
    {"layers.{L}.moe.experts.b2", "model.layers.{L}.mlp.experts.down_proj_bias"},
}};

// Windows in all layers but every n-th, of which a list says "full_attention".
void read_layer_types(ConfigReader& json, TransformerConfig& c) {
  json.value("sliding_window", c.sliding_window, int64_t{0});
  c.full_attention_every = c.sliding_window > 0 ? 2 : 0;
  const OrderedJson* const types = json.find("layer_types");
  if (!types || c.sliding_window == 0) return;
  if (!types->is_array() || static_cast<int64_t>(types->size()) != c.n_layers) {
    json.refuse("layer_types", concat("a list of ", c.n_layers, " layers"), dumped(*types));
  }
  const auto first_full = std::ranges::find(*types, OrderedJson("full_attention"));
  c.full_attention_every = first_full == types->end() ? 0 : first_full - types->begin() + 1;
  for (int64_t layer = 0; layer < c.n_layers; ++layer) {
    const OrderedJson expected = c.window_of(layer) > 0 ? "sliding_attention" : "full_attention";
    if ((*types)[static_cast<size_t>(layer)] != expected) {
      json.refuse("layer_types",
                  "\"full_attention\" for every n-th layer, else \"sliding_attention\"",
                  dumped(*types), ". moe8 does not compute other orders.");
    }
  }
}

template <typename Config>
void gpt_oss(Config& json, TransformerConfig& c) {
  common(json, c);
  head_dim(json, c);
  rope(json, c, 150000.0);
  if constexpr (Config::kReads) read_mxfp4_quantization(json);
  json.value("attention_bias", c.attention_bias, true);
  json.value("intermediate_size", c.hidden_dim);
  json.value("num_local_experts", c.n_experts);
  json.value("num_experts_per_tok", c.top_k);
  json.value("swiglu_limit", c.swiglu_limit, 7.0);
  json.value("swiglu_alpha", c.swiglu_alpha, 1.702);
  if constexpr (Config::kReads) {
    json.ignore({"experts_per_token", "initial_context_length"});  // said by other keys as well
    read_layer_types(json, c);
    only_experts(c);
    c.route_norm = true;  // the softmax of the chosen experts alone
    c.attention_sinks = c.router_bias = c.expert_biases = true;
    c.activation = Activation::CLAMPED_SWIGLU;
  } else {
    json.json()["sliding_window"] =
        c.sliding_window > 0 ? OrderedJson(c.sliding_window) : OrderedJson();
    OrderedJson types = OrderedJson::array();
    for (int64_t layer = 0; layer < c.n_layers; ++layer) {
      types.push_back(c.window_of(layer) > 0 ? "sliding_attention" : "full_attention");
    }
    json.value("layer_types", types);
  }
}

// ---- DeepSeek-V3 ------------------------------------------------------------
constexpr std::array<TensorRow, 11> kDeepseek{{
    {"layers.{L}.attention.wq.weight", "model.layers.{L}.self_attn.q_proj.weight"},
    {"layers.{L}.attention.wq_a.weight", "model.layers.{L}.self_attn.q_a_proj.weight"},
    {"layers.{L}.attention.q_norm.weight", "model.layers.{L}.self_attn.q_a_layernorm.weight"},
    {"layers.{L}.attention.wq_b.weight", "model.layers.{L}.self_attn.q_b_proj.weight"},
    {"layers.{L}.attention.wkv_a.weight", "model.layers.{L}.self_attn.kv_a_proj_with_mqa.weight"},
    {"layers.{L}.attention.kv_norm.weight", "model.layers.{L}.self_attn.kv_a_layernorm.weight"},
    {"layers.{L}.attention.wkv_b.weight", "model.layers.{L}.self_attn.kv_b_proj.weight"},
    {"layers.{L}.moe.expert_bias", "model.layers.{L}.mlp.gate.e_score_correction_bias"},
    {"layers.{L}.moe.shared_experts.w1.weight",
     "model.layers.{L}.mlp.shared_experts.gate_proj.weight"},
    {"layers.{L}.moe.shared_experts.w2.weight",
     "model.layers.{L}.mlp.shared_experts.down_proj.weight"},
    {"layers.{L}.moe.shared_experts.w3.weight",
     "model.layers.{L}.mlp.shared_experts.up_proj.weight"},
}};

template <typename Config>
void deepseek_v3(Config& json, TransformerConfig& c) {
  common(json, c);
  quantization(json);
  json.value("intermediate_size", c.dense_hidden_dim);
  json.value("moe_intermediate_size", c.hidden_dim);
  json.value("n_routed_experts", c.n_experts);
  json.value("n_shared_experts", c.n_shared_experts);
  json.value("num_experts_per_tok", c.top_k);
  json.value("norm_topk_prob", c.route_norm, true);
  json.value("routed_scaling_factor", c.route_scale);
  json.value("n_group", c.n_expert_groups);
  json.value("topk_group", c.top_k_groups);
  json.value("first_k_dense_replace", c.n_dense_layers);
  json.value("kv_lora_rank", c.kv_rank);
  json.value("qk_rope_head_dim", c.rotary_dim);
  json.value("qk_nope_head_dim", c.plain_head_dim);
  json.only("attention_bias", false);
  json.only("scoring_func", "sigmoid");
  json.only("topk_method", "noaux_tc");
  json.only("moe_layer_freq", 1);
  // Extra layers that predict further tokens are no part of the model here.
  json.ignore({"num_nextn_predict_layers", "ep_size", "aux_loss_alpha", "seq_aux", "qk_head_dim",
               "head_dim"});
  if constexpr (Config::kReads) {
    if (c.kv_rank <= 0) json.refuse("kv_lora_rank", "more than 0", std::to_string(c.kv_rank));
    json.value("v_head_dim", c.head_dim);
    json.value("q_lora_rank", c.q_rank, int64_t{0});
    bool neighbours = true;
    json.value("rope_interleave", neighbours, true);
    c.rotary_pairs = neighbours ? RotaryPairs::NEIGHBOURS : RotaryPairs::HALVES;
    c.score_function = ScoreFunction::SIGMOID;
    c.load_balance_coeff = TransformerConfig().load_balance_coeff;
  } else {
    json.value("v_head_dim", c.head_width());
    json.json()["q_lora_rank"] = c.q_rank > 0 ? OrderedJson(c.q_rank) : OrderedJson();
    json.value("rope_interleave", c.rotary_pairs == RotaryPairs::NEIGHBOURS);
    json.value("num_nextn_predict_layers", 0);
  }
  rope(json, c, 10000.0);  // its magnitudes depend on the widths
}

// ---- config.json as a whole -------------------------------------------------
constexpr const char* kModelType = "model_type";

std::string model_types() {
  std::vector<std::string> names;
  for (const Family& family : families()) names.emplace_back(family.model_type);
  return join(names);
}

// What decides how training goes on, and is no part of a published model.
void forget_training(TransformerConfig& c, const TransformerConfig& like) {
  c.aux_loss_coeff = like.aux_loss_coeff;
  c.z_loss_coeff = like.z_loss_coeff;
  if (c.load_balance_coeff > 0 && like.load_balance_coeff > 0) {
    c.load_balance_coeff = like.load_balance_coeff;
  }
}

// What a config.json gives again may differ from the config in words that mean the same.
void say_the_same(TransformerConfig& c) {
  c.head_dim = c.head_width();
  if (c.n_dense_layers == 0) c.dense_hidden_dim = TransformerConfig().dense_hidden_dim;
  constexpr double kDigits = 1e-9;  // of a scale that went through a logarithm
  if (std::abs(c.attention_scale / plain_attention_scale(c) - 1) < kDigits) c.attention_scale = 0;
}

bool mean_the_same(double a, double b) {
  constexpr double kDigits = 1e-9;
  return std::abs(a - b) <= kDigits * std::max(std::abs(a), std::abs(b));
}

// "model.qk_norm: expected head, got none" for each setting that the family gives otherwise.
std::vector<std::string> not_said(const Family& family, const TransformerConfig& config) {
  TransformerConfig own = config;
  TransformerConfig again;
  try {
    ConfigWriter writer;
    family.write(writer, own);
    ConfigReader reader(writer.json(), "config.json");
    family.read(reader, again);
  } catch (const c10::Error& error) {
    return {message_of(error)};
  }
  forget_training(again, own);
  say_the_same(own), say_the_same(again);
  if (mean_the_same(own.attention_scale, again.attention_scale)) {
    again.attention_scale = own.attention_scale;
  }
  if (mean_the_same(own.rope_magnitude, again.rope_magnitude)) {
    again.rope_magnitude = own.rope_magnitude;
  }
  std::vector<std::string> differences;
  const auto mine = model_settings(own), theirs = model_settings(again);
  for (size_t i = 0; i < mine.size(); ++i) {
    if (mine[i] == theirs[i]) continue;
    differences.push_back(
        concat("model.", mine[i].first, " = ", theirs[i].second, ", not ", mine[i].second));
  }
  return differences;
}

}  // namespace

const std::vector<Family>& families() {
  static const std::vector<Family> all{{"qwen3_moe",
                                        "Qwen3MoeForCausalLM",
                                        {kCommon, kAttention, kExperts},
                                        qwen3_moe<ConfigReader>,
                                        qwen3_moe<ConfigWriter>},
                                       {"olmoe",
                                        "OlmoeForCausalLM",
                                        {kCommon, kAttention, kExperts},
                                        olmoe<ConfigReader>,
                                        olmoe<ConfigWriter>},
                                       {"mixtral",
                                        "MixtralForCausalLM",
                                        {kCommon, kAttention, kMixtralExperts},
                                        mixtral<ConfigReader>,
                                        mixtral<ConfigWriter>},
                                       {"gpt_oss",
                                        "GptOssForCausalLM",
                                        {kCommon, kAttention, kGptOss},
                                        gpt_oss<ConfigReader>,
                                        gpt_oss<ConfigWriter>},
                                       {"deepseek_v3",
                                        "DeepseekV3ForCausalLM",
                                        {kCommon, kExperts, kDeepseek},
                                        deepseek_v3<ConfigReader>,
                                        deepseek_v3<ConfigWriter>}};
  return all;
}

const Family* find_family(std::string_view model_type) {
  const auto found = std::ranges::find(families(), model_type, &Family::model_type);
  return found == families().end() ? nullptr : &*found;
}

TransformerConfig read_config(const OrderedJson& json, const std::string& where) {
  MOE8_CHECK(json.is_object(), kPretrained, where, "expected a JSON object");
  const auto type = json.find(kModelType);
  const bool has_type = type != json.end() && type->is_string();
  const Family* const family = has_type ? find_family(type->get<std::string>()) : nullptr;
  MOE8_CHECK(family, kPretrained, where, "\"model_type\": expected one of ", model_types(),
             ", got ", has_type ? dumped(*type) : "none");
  ConfigReader reader(json, where);
  TransformerConfig config;
  family->read(reader, config);
  reader.check_all_known();
  config.validate();
  return config;
}

WrittenConfig write_config(const TransformerConfig& config) {
  config.validate();
  const Family* nearest = nullptr;
  std::vector<std::string> fewest;
  for (const Family& family : families()) {
    const std::vector<std::string> differences = not_said(family, config);
    if (nearest && differences.size() >= fewest.size()) continue;
    nearest = &family;
    fewest = differences;
  }
  MOE8_CHECK(fewest.empty(), kPretrained, "config", "expected a model of one of the families ",
             model_types(), ". Nearest is ", nearest->model_type, ", which has ", join(fewest));
  ConfigWriter writer;
  writer.json()["architectures"] = OrderedJson::array({nearest->architecture});
  writer.json()[kModelType] = nearest->model_type;
  TransformerConfig own = config;
  nearest->write(writer, own);
  return {nearest, std::move(writer.json())};
}

// ---- names ------------------------------------------------------------------
namespace {

constexpr std::string_view kLayer = "{L}";

// The number that stands in `name` where the pattern has {L}; nothing where it does not fit.
std::optional<std::string> layer_in(std::string_view name, std::string_view pattern) {
  const size_t at = pattern.find(kLayer);
  if (at == std::string_view::npos)
    return name == pattern ? std::optional(std::string()) : std::nullopt;
  const std::string_view after = pattern.substr(at + kLayer.size());
  if (!name.starts_with(pattern.substr(0, at)) || !name.ends_with(after) ||
      name.size() < pattern.size() - kLayer.size()) {
    return std::nullopt;
  }
  const std::string_view number = name.substr(at, name.size() - at - after.size());
  const bool is_number =
      !number.empty() && number.find_first_not_of("0123456789") == std::string_view::npos;
  return is_number ? std::optional(std::string(number)) : std::nullopt;
}

std::string replaced(std::string_view text, std::string_view mark, const std::string& by) {
  std::string result(text);
  const size_t at = result.find(mark);
  if (at != std::string::npos) result.replace(at, mark.size(), by);
  return result;
}

}  // namespace

TensorPlace place_of(const Family& family, const std::string& ours) {
  // A family's own rows come last, and before those that all have.
  for (size_t table = family.tensors.size(); table-- > 0;) {
    for (const TensorRow& row : family.tensors[table]) {
      if (const auto layer = layer_in(ours, row.ours)) {
        return {replaced(row.theirs, kLayer, *layer), row.layout};
      }
    }
  }
  fail(kPretrained, ours,
       concat("expected a tensor of the family ", family.model_type, ", which has none like it"));
}

std::string of_expert(const std::string& name, int64_t expert) {
  return replaced(name, "{E}", std::to_string(expert));
}

}  // namespace moe8
