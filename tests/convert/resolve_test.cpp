// SPDX-License-Identifier: BSD-3-Clause
// The precedence of FqnToConfig, table by table, on names and shapes alone.
#include "convert/resolve.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "testing/compare.h"

namespace moe8 {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const Config kRceil = recipe("mxfp8_rceil");
const Config kFp8 = recipe("fp8_rowwise");
const Config kMxLinear = recipe("mxfp8_emulated");
const Config kFloat8 = recipe("rowwise");
constexpr auto kAlone = std::nullopt;

// A small MoE transformer: dense layer 0, two experts and a shared expert in layer 1.
const std::vector<ParameterInfo>& model() {
  using enum OwnerKind;
  static const std::vector<ParameterInfo> parameters = {
      {"temperature", {1}},
      {"mixer", {8, 16}},
      {"embed.weight", {64, 16}, EMBEDDING},
      {"layers.0.attn.wq.weight", {16, 16}, LINEAR},
      {"layers.0.attn.wq.bias", {16}, LINEAR},
      {"layers.0.norm.weight", {16}},
      {"layers.0.ffn.weight", {32, 16}, LINEAR},
      {"layers.1.attn.wq.weight", {16, 16}, LINEAR},
      {"layers.1.moe.router.weight", {2, 16}, LINEAR},
      {"layers.1.moe.experts.w1", {2, 32, 16}},
      {"layers.1.moe.experts.w2", {2, 16, 32}},
      {"layers.1.moe.shared.weight", {32, 16}, LINEAR},
      {"layers.1.half.w", {2, 16, 32}, OTHER, "float16"},
      {"output.weight", {64, 16}, LINEAR},
  };
  return parameters;
}

using Decisions = std::map<std::string, Config>;

Decisions decisions(const FqnToConfig& config, Unmatched unmatched = Unmatched::ERROR) {
  Decisions map;
  for (const ConversionRow& row : resolve(model(), {}, config, unmatched).converted()) {
    map.emplace(row.fqn, *row.config);
  }
  return map;
}

ConversionRow row_of(const ConversionReport& report, const std::string& fqn) {
  for (const ConversionRow& row : report.rows) {
    if (row.fqn == fqn) return row;
  }
  ADD_FAILURE() << "no row " << fqn;
  return {};
}

TEST(Resolve, ConvertsByParameterAndModuleName) {
  EXPECT_EQ(decisions({{"layers.1.moe.experts.w1", kRceil}, {"output", kMxLinear}}),
            (Decisions{{"layers.1.moe.experts.w1", kRceil}, {"output.weight", kMxLinear}}));
}

TEST(Resolve, ParameterBeatsModuleBeatsPatterns) {
  // Written in the reverse order of precedence: order matters among patterns only.
  EXPECT_EQ(decisions({{"_default", kFloat8},
                       {"re:layers\\.1\\.moe", kFp8},
                       {"re:.*experts\\.w.", kAlone},
                       {"layers.1", kRceil},
                       {"layers.1.moe.experts.w1", kFp8}}),
            (Decisions{{"layers.1.moe.experts.w1", kFp8},
                       {"layers.1.moe.experts.w2", kRceil},
                       {"layers.0.attn.wq.weight", kFloat8},
                       {"layers.0.ffn.weight", kFloat8},
                       {"layers.1.attn.wq.weight", kFloat8},
                       {"layers.1.moe.router.weight", kFloat8},
                       {"layers.1.moe.shared.weight", kFloat8},
                       {"output.weight", kFloat8}}));
}

TEST(Resolve, ALookAheadIsNotUndoneByTheModulesName) {
  // The pattern matches "layers.1.moe.experts" as well, which holds w2.
  EXPECT_EQ(decisions({{"re:(?!.*w2).*experts.*", kRceil}}),
            (Decisions{{"layers.1.moe.experts.w1", kRceil}}));
  EXPECT_EQ(
      row_of(resolve(model(), {}, {{"re:(?!.*w2).*experts.*", kRceil}}), "layers.1.moe.experts.w2")
          .reason,
      "no key names it");
  // Nor by that of a module further out.
  EXPECT_EQ(decisions({{"re:(?!.*ffn).*layers\\.0.*", kMxLinear}}),
            (Decisions{{"layers.0.attn.wq.weight", kMxLinear}}));
  // Other keys still act by the module's name.
  EXPECT_EQ(decisions({{"re:(?!.*w2).*experts.*", kRceil}, {"re:.*\\.experts", kFp8}}),
            (Decisions{{"layers.1.moe.experts.w1", kRceil}, {"layers.1.moe.experts.w2", kFp8}}));
}

TEST(Resolve, NearestModuleDecides) {
  EXPECT_EQ(decisions({{"", kMxLinear}, {"layers.1", kAlone}, {"layers.1.moe", kFloat8}}),
            (Decisions{{"mixer", kMxLinear},
                       {"layers.0.attn.wq.weight", kMxLinear},
                       {"layers.0.ffn.weight", kMxLinear},
                       {"layers.1.moe.router.weight", kFloat8},
                       {"layers.1.moe.shared.weight", kFloat8},
                       {"output.weight", kMxLinear}}));
  // Among patterns as well: the nearest module first, then the order of the keys.
  EXPECT_EQ(decisions({{"re:layers\\.\\d", kFp8}, {"re:.*\\.experts", kRceil}}),
            (Decisions{{"layers.1.moe.experts.w1", kRceil}, {"layers.1.moe.experts.w2", kRceil}}));
}

TEST(Resolve, FirstMatchingPatternDecides) {
  EXPECT_EQ(decisions({{"re:.*\\.w1", kFp8}, {"re:.*experts\\..*", kRceil}}),
            (Decisions{{"layers.1.moe.experts.w1", kFp8}, {"layers.1.moe.experts.w2", kRceil}}));
  // "Leave alone" shields from later patterns.
  EXPECT_EQ(decisions({{"re:.*\\.w1", kAlone}, {"re:.*experts\\..*", kRceil}}),
            (Decisions{{"layers.1.moe.experts.w2", kRceil}}));
}

TEST(Resolve, PatternOnParametersBeatsPatternOnModules) {
  EXPECT_EQ(decisions({{"re:.*experts", kRceil}, {"re:.*experts\\.w2", kAlone}}),
            (Decisions{{"layers.1.moe.experts.w1", kRceil}}));
}

TEST(Resolve, AConfigThatCannotApplyDoesNotCount) {
  // Both patterns match everything in the layer; each converts what it can.
  const Decisions expected{{"layers.1.attn.wq.weight", kMxLinear},
                           {"layers.1.moe.router.weight", kMxLinear},
                           {"layers.1.moe.experts.w1", kRceil},
                           {"layers.1.moe.experts.w2", kRceil},
                           {"layers.1.moe.shared.weight", kMxLinear}};
  EXPECT_EQ(decisions({{"re:layers\\.1.*", kRceil}, {"re:layers.1\\..*", kMxLinear}}), expected);
  EXPECT_EQ(decisions({{"re:layers\\.1.*", kMxLinear}, {"re:layers.1\\..*", kRceil}}), expected);
  // An exact module name with a grouped config leaves the linears below it to lesser keys.
  EXPECT_EQ(decisions({{"layers.1", kRceil}, {"re:layers\\.1", kMxLinear}}), expected);
}

TEST(Resolve, DefaultIsForLinearWeightsOnly) {
  const Decisions got = decisions({{"_default", kMxLinear}, {"output", kAlone}});
  EXPECT_EQ(got.size(), 5u);
  EXPECT_FALSE(got.contains("embed.weight"));
  EXPECT_FALSE(got.contains("mixer"));
  EXPECT_FALSE(got.contains("output.weight"));
  EXPECT_THAT(error_of([] {
                decisions({{"_default", kRceil}});
              }),
              AllOf(HasSubstr("'_default' can apply to nothing"), HasSubstr("3-D")));
}

TEST(Resolve, RowsSayWhatDecided) {
  const ConversionReport report =
      resolve(model(), {}, {{"", kRceil}, {"re:.*shared.*", kAlone}, {"output", kMxLinear}});
  EXPECT_EQ(report.rows.size(), model().size());
  const ConversionRow w1 = row_of(report, "layers.1.moe.experts.w1");
  EXPECT_EQ(w1.key, "");
  EXPECT_EQ(w1.reason, "converted if used through at::_grouped_mm, bmm or matmul");
  EXPECT_EQ(w1.shape, (std::vector<int64_t>{2, 32, 16}));
  EXPECT_EQ(w1.dtype, "bfloat16");
  const ConversionRow shared = row_of(report, "layers.1.moe.shared.weight");
  EXPECT_EQ(shared.key, "re:.*shared.*");
  EXPECT_EQ(shared.config, std::nullopt);
  EXPECT_THAT(shared.reason, HasSubstr("left alone"));
  const ConversionRow router = row_of(report, "layers.1.moe.router.weight");
  EXPECT_EQ(router.key, std::nullopt);
  EXPECT_THAT(router.reason, AllOf(HasSubstr("key ''"), HasSubstr("3-D"), HasSubstr("got 2-D")));
  EXPECT_THAT(row_of(report, "layers.1.half.w").reason, HasSubstr("got float16"));
  EXPECT_EQ(row_of(resolve(model(), {}, {{"output", kMxLinear}}), "mixer").reason,
            "no key names it");
}

TEST(Resolve, AnInapplicableConfigAtAnExactParameterIsAnError) {
  const auto error = [](const std::string& key, const Config& config) {
    return error_of([&] { decisions({{key, config}}, Unmatched::IGNORE); });
  };
  EXPECT_THAT(error("mixer", kRceil), AllOf(HasSubstr("[FqnToConfig] key 'mixer'"),
                                            HasSubstr("3-D"), HasSubstr("MXFP8GroupedMMConfig")));
  EXPECT_THAT(error("layers.0.attn.wq.bias", kMxLinear), HasSubstr("got 1-D"));
  EXPECT_THAT(error("embed.weight", kMxLinear), HasSubstr("an Embedding's"));
  EXPECT_THAT(error("layers.1.moe.experts.w1", kMxLinear), HasSubstr("got 3-D"));
  EXPECT_THAT(error("layers.1.half.w", kRceil), HasSubstr("got float16"));
  EXPECT_NO_THROW(decisions({{"embed.weight", kAlone}}));
}

TEST(Resolve, RefusesBrokenKeys) {
  MXLinearConfig bad_block;
  bad_block.block_size = 16;
  const auto error = [](const FqnToConfig& config) {
    return error_of([&] { resolve(model(), {}, config, Unmatched::IGNORE); });
  };
  EXPECT_THAT(error({{"output", kMxLinear}, {"output", kAlone}}),
              AllOf(HasSubstr("key 'output'"), HasSubstr("twice")));
  EXPECT_THAT(error({{"re:(", kMxLinear}}), HasSubstr("position 1"));
  EXPECT_THAT(error({{"layers.re:.*", kMxLinear}}), HasSubstr("very start"));
  EXPECT_THAT(error({{"^re:.*", kMxLinear}}), HasSubstr("very start"));
  EXPECT_THAT(error({{"output", bad_block}}), HasSubstr("block_size"));
  EXPECT_THAT(error({{"re:(a|a?)+(.*)+(.*)+$q", kMxLinear}}), HasSubstr("match limit"));

  const std::vector<ParameterInfo> named_like_a_pattern = {{"re:x", {2, 2}},
                                                           {"_default.w", {2, 2}}};
  EXPECT_THAT(error_of([&] {
                resolve(named_like_a_pattern, {}, {{"re:x", kMxLinear}});
              }),
              AllOf(HasSubstr("key 're:x'"), HasSubstr("name of a parameter")));
  EXPECT_THAT(error_of([&] {
                resolve(named_like_a_pattern, {}, {{"_default", kMxLinear}});
              }),
              HasSubstr("key '_default'"));
}

TEST(Resolve, AKeyThatMatchedNothingIsAnError) {
  const auto error = [](const FqnToConfig& config) { return error_of([&] { decisions(config); }); };
  EXPECT_THAT(error({{"layers.1.moe.expert", kRceil}}),
              AllOf(HasSubstr("'layers.1.moe.expert'"), HasSubstr("layers.1.moe.experts")));
  EXPECT_THAT(error({{"re:experts", kRceil}, {"ouput", kMxLinear}, {"re:.*experts.*", kFp8}}),
              AllOf(HasSubstr("'re:experts'"), HasSubstr("'ouput'"), HasSubstr("output"),
                    Not(HasSubstr("'re:.*experts.*'"))));
  EXPECT_THAT(error({{"re:.*wq\\.bias", kRceil}}),
              AllOf(HasSubstr("can apply to nothing"), HasSubstr("layers.0.attn.wq.bias")));
  EXPECT_THAT(error({{"layers.0.norm", kMxLinear}}), HasSubstr("layers.0.norm.weight"));
  EXPECT_THAT(error_of([] { resolve({}, {}, {{"x", kMxLinear}}); }), HasSubstr("no parameters"));
  EXPECT_THAT(error_of([] {
                resolve(model(), {"dropout"}, {{"dropout", kMxLinear}});
              }),
              HasSubstr("module without parameters"));
}

TEST(Resolve, AMistypedPatternLeadsToPartsOfNames) {
  const auto error = [](const std::string& key) {
    return error_of([&] { decisions({{key, kRceil}}); });
  };
  EXPECT_THAT(error("re:.*expertz.*"),
              HasSubstr("no name has 'expertz', nearest parts: experts, "));
  EXPECT_THAT(error("re:layers\\.\\d+\\.mow\\.expert_s\\.w[12]"),
              AllOf(HasSubstr("no name has 'mow', nearest parts: moe"),
                    HasSubstr("no name has 'expert_s', nearest parts: experts"),
                    Not(HasSubstr("'layers'"))));
  // All words are right: the pattern lacks something else.
  EXPECT_THAT(error("re:moe\\.experts"),
              HasSubstr("matches no name; nearest: layers.1.moe.experts"));
}

TEST(Resolve, AKeyThatNamesABufferSaysSo) {
  const std::vector<std::string> buffers{"layers.1.moe.tokens_per_expert"};
  for (const std::string key : {"layers.1.moe.tokens_per_expert", "re:.*tokens_per.*"}) {
    EXPECT_THAT(
        error_of([&] {
          resolve(model(), {}, {{key, kRceil}}, Unmatched::ERROR, buffers);
        }),
        HasSubstr("names the buffer 'layers.1.moe.tokens_per_expert', and only parameters"));
  }
}

TEST(Resolve, RankAloneMakesNoExpert) {
  using enum OwnerKind;
  const std::vector<ParameterInfo> parameters = {
      {"experts.w1", {4, 32, 16}},
      {"expert.w", {1, 32, 16}},  // a model with one expert
      {"pos_embed", {1, 128, 16}},
      {"latents", {1, 32, 16}},
      {"experts.w1_bias", {4, 1, 32}},
      {"experts.narrow", {4, 32, 1}},
      {"experts.w1_scale", {4, 2, 2}},
      {"conv1d.weight", {16, 4, 4}},
      {"stem.weight", {16, 4, 3}, WITHOUT_PRODUCTS, "bfloat16", "Conv1d"},
      {"both.weight", {8, 16, 16}, WITHOUT_PRODUCTS, "bfloat16", "Bilinear"},
  };
  Decisions got;
  const ConversionReport report = resolve(parameters, {}, {{"re:.*", kRceil}});
  for (const ConversionRow& row : report.converted()) got.emplace(row.fqn, *row.config);
  EXPECT_EQ(got, (Decisions{{"experts.w1", kRceil}, {"expert.w", kRceil}}));
  EXPECT_THAT(row_of(report, "pos_embed").reason, HasSubstr("got what 'pos' in its name says"));
  EXPECT_THAT(row_of(report, "latents").reason, HasSubstr("got [1, 32, 16]"));
  EXPECT_THAT(row_of(report, "experts.w1_bias").reason, HasSubstr("'bias' in its name"));
  EXPECT_THAT(row_of(report, "experts.narrow").reason, HasSubstr("got [4, 32, 1]"));
  EXPECT_THAT(row_of(report, "conv1d.weight").reason, HasSubstr("'conv1d' in its name"));
  EXPECT_THAT(row_of(report, "stem.weight").reason, HasSubstr("got a parameter of Conv1d"));
  EXPECT_THAT(row_of(report, "both.weight").reason, HasSubstr("got a parameter of Bilinear"));
}

TEST(Resolve, AMatrixIsNotAlwaysALinears) {
  using enum OwnerKind;
  const std::vector<ParameterInfo> parameters = {
      {"mixer.w", {32, 16}},
      {"mamba.A_log", {32, 16}},
      {"experts.gate_up_bias", {4, 32}},
      {"experts.b1", {4, 32}},
      {"position_table", {128, 16}},
      {"cls", {1, 16}},
      {"rnn.weight_ih_l0", {64, 16}},
      {"lstm.weight_hh_l0", {64, 16}, WITHOUT_PRODUCTS, "bfloat16", "LSTM"},
      {"out.weight", {32, 16}, LINEAR, "bfloat16", "", true},
      {"old.weight", {32, 16}, LINEAR, "bfloat16", "", true, true},
  };
  Decisions got;
  const ConversionReport report = resolve(parameters, {}, {{"", kMxLinear}});
  for (const ConversionRow& row : report.converted()) got.emplace(row.fqn, *row.config);
  EXPECT_EQ(got, (Decisions{{"mixer.w", kMxLinear}, {"out.weight", kMxLinear}}));
  EXPECT_EQ(row_of(report, "mixer.w").reason,
            "converted if used through at::linear, mm, addmm or matmul");
  EXPECT_EQ(row_of(report, "out.weight").reason, "converted");
  EXPECT_THAT(row_of(report, "mamba.A_log").reason, HasSubstr("'log' in its name"));
  EXPECT_THAT(row_of(report, "lstm.weight_hh_l0").reason, HasSubstr("got a parameter of LSTM"));
  EXPECT_THAT(row_of(report, "old.weight").reason, HasSubstr("linear->weight"));
}

TEST(Resolve, AnExactKeyIsObeyedOrRefused) {
  using enum OwnerKind;
  const std::vector<ParameterInfo> parameters = {
      {"latents", {1, 32, 16}},
      {"A_log", {32, 16}},
      {"stem.weight", {16, 4, 3}, WITHOUT_PRODUCTS, "bfloat16", "Conv1d"},
  };
  EXPECT_EQ(resolve(parameters, {}, {{"latents", kRceil}, {"A_log", kMxLinear}}).converted().size(),
            2u);
  EXPECT_THAT(error_of([&] {
                resolve(parameters, {}, {{"stem.weight", kRceil}});
              }),
              AllOf(HasSubstr("key 'stem.weight'"), HasSubstr("got a parameter of Conv1d")));
  // The module's name is not the parameter's.
  EXPECT_THAT(error_of([&] {
                resolve(parameters, {}, {{"stem", kRceil}});
              }),
              HasSubstr("'stem' can apply to nothing"));
}

TEST(Resolve, KeysThatDecideNothingButNameSomethingAreFine) {
  // Shadowed by a better key, or leaving alone what would be left alone anyway.
  EXPECT_NO_THROW(decisions({{"output.weight", kMxLinear}, {"re:output", kFloat8}}));
  EXPECT_NO_THROW(decisions({{"layers.0.norm", kAlone}, {"output", kMxLinear}}));
  EXPECT_NO_THROW(resolve(model(), {"dropout"}, {{"dropout", kAlone}, {"re:drop.*", kAlone}}));
  EXPECT_NO_THROW(resolve({}, {}, {{"_default", kAlone}}));
  EXPECT_NO_THROW(decisions({}));
}

TEST(Resolve, UnmatchedKeysCanBeReportedInstead) {
  for (const Unmatched unmatched : {Unmatched::WARN, Unmatched::IGNORE}) {
    const ConversionReport report = resolve(
        model(), {}, {{"typo", kRceil}, {"output", kMxLinear}, {"re:.*bias", kRceil}}, unmatched);
    EXPECT_THAT(report.unmatched_keys, ElementsAre("typo", "re:.*bias"));
    EXPECT_EQ(report.converted().size(), 1u);
  }
}

TEST(Resolve, GuessesOwnersFromNames) {
  EXPECT_EQ(guess_owner("tok_embeddings.weight", {64, 16}), OwnerKind::EMBEDDING);
  EXPECT_EQ(guess_owner("model.embed_tokens.weight", {64, 16}), OwnerKind::EMBEDDING);
  EXPECT_EQ(guess_owner("transformer.wte.weight", {64, 16}), OwnerKind::EMBEDDING);
  EXPECT_EQ(guess_owner("embedder.layers.0.wq.weight", {16, 16}), OwnerKind::LINEAR);
  EXPECT_EQ(guess_owner("output.weight", {64, 16}), OwnerKind::LINEAR);
  EXPECT_EQ(guess_owner("norm.weight", {16}), OwnerKind::OTHER);
  EXPECT_EQ(guess_owner("moe.experts.w1", {2, 64, 16}), OwnerKind::OTHER);
  EXPECT_EQ(guess_owner("weight", {64, 16}), OwnerKind::LINEAR);
}

TEST(Report, PrintsATable) {
  ConversionReport report = resolve({{"größe.w", {2, 32, 16}}, {"norm", {16}}}, {},
                                    {{"re:.*w", kRceil}, {"typo", kAlone}}, Unmatched::IGNORE);
  EXPECT_EQ(report.to_table(),
            "parameter  shape        dtype     recipe       decided by\n"
            "größe.w    (2, 32, 16)  bfloat16  mxfp8_rceil  're:.*w', if used through "
            "at::_grouped_mm, bmm or matmul\n"
            "norm       (16)         bfloat16  -            no key names it\n"
            "1 of 2 parameters converted.\n"
            "Keys that decided nothing: 'typo'.\n");
  std::ostringstream out;
  out << report;
  EXPECT_EQ(out.str(), report.to_table());
}

TEST(Report, PrintsJsonWhateverTheNames) {
  MXFP8GroupedMMConfig own{.out_dtype = at::kFloat, .wgrad_with_hp = true};
  const ConversionReport report =
      resolve({{"a\xff\"b", {2, 32, 16}}, {"norm", {16}}}, {}, {{"", own}});
  const nlohmann::json json = nlohmann::json::parse(report.to_json());
  EXPECT_EQ(json["converted"], 1);
  EXPECT_EQ(json["parameters"][0]["fqn"], "a\xef\xbf\xbd\"b");
  EXPECT_EQ(json["parameters"][0]["config"], to_string(Config(own)));
  EXPECT_EQ(json["parameters"][0]["key"], "");
  EXPECT_EQ(json["parameters"][0]["shape"], (std::vector<int64_t>{2, 32, 16}));
  EXPECT_TRUE(json["parameters"][1]["config"].is_null());
  EXPECT_TRUE(json["parameters"][1]["key"].is_null());
  EXPECT_THAT(json["unmatched_keys"], IsEmpty());
}

// ---- the tables that torchao was run on -------------------------------------
struct Conformance {
  std::vector<ParameterInfo> parameters;
  std::vector<std::string> modules;
  nlohmann::json tables;
};

OwnerKind owner_of(const std::string& fqn, const std::map<std::string, std::string>& classes) {
  const size_t dot = fqn.rfind('.');
  const std::string& name = classes.at(dot == std::string::npos ? "" : fqn.substr(0, dot));
  if (name == "Linear") return OwnerKind::LINEAR;
  return name == "Embedding" ? OwnerKind::EMBEDDING : OwnerKind::OTHER;
}

Conformance read_conformance(const std::filesystem::path& file) {
  std::ifstream stream(file);
  const nlohmann::json json = nlohmann::json::parse(stream);
  Conformance c{.parameters = {}, .modules = {}, .tables = json["tables"]};
  std::map<std::string, std::string> classes;
  for (const auto& module : json["modules"]) {
    c.modules.push_back(module[0]);
    classes[module[0]] = module[1];
  }
  for (const auto& parameter : json["parameters"]) {
    c.parameters.push_back({parameter[0], parameter[1], owner_of(parameter[0], classes)});
  }
  return c;
}

const std::map<std::string, Config>& configs_by_name() {
  static const std::map<std::string, Config> configs = {
      {"mx_rceil", recipe("mxfp8_rceil")},
      {"mx_emu", recipe("mxfp8_emulated_rceil")},
      {"mx_hp", recipe("mxfp8_rceil_wgrad_with_hp")},
      {"fp8", recipe("fp8_rowwise")},
      {"linear", recipe("mxfp8_emulated")},
      {"linear_rceil", recipe("mxfp8_cublas_rceil")}};
  return configs;
}

TEST(Resolve, AgreesWithTheConformanceTables) {
  const char* folder = std::getenv("MOE8_CONFORMANCE_DIR");
  if (!folder) GTEST_SKIP() << "MOE8_CONFORMANCE_DIR is not set";
  const Conformance c = read_conformance(std::filesystem::path(folder) / "fqn_to_config.json");
  ASSERT_FALSE(c.tables.empty());
  for (const auto& table : c.tables) {
    FqnToConfig config;
    for (const auto& entry : table["config"]) {
      config.emplace_back(entry[0], entry[1].is_null()
                                        ? std::nullopt
                                        : std::optional(configs_by_name().at(entry[1])));
    }
    SCOPED_TRACE(table["config"].dump());
    const auto run = [&] { return resolve(c.parameters, c.modules, config, Unmatched::IGNORE); };
    if (table["expected"].contains("error_names")) {
      for (const std::string name : table["expected"]["error_names"]) {
        EXPECT_THAT(error_of(run), HasSubstr("'" + name + "'"));
      }
      continue;
    }
    Decisions expected;
    for (const auto& [fqn, name] : table["expected"]["converted"].items()) {
      expected.emplace(fqn, configs_by_name().at(name));
    }
    Decisions got;
    for (const ConversionRow& row : run().converted()) got.emplace(row.fqn, *row.config);
    EXPECT_EQ(got, expected);
  }
}

}  // namespace
}  // namespace moe8
