// SPDX-License-Identifier: BSD-3-Clause
// Published models, small: what transformers computed with them, their files written again bit for
// bit, and folders that something is wrong with.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "models/families.h"
#include "models/hf_case.h"
#include "models/hf_config.h"
#include "models/hf_files.h"
#include "models/hf_weights.h"
#include "models/quantized_weights.h"
#include "moe8/float8.h"
#include "moe8/mx.h"
#include "testing/compare.h"
#include "testing/folder.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

using testing::error_of;
using ::testing::HasSubstr;
using testing::same_bits;
using testing::TemporaryFolder;

constexpr const char* kFamilies[] = {"qwen3_moe", "olmoe", "mixtral", "gpt_oss", "deepseek_v3"};

std::string case_of(const std::string& family) {
  return std::string(MOE8_MODEL_CASES) + "/" + family;
}

// A copy of a case, whose files tests spoil.
std::string copied(const TemporaryFolder& folder, const std::string& family) {
  const std::string to = folder / family;
  fs::create_directories(to);
  for (const char* name : {"config.json", "model.safetensors"}) {
    fs::copy_file(case_of(family) + "/" + name, to + "/" + name);
  }
  return to;
}

std::string gradients_of(const TemporaryFolder& folder, const std::string& family) {
  const std::string to = folder / (family + "_gradients");
  fs::create_directories(to);
  fs::copy_file(case_of(family) + "/config.json", to + "/config.json");
  fs::copy_file(case_of(family) + "/gradients.safetensors", to + "/model.safetensors");
  return to;
}

TEST(Pretrained, LogitsAndGradientsAreThoseOfTransformers) {
  const TemporaryFolder folder;
  for (const std::string family : kFamilies) {
    Transformer model = testing::pretrained(case_of(family));
    for (const auto& [name, difference] : testing::differences(
             model, gradients_of(folder, family), case_of(family) + "/expected.safetensors")) {
      EXPECT_LE(difference, 1e-4) << family << " " << name;
    }
  }
}

TEST(Pretrained, AreWrittenAsTheyWereRead) {
  const TemporaryFolder folder;
  for (const std::string family : kFamilies) {
    testing::save(testing::pretrained(case_of(family)), folder / family);
    const auto before = load_safetensors(case_of(family) + "/model.safetensors");
    const auto after = load_safetensors(folder / family + "/model.safetensors");
    ASSERT_EQ(before.size(), after.size()) << family;
    for (const auto& [name, tensor] : before) {
      ASSERT_TRUE(after.contains(name)) << family << " " << name;
      EXPECT_TRUE(same_bits(tensor, after.at(name))) << family << " " << name;
    }
    EXPECT_EQ(read_pretrained_config(folder / family), read_pretrained_config(case_of(family)));
  }
}

TEST(Pretrained, ShardsAreOneModel) {
  const TemporaryFolder folder;
  Transformer model = testing::pretrained(case_of("olmoe"));
  testing::save(model, folder / "shards", {.shard_bytes = 20'000});
  const HfFiles files(folder / "shards");
  EXPECT_GT(files.paths().size(), 3u);
  Transformer again = testing::pretrained(folder / "shards");
  const auto own = model->named_parameters();
  for (const auto& parameter : again->named_parameters()) {
    EXPECT_TRUE(same_bits(own[parameter.key()], parameter.value())) << parameter.key();
  }
}

TEST(Pretrained, ARankReadsItsExperts) {
  for (const std::string family : kFamilies) {
    const TransformerConfig config = read_pretrained_config(case_of(family));
    const HfFiles files(case_of(family));
    const HfWeights weights(files, *find_family(family), config);
    for (const ParameterShape& parameter : parameter_shapes(config)) {
      if (parameter.name.find(".moe.experts.") == std::string::npos) continue;
      const int64_t half = parameter.shape[0] / 2;
      const at::Tensor all = at::full(parameter.shape, NAN, at::kFloat);
      weights.read(parameter.name, {.whole = parameter.shape}, all);
      const at::Tensor own = at::full_like(all.narrow(0, half, half), NAN);
      weights.read(parameter.name, {.whole = parameter.shape, .first_row = half}, own);
      EXPECT_FALSE(at::isnan(all).any().item<bool>()) << family << " " << parameter.name;
      EXPECT_TRUE(same_bits(all.narrow(0, half, half).contiguous(), own))
          << family << " " << parameter.name;
    }
  }
}

// Of more bytes than one task of a thread reads.
TEST(Pretrained, PartsOfLargeTensorsAreThoseOfTheWhole) {
  const TemporaryFolder folder;
  TransformerConfig config = read_pretrained_config(case_of("qwen3_moe"));
  config.vocab_size = 100'000;
  const Transformer model(config, 3, at::kFloat);
  testing::save(model, folder / "model");
  const HfFiles files(folder / "model");
  const HfWeights weights(files, *find_family("qwen3_moe"), config);
  const std::string name = "tok_embeddings.weight";
  const at::Tensor whole = model->tok_embeddings->weight.detach();
  ASSERT_GT(whole.nbytes(), size_t{12} << 20);
  const std::vector<int64_t> sizes = whole.sizes().vec();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const auto read = [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
      const at::Tensor out = at::full({rows, columns}, NAN, at::dtype(dtype));
      weights.read(name, {.whole = sizes, .first_row = row, .first_column = column}, out);
      const at::Tensor expected = whole.narrow(0, row, rows).narrow(1, column, columns);
      EXPECT_TRUE(same_bits(expected.to(dtype).contiguous(), out)) << row << " " << column;
    };
    read(0, sizes[0], 0, sizes[1]);
    read(33'333, 50'001, 0, sizes[1]);
    read(0, sizes[0], 8, sizes[1] - 8);
  }
}

// ---- quantized files ----------------------------------------------------------
TEST(Pretrained, Mxfp4IsDequantized) {
  const TemporaryFolder folder;
  const std::string model = copied(folder, "gpt_oss");
  auto tensors = load_safetensors(model + "/model.safetensors");
  const std::string name = "model.layers.0.mlp.experts.gate_up_proj";
  const at::Tensor whole = tensors.at(name);  // [4, 32, 48]
  tensors.erase(name);
  at::Tensor blocks = at::zeros({4, 48, 1, 16}, at::kByte);
  blocks[1][5][0][0] = 0x2D;   // -3 in the first, 1 in the second column
  blocks[1][4][0][15] = 0x70;  // 6 in the last
  tensors[name + "_blocks"] = blocks;
  tensors[name + "_scales"] = at::full({4, 48, 1}, 129, at::kByte);  // 2^2
  save_safetensors(model + "/model.safetensors", {tensors.begin(), tensors.end()});
  const Transformer read = testing::pretrained(model);
  const auto parameters = read->named_parameters();
  const at::Tensor &w1 = parameters["layers.0.moe.experts.w1"],
                   &w3 = parameters["layers.0.moe.experts.w3"];
  EXPECT_EQ(w3[1][2][0].item<float>(), -12);  // row 5 is the third of the odd ones
  EXPECT_EQ(w3[1][2][1].item<float>(), 4);
  EXPECT_EQ(w1[1][2][31].item<float>(), 24);
  EXPECT_EQ(w1.count_nonzero().item<int64_t>() + w3.count_nonzero().item<int64_t>(), 3);
}

TEST(Pretrained, Fp8BlocksAreDequantized) {
  const TemporaryFolder folder;
  const std::string model = copied(folder, "deepseek_v3");
  auto tensors = load_safetensors(model + "/model.safetensors");
  const std::string name = "model.layers.0.self_attn.o_proj.weight";
  const at::Tensor codes = (at::randn({32, 32}) * 8).to(at::kFloat8_e4m3fn);
  tensors[name] = codes;
  tensors[name + "_scale_inv"] = at::full({1, 1}, 0.25f);
  save_safetensors(model + "/model.safetensors", {tensors.begin(), tensors.end()});
  const auto read = testing::pretrained(model)->named_parameters();
  EXPECT_TRUE(same_bits(codes.to(at::kFloat) * 0.25, read["layers.0.attention.wo.weight"]));
}

TEST(Pretrained, RowsOfCodesAreThoseOfTheWhole) {
  const TemporaryFolder folder;
  const at::Tensor codes = (at::randn({300, 200}) * 8).to(at::kFloat8_e4m3fn);
  const at::Tensor blocks = at::rand({3, 2}) + 0.5, rows = at::rand({300, 1}) + 0.5;
  save_safetensors(folder / "model.safetensors",
                   {{"a", codes}, {"a_scale_inv", blocks}, {"b", codes}, {"b_scale", rows}});
  const HfFiles files(folder / "");
  const at::Tensor spread = blocks.repeat_interleave(128, 0).repeat_interleave(128, 1);
  for (const auto& [name, scales] :
       {std::pair("a", spread.narrow(0, 0, 300).narrow(1, 0, 200)), std::pair("b", rows)}) {
    const at::Tensor whole = (codes.to(at::kFloat) * scales).to(at::kBFloat16);
    const PlainRows of(files, name, {300, 200});
    for (const int64_t first : {0, 1, 127, 128, 200, 299}) {
      for (const int64_t count : {int64_t{1}, int64_t{100}, int64_t{129}, 300 - first}) {
        if (first + count > 300) continue;
        EXPECT_TRUE(same_bits(whole.narrow(0, first, count), of.rows(first, count)))
            << name << " " << first << " " << count;
      }
    }
    const at::Tensor in_float32 = at::full({300, 200}, NAN);
    of.read(0, in_float32);
    EXPECT_TRUE(same_bits(whole.to(at::kFloat), in_float32)) << name;
  }
}

// A model whose rows are whole blocks of 32, written with codes.
class QuantizedExport : public ::testing::TestWithParam<ExportedWeights> {
 protected:
  static Transformer made(const std::string& family) {
    TransformerConfig config = read_pretrained_config(case_of(family));
    config.hidden_dim = 64;
    return Transformer(config, 3, at::kFloat);
  }
  static bool is_mx() { return GetParam() != ExportedWeights::FP8_ROWWISE; }
  static ScaleCalculationMode mode() {
    return GetParam() == ExportedWeights::MXFP8_FLOOR ? ScaleCalculationMode::FLOOR
                                                      : ScaleCalculationMode::RCEIL;
  }
  static at::Tensor values(const at::Tensor& weight) {
    if (is_mx()) return fake_quantize_mx(weight, ElemDtype::E4M3, mode());
    return fake_quantize_float8(weight, Float8Granularity::axiswise(-1), ElemDtype::E4M3, true);
  }

  TemporaryFolder folder_;
};

TEST_P(QuantizedExport, IsReadBackAsTheQuantizerSays) {
  for (const std::string family : {"qwen3_moe", "olmoe", "mixtral"}) {
    const Transformer model = made(family);
    testing::save(model, folder_ / family, {.weights = GetParam()});
    const auto before = model->named_parameters();
    size_t quantized = 0;
    for (const auto& parameter : testing::pretrained(folder_ / family)->named_parameters()) {
      const std::string& name = parameter.key();
      const at::Tensor own = before[name].detach();
      const bool has_codes = name.find(".experts.w") != std::string::npos ||
                             name.find(".attention.w") != std::string::npos;
      quantized += has_codes ? 1 : 0;
      EXPECT_TRUE(same_bits(has_codes ? values(own) : own, parameter.value().detach())) << name;
    }
    EXPECT_EQ(quantized, 14U);
  }
}

TEST_P(QuantizedExport, FilesHoldItsCodesAndScales) {
  const Transformer model = made("qwen3_moe");
  testing::save(model, folder_ / "model", {.shard_bytes = 20'000, .weights = GetParam()});
  const HfFiles files(folder_ / "model");
  EXPECT_GT(files.paths().size(), 2U);
  const std::string name = "model.layers.1.mlp.experts.2.down_proj.weight";
  const at::Tensor weight = model->named_parameters()["layers.1.moe.experts.w2"].detach()[2];
  const at::Tensor scales = files.tensor(name + "_scale");
  if (is_mx()) {
    const MXTensor expected = quantize_mx(weight, ElemDtype::E4M3, mode());
    EXPECT_TRUE(same_bits(expected.data, files.tensor(name)));
    EXPECT_TRUE(same_bits(expected.scale.view(at::kByte), scales));
    EXPECT_EQ(files.entry(name + "_scale").shape, (std::vector<int64_t>{32, 2}));
  } else {
    const Float8Tensor expected =
        quantize_float8(weight, Float8Granularity::axiswise(-1), ElemDtype::E4M3, true);
    EXPECT_TRUE(same_bits(expected.data, files.tensor(name)));
    EXPECT_TRUE(same_bits(expected.scale, scales.reciprocal()));
    EXPECT_EQ(files.entry(name + "_scale").shape, (std::vector<int64_t>{32, 1}));
  }
  EXPECT_FALSE(files.contains("model.layers.1.mlp.gate.weight_scale"));
  EXPECT_FALSE(files.contains("lm_head.weight_scale"));
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedExport,
                         ::testing::Values(ExportedWeights::FP8_ROWWISE,
                                           ExportedWeights::MXFP8_RCEIL,
                                           ExportedWeights::MXFP8_FLOOR));

TEST(Pretrained, WhatCannotBeQuantizedIsRefused) {
  const TemporaryFolder folder;
  const auto error = [&](const std::string& family, ExportedWeights weights) {
    const Transformer model = testing::pretrained(case_of(family));
    return error_of([&] { testing::save(model, folder / family, {.weights = weights}); });
  };
  EXPECT_THAT(error("gpt_oss", ExportedWeights::FP8_ROWWISE),
              HasSubstr("expected a family whose files hold a matrix per expert, got "
                        "\"model.layers.0.mlp.experts.gate_up_proj\""));
  EXPECT_THAT(error("olmoe", ExportedWeights::MXFP8_RCEIL),
              HasSubstr("expected rows of whole blocks of 32 elements, got 24 in "));
  EXPECT_FALSE(fs::exists(folder / "olmoe"));
}

TEST(Pretrained, ScalesThatDoNotFitAreRefused) {
  const TemporaryFolder folder;
  const Transformer model = testing::pretrained(case_of("mixtral"));
  testing::save(model, folder / "mixtral", {.weights = ExportedWeights::FP8_ROWWISE});
  auto tensors = load_safetensors(folder / "mixtral/model.safetensors");
  const std::string name = "model.layers.0.self_attn.q_proj.weight_scale";
  for (const at::Tensor& wrong : {at::ones({1}), at::ones({32, 1}, at::kInt)}) {
    tensors[name] = wrong;
    save_safetensors(folder / "mixtral/model.safetensors", {tensors.begin(), tensors.end()});
    EXPECT_THAT(error_of([&] { testing::pretrained(folder / "mixtral"); }),
                HasSubstr("q_proj.weight_scale\": expected "));
  }
  // Beside a matrix that has none.
  tensors[name] = at::ones({32, 1});
  tensors["model.layers.0.self_attn.q_proj.weight"] = at::ones({32, 32}, at::kBFloat16);
  save_safetensors(folder / "mixtral/model.safetensors", {tensors.begin(), tensors.end()});
  EXPECT_THAT(error_of([&] { testing::pretrained(folder / "mixtral"); }),
              HasSubstr("q_proj.weight_scale\": expected none of this name"));
}

// ---- folders that are wrong -----------------------------------------------------
class BrokenFolder : public ::testing::Test {
 protected:
  std::string message(const std::string& family = "qwen3_moe") {
    return error_of([&] { testing::pretrained(folder_ / family); });
  }
  void save(const std::map<std::string, at::Tensor>& tensors, const std::string& file) {
    save_safetensors(folder_ / file, {tensors.begin(), tensors.end()});
  }

  TemporaryFolder folder_;
};

TEST_F(BrokenFolder, WithoutConfigOrWeights) {
  EXPECT_THAT(message(),
              HasSubstr("expected the folder of a model, with config.json, got nothing"));
  fs::create_directories(folder_ / "qwen3_moe");
  EXPECT_THAT(message(), HasSubstr("config.json: expected a file of this name, got none"));
  fs::copy_file(case_of("qwen3_moe") + "/config.json", folder_ / "qwen3_moe/config.json");
  EXPECT_THAT(message(),
              HasSubstr("expected model.safetensors or model.safetensors.index.json, got neither"));
  fs::copy_file(case_of("qwen3_moe") + "/model.safetensors",
                folder_ / "qwen3_moe/model-00001-of-00002.safetensors");
  EXPECT_THAT(message(), HasSubstr("expected model.safetensors.index.json beside its 1"));
}

TEST_F(BrokenFolder, GitLfsPointers) {
  const std::string model = copied(folder_, "qwen3_moe");
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
  folder_.write("qwen3_moe/model.safetensors", pointer);
  EXPECT_THAT(message(), HasSubstr("a Git LFS pointer. The file itself was not downloaded"));
  folder_.write("qwen3_moe/config.json", pointer);
  EXPECT_THAT(message(), HasSubstr("config.json: expected JSON, got a Git LFS pointer"));
}

TEST_F(BrokenFolder, ShardsThatAreMissingOrDoubled) {
  const std::string model = copied(folder_, "qwen3_moe");
  fs::remove_all(folder_ / "sharded");
  testing::save(testing::pretrained(model), folder_ / "sharded", {.shard_bytes = 30'000});
  const std::string second = HfFiles(folder_ / "sharded").paths().at(1);
  const auto tensors = load_safetensors(second);
  fs::remove(second);
  EXPECT_THAT(message("sharded"), HasSubstr("of which 1 is missing: model-00002-of-"));
  auto doubled = tensors;
  doubled["model.embed_tokens.weight"] = at::zeros({48, 32});
  save_safetensors(second, {doubled.begin(), doubled.end()});
  EXPECT_THAT(message("sharded"),
              HasSubstr("\"model.embed_tokens.weight\": expected it once, but"));
  auto fewer = tensors;
  fewer.erase(fewer.begin());
  save_safetensors(second, {fewer.begin(), fewer.end()});
  EXPECT_THAT(message("sharded"), HasSubstr("as model.safetensors.index.json says, got none"));
}

TEST_F(BrokenFolder, AnIndexThatNamesNoFilesBesideIt) {
  const std::string model = copied(folder_, "qwen3_moe");
  const auto with = [&](const std::string& file) {
    folder_.write("qwen3_moe/model.safetensors.index.json",
                  "{\"weight_map\":{\"w\":" + file + "}}");
    return message();
  };
  for (const char* file : {R"("")", R"(".")", R"("..")", R"("a/b")", R"("/dev/zero")", R"("a\n")",
                           R"("\u001b[31m")", R"("\u007f")", R"("a\u0000b")", "5", "null"}) {
    EXPECT_THAT(with(file), HasSubstr("model.safetensors.index.json: tensor \"w\": expected the "
                                      "name of a file beside the index, got " +
                                      std::string(file)));
  }
  EXPECT_THAT(with(R"("of_another_model")"), HasSubstr("missing: of_another_model. Download"));
  const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  EXPECT_THAT(with(deep), HasSubstr("beside the index, got [[[[[[[...]]]]]]]"));
  std::string many = R"("0")";
  for (int i = 1; i < 5000; ++i) many += concat(",\"t", i, "\":\"", i, '"');
  EXPECT_THAT(with(many), HasSubstr("of which 5000 are missing: 0, 1, 10, "));
  EXPECT_LT(with(many).size(), 1000U);
  folder_.write("qwen3_moe/model.safetensors.index.json", deep);
  EXPECT_THAT(message(), HasSubstr("expected an object with a weight_map"));
}

TEST_F(BrokenFolder, BracketsThatDoNotEnd) {
  const std::string model = copied(folder_, "qwen3_moe");
  const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  const auto config = OrderedJson::parse(read_hf_file(model, "config.json")).dump();
  const auto with = [&](const std::string& key) {
    folder_.write("qwen3_moe/config.json",
                  config.substr(0, config.size() - 1) + ",\"" + key + "\":" + deep + "}");
    return message();
  };
  EXPECT_THAT(with("no_such_key"), HasSubstr("expected no key of this name, got [[[[[[[...]]]"));
  EXPECT_THAT(with("quantization_config"), HasSubstr("mxfp8-quantized, got [[[[[[[...]]]]]]]"));
  EXPECT_EQ(with("eos_token_id"), "(no error)");
  EXPECT_THAT(pretrained_end_tokens(model), ::testing::IsEmpty());
  testing::save(testing::pretrained(case_of("qwen3_moe")), folder_ / "exported",
                {.files_from = model});
  EXPECT_FALSE(OrderedJson::parse(read_hf_file(folder_ / "exported", "config.json"))
                   .contains("eos_token_id"));
}

TEST_F(BrokenFolder, NamesAndSizesOfAnotherModel) {
  const std::string model = copied(folder_, "qwen3_moe");
  fs::copy_file(case_of("mixtral") + "/model.safetensors", model + "/model.safetensors",
                fs::copy_options::overwrite_existing);
  EXPECT_THAT(message(), HasSubstr("Its experts have the names of mixtral"));
  auto tensors = load_safetensors(case_of("qwen3_moe") + "/model.safetensors");
  auto changed = tensors;
  changed["model.norm.weight"] = at::ones({40});
  save(changed, "qwen3_moe/model.safetensors");
  EXPECT_THAT(message(), HasSubstr("\"model.norm.weight\": expected [32], got F32 [40]"));
  changed = tensors;
  changed["model.layers.0.self_attn.q_proj.bias"] = at::ones({64});
  save(changed, "qwen3_moe/model.safetensors");
  EXPECT_THAT(message(), HasSubstr("expected none of this name in a model of its config.json"));
  changed = tensors;
  changed.erase("lm_head.weight");
  save(changed, "qwen3_moe/model.safetensors");
  EXPECT_THAT(message(),
              HasSubstr("of which 1 is not there, such as \"lm_head.weight\". Is a shard missing"));
  changed = tensors;
  changed["model.norm.weight"] = at::ones({32}, at::kInt);
  save(changed, "qwen3_moe/model.safetensors");
  EXPECT_THAT(message(), HasSubstr("expected BF16, F16 or F32, got I32 [32]"));
}

TEST_F(BrokenFolder, NothingIsWrittenOverAnother) {
  Transformer model = testing::pretrained(case_of("olmoe"));
  fs::create_directories(folder_ / "there");
  EXPECT_THAT(error_of([&] { testing::save(model, folder_ / "there"); }),
              HasSubstr("expected a folder that does not exist"));
}

}  // namespace
}  // namespace moe8
