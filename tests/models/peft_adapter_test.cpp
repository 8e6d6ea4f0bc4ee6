// SPDX-License-Identifier: BSD-3-Clause
// Adapters in PEFT's names: what PEFT adds to a model by its own formulas is what moe8 adds to it.
#include <ATen/ops/einsum.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "models/hf_case.h"
#include "moe8/lora.h"
#include "testing/compare.h"
#include "testing/folder.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;
using Tensors = std::map<std::string, at::Tensor>;

class PeftAdapter : public ::testing::Test {
 protected:
  // A model with adapters that are not zero, and what save_adapter() makes of it.
  void save(const std::string& family, const LoraOptions& lora) {
    model_ = testing::pretrained(std::string(MOE8_MODEL_CASES) + "/" + family);
    add_lora(*model_, lora, 1);
    const at::NoGradGuard no_grad;
    for (auto& parameter : model_->named_parameters()) {
      if (parameter.key().ends_with("lora_b")) parameter.value().normal_();
      own_[parameter.key()] = parameter.value().detach();
    }
    save_adapter(folder_ / family, model_->config(),
                 [&](const std::string& name) { return own_.at(name); },
                 {.lora = lora, .base = "models/" + family});
    files_ = load_safetensors(folder_ / family + "/adapter_model.safetensors");
    std::ifstream json(folder_ / family + "/adapter_config.json");
    config_ = nlohmann::json::parse(json);
  }

  at::Tensor a(const std::string& module) const { return part(module, "A"); }
  at::Tensor b(const std::string& module) const { return part(module, "B"); }
  // Of stacked experts [E, out, in], by the formula of PEFT's ParamWrapper.
  at::Tensor of_experts(const std::string& module, double scale) const {
    const int64_t experts = model_->config().n_experts;
    const at::Tensor first = a(module), second = b(module);
    return at::einsum("ore,eri->eoi", {second.reshape({second.size(0), -1, experts}),
                                       first.reshape({experts, -1, first.size(1)})}) *
           scale;
  }
  // What moe8 adds.
  at::Tensor added(const std::string& beginning, double scale) const {
    return at::matmul(own_.at(beginning + "lora_b"), own_.at(beginning + "lora_a")) * scale;
  }

  TemporaryFolder folder_;
  Transformer model_{nullptr};
  Tensors own_, files_;
  nlohmann::json config_;

 private:
  at::Tensor part(const std::string& module, const char* which) const {
    return files_.at("base_model.model." + module + ".lora_" + which + ".weight");
  }
};

TEST_F(PeftAdapter, AddsWhatMoe8Adds) {
  save("qwen3_moe", {.rank = 3, .alpha = 6});
  EXPECT_EQ(files_.size(), 2U * (2 * 4 + 2 * 2));
  EXPECT_EQ(config_["target_modules"], nlohmann::json({"self_attn.k_proj", "self_attn.o_proj",
                                                       "self_attn.q_proj", "self_attn.v_proj"}));
  EXPECT_EQ(config_["target_parameters"],
            nlohmann::json({"mlp.experts.down_proj", "mlp.experts.gate_up_proj"}));
  EXPECT_EQ(config_["rank_pattern"]["model\\.layers\\.1\\.mlp\\.experts\\.gate_up_proj"], 6);
  EXPECT_EQ(config_["alpha_pattern"]["model\\.layers\\.1\\.mlp\\.experts\\.gate_up_proj"], 12);
  EXPECT_EQ(config_["base_model_name_or_path"], "models/qwen3_moe");
  const std::string layer = "model.layers.1.", experts = layer + "mlp.experts";
  EXPECT_TRUE(at::allclose(at::matmul(b(layer + "self_attn.q_proj"), a(layer + "self_attn.q_proj")),
                           added("layers.1.attention.wq.", 1)));
  EXPECT_TRUE(at::allclose(of_experts(experts, 2), added("layers.1.moe.experts.w2_", 2)));
  EXPECT_TRUE(at::allclose(
      of_experts(experts + ".base_layer", 2),
      at::cat({added("layers.1.moe.experts.w1_", 2), added("layers.1.moe.experts.w3_", 2)}, 1)));
}

TEST_F(PeftAdapter, RowsOfGptOssLieInTurn) {
  save("gpt_oss", {.rank = 2, .alpha = 2, .targets = {"re:.*\\.w[13]"}});
  EXPECT_EQ(config_["target_modules"], nlohmann::json::array());
  const std::string experts = "model.layers.0.mlp.experts";
  const at::Tensor both = of_experts(experts, 1);
  EXPECT_TRUE(
      at::allclose(both.slice(1, 0, std::nullopt, 2), added("layers.0.moe.experts.w1_", 1)));
  EXPECT_TRUE(
      at::allclose(both.slice(1, 1, std::nullopt, 2), added("layers.0.moe.experts.w3_", 1)));
}

TEST_F(PeftAdapter, OneOfTwoAndFeedForward) {
  save("deepseek_v3", {.rank = 4,
                       .alpha = 4,
                       .targets = {"re:.*\\.experts\\.w3", "re:.*\\.feed_forward\\.w2\\.weight",
                                   "layers.1.attention.wkv_b.weight"}});
  const at::Tensor both = of_experts("model.layers.1.mlp.experts", 1);
  const int64_t hidden = model_->config().hidden_dim;
  EXPECT_EQ(both.narrow(1, 0, hidden).count_nonzero().item<int64_t>(), 0);
  EXPECT_TRUE(at::allclose(both.narrow(1, hidden, hidden), added("layers.1.moe.experts.w3_", 1)));
  // Of a kind that other layers have without adapters the whole name.
  EXPECT_EQ(config_["target_modules"], nlohmann::json({"model.layers.1.self_attn.kv_b_proj"}));
  EXPECT_EQ(config_["target_parameters"],
            nlohmann::json({"mlp.down_proj.weight", "mlp.experts.gate_up_proj"}));
  EXPECT_TRUE(config_["rank_pattern"].empty());
  EXPECT_TRUE(files_.contains("base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"));
}

TEST_F(PeftAdapter, OneExpertIsRefused) {
  TransformerConfig config = read_pretrained_config(std::string(MOE8_MODEL_CASES) + "/mixtral");
  config.n_experts = config.top_k = 1;
  EXPECT_THAT(
      error_of([&] {
        save_adapter(folder_ / "one", config, [](const std::string&) { return at::Tensor(); }, {});
      }),
      HasSubstr("PEFT has no adapters of a single stacked expert. Export the merged model."));
}

}  // namespace
}  // namespace moe8
