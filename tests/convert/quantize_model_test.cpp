// SPDX-License-Identifier: BSD-3-Clause
// quantize_ and dequantize_ on live models: which parameters, what the report says, and what a
// conversion survives.
#include "moe8/quantize_model.h"

#include <torch/torch.h>

#include <sstream>
#include <string>
#include <vector>

#include "moe8/grouped_mm.h"
#include "moe8/linear.h"
#include "testing/compare.h"
#include "testing/fill.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

using at::Tensor;
using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::offs_of;
using testing::same_bits;
using testing::wide_normal;
namespace nn = torch::nn;

const Config kRceil = recipe("mxfp8_rceil");
const Config kFp8 = recipe("fp8_rowwise");
const Config kHp = recipe("mxfp8_rceil_wgrad_with_hp");
const Config kLinear = recipe("mxfp8_emulated");
const Config kFloat8 = recipe("rowwise");
constexpr auto kAlone = std::nullopt;

struct ExpertsImpl : nn::Cloneable<ExpertsImpl> {
  ExpertsImpl(int64_t count, int64_t dim, int64_t hidden)
      : count_(count), dim_(dim), hidden_(hidden) {
    reset();
  }
  void reset() override {
    w1 = register_parameter("w1", torch::randn({count_, hidden_, dim_}) / 8);
    w2 = register_parameter("w2", torch::randn({count_, dim_, hidden_}) / 8);
  }
  Tensor forward(const Tensor& x, const Tensor& offs) {
    const Tensor hidden = at::silu(at::_grouped_mm(x, w1.transpose(-2, -1), offs));
    return at::_grouped_mm(hidden, w2.transpose(-2, -1), offs);
  }
  Tensor w1, w2;

 private:
  int64_t count_, dim_, hidden_;
};
TORCH_MODULE(Experts);

// The model of torchao's tests: 8 experts between two linears, dim 128, hidden 256, bf16.
struct ModelImpl : nn::Cloneable<ModelImpl> {
  ModelImpl() { reset(); }
  void reset() override {
    pre_moe = register_module("pre_moe", nn::Linear(128, 128));
    experts = register_module("experts", Experts(8, 128, 256));
    router = register_module("router", nn::Linear(nn::LinearOptions(128, 8).bias(false)));
    post_moe = register_module("post_moe", nn::Linear(nn::LinearOptions(128, 128).bias(false)));
    to(at::kBFloat16);
  }
  Tensor forward(const Tensor& x, const Tensor& offs) {
    return post_moe(experts(pre_moe(x), offs));
  }
  nn::Linear pre_moe{nullptr}, router{nullptr}, post_moe{nullptr};
  Experts experts{nullptr};
};
TORCH_MODULE(Model);

const Tensor& offs() {
  static const Tensor ends = offs_of({3, 0, 9, 1, 32, 2, 0, 17});
  return ends;
}
Tensor input(at::ScalarType dtype = at::kBFloat16) {
  return wide_normal({64, 128}, dtype, 3, 1);
}

const FqnToConfig& usual_keys() {
  static const FqnToConfig config = {{"re:.*experts.*", kRceil},
                                     {"re:^(pre_moe|post_moe)$", kLinear}};
  return config;
}

ConversionRow row_of(const ConversionReport& report, const std::string& fqn) {
  for (const ConversionRow& row : report.rows) {
    if (row.fqn == fqn) return row;
  }
  ADD_FAILURE() << "no row " << fqn;
  return {};
}

// ---- which parameters: what torchao's tests of FqnToConfig check ------------
struct Expected {
  std::optional<Config> pre{}, router{}, post{}, w1{}, w2{};
};

void expect_configs(const Model& model, const Expected& expected) {
  EXPECT_EQ(config_of(model->pre_moe->weight), expected.pre);
  EXPECT_EQ(config_of(model->router->weight), expected.router);
  EXPECT_EQ(config_of(model->post_moe->weight), expected.post);
  EXPECT_EQ(config_of(model->experts->w1), expected.w1);
  EXPECT_EQ(config_of(model->experts->w2), expected.w2);
  EXPECT_EQ(config_of(model->pre_moe->bias), std::nullopt);
}

TEST(QuantizeModel, ByExactModuleNames) {
  Model model;
  quantize_(*model, {{"experts", kRceil}, {"pre_moe", kLinear}, {"post_moe", kFloat8}});
  expect_configs(model, {.pre = kLinear, .post = kFloat8, .w1 = kRceil, .w2 = kRceil});
}

TEST(QuantizeModel, ByPatterns) {
  Model model;
  quantize_(*model, usual_keys());
  expect_configs(model, {.pre = kLinear, .post = kLinear, .w1 = kRceil, .w2 = kRceil});
}

TEST(QuantizeModel, ExpertsOnlyOrDenseOnly) {
  Model experts;
  quantize_(*experts, {{"experts", kHp}});
  expect_configs(experts, {.w1 = kHp, .w2 = kHp});
  Model dense;
  quantize_(*dense, {{"re:^(pre_moe|post_moe)$", kLinear}});
  expect_configs(dense, {.pre = kLinear, .post = kLinear});
  Model some;
  quantize_(*some, {{"experts.w2", kRceil}, {"post_moe", kLinear}});
  expect_configs(some, {.post = kLinear, .w2 = kRceil});
}

TEST(QuantizeModel, EachParameterItsOwnRecipe) {
  Model model;
  quantize_(
      *model,
      {{"experts.w1", kRceil}, {"experts.w2", kFp8}, {"_default", kFloat8}, {"router", kAlone}});
  expect_configs(model, {.pre = kFloat8, .post = kFloat8, .w1 = kRceil, .w2 = kFp8});
}

TEST(QuantizeModel, ByFilter) {
  Model model;
  const ConversionReport report = quantize_(*model, kLinear);
  expect_configs(model, {.pre = kLinear, .router = kLinear, .post = kLinear});
  EXPECT_EQ(report.converted().size(), 3u);
  EXPECT_EQ(row_of(report, "pre_moe.weight").key, "pre_moe");
  EXPECT_THAT(row_of(report, "pre_moe.bias").reason, HasSubstr("1-D"));
  EXPECT_THAT(row_of(report, "experts.w1").reason, HasSubstr("filter"));

  std::vector<std::string> asked;
  quantize_(*model, kRceil, [&](const nn::Module&, const std::string& fqn) {
    asked.push_back(fqn);
    return fqn == "experts";
  });
  EXPECT_THAT(asked, ElementsAre("", "pre_moe", "experts", "router", "post_moe"));
  expect_configs(model,
                 {.pre = kLinear, .router = kLinear, .post = kLinear, .w1 = kRceil, .w2 = kRceil});
}

TEST(QuantizeModel, AFilterThatPassesTheRootIsAskedOnce) {
  Model model;
  int asked = 0;
  quantize_(*model, kLinear, [&](const nn::Module&, const std::string&) { return ++asked > 0; });
  EXPECT_EQ(asked, 1);
  expect_configs(model, {.pre = kLinear, .router = kLinear, .post = kLinear});
}

TEST(QuantizeModel, AFilterThatConvertsNothingIsAnError) {
  Model model;
  EXPECT_THAT(error_of([&] { quantize_(*model, kRceil); }),
              AllOf(HasSubstr("[quantize_] filter"), HasSubstr("3-D expert weights"),
                    HasSubstr("is_linear")));
  EXPECT_THAT(quantize_(*model, kRceil, is_linear, {.unmatched = Unmatched::IGNORE}).converted(),
              IsEmpty());
  EXPECT_THAT(error_of([&] { quantize_(*model, kLinear, FilterFn()); }), HasSubstr("empty"));
  MXLinearConfig bad_block;
  bad_block.block_size = 8;
  EXPECT_THAT(error_of([&] { quantize_(*model, Config(bad_block)); }), HasSubstr("block_size"));
}

TEST(QuantizeModel, ErrorsConvertNothing) {
  Model model;
  for (const FqnToConfig& keys : std::vector<FqnToConfig>{
           {{"pre_moe", kLinear}, {"expert", kRceil}},
           {{"pre_moe", kLinear}, {"re:(", kRceil}},
           {{"pre_moe", kLinear}, {"experts.w1", kLinear}},
           {{"pre_moe", kLinear}, {"pre_moe", kLinear}},
       }) {
    EXPECT_NE(error_of([&] { quantize_(*model, keys); }), "(no error)");
    expect_configs(model, {});
  }
  EXPECT_THAT(error_of([&] { quantize_(*model, {{"expert", kRceil}}); }), HasSubstr("experts"));
}

TEST(QuantizeModel, DryRunOnlyReports) {
  Model model;
  const ConversionReport dry = quantize_(*model, usual_keys(), {.dry_run = true});
  expect_configs(model, {});
  EXPECT_EQ(dry.to_table(), quantize_(*model, usual_keys()).to_table());
}

TEST(QuantizeModel, ReportHasARowForEveryParameterInOrder) {
  Model model;
  const ConversionReport report = quantize_(*model, usual_keys());
  std::vector<std::string> names;
  for (const ConversionRow& row : report.rows) names.push_back(row.fqn);
  EXPECT_EQ(names, model->named_parameters().keys());
  EXPECT_EQ(row_of(report, "experts.w1").shape, (std::vector<int64_t>{8, 256, 128}));
  EXPECT_EQ(row_of(report, "experts.w1").dtype, "bfloat16");
  EXPECT_EQ(row_of(report, "experts.w1").key, "re:.*experts.*");
  EXPECT_EQ(report.converted().size(), 4u);
}

TEST(QuantizeModel, ConvertingAgain) {
  Model model;
  quantize_(*model, usual_keys());
  const ConversionReport same = quantize_(*model, usual_keys());
  EXPECT_EQ(row_of(same, "experts.w1").replaced, std::nullopt);
  EXPECT_THAT(row_of(same, "experts.w1").reason, HasSubstr("converted if used through"));
  EXPECT_EQ(row_of(same, "pre_moe.weight").reason, "converted");

  const ConversionReport other = quantize_(*model, {{"experts", kFp8}, {"pre_moe", kAlone}});
  EXPECT_EQ(row_of(other, "experts.w1").replaced, kRceil);
  EXPECT_THAT(row_of(other, "experts.w1").reason, HasSubstr("replacing MXFP8GroupedMMConfig"));
  EXPECT_EQ(row_of(other, "pre_moe.weight").replaced, kLinear);
  EXPECT_THAT(row_of(other, "pre_moe.weight").reason, HasSubstr("taken back"));
  EXPECT_EQ(row_of(other, "post_moe.weight").config, kLinear);
  EXPECT_THAT(row_of(other, "post_moe.weight").reason, HasSubstr("earlier"));
  expect_configs(model, {.post = kLinear, .w1 = kFp8, .w2 = kFp8});
}

TEST(QuantizeModel, OtherDtypesStayAloneOrAreErrors) {
  Model model;
  model->to(at::kHalf);
  const ConversionReport report = quantize_(*model, usual_keys(), {.unmatched = Unmatched::IGNORE});
  EXPECT_THAT(report.converted(), IsEmpty());
  EXPECT_THAT(row_of(report, "experts.w1").reason, HasSubstr("got float16"));
  EXPECT_THAT(error_of([&] { quantize_(*model, usual_keys()); }), HasSubstr("float16"));
  EXPECT_THAT(error_of([&] {
                quantize_(*model, {{"experts.w1", kRceil}});
              }),
              AllOf(HasSubstr("'experts.w1'"), HasSubstr("float16")));
  model->to(at::kDouble);
  EXPECT_THAT(error_of([&] { quantize_(*model, {{"experts.w1", kRceil}}); }), HasSubstr("float64"));
}

TEST(QuantizeModel, AFilterOnOtherDtypesSaysThatTheyAreTheReason) {
  Model model;
  model->to(at::kHalf);
  EXPECT_THAT(error_of([&] { quantize_(*model, kLinear); }),
              AllOf(HasSubstr("[quantize_] filter"), HasSubstr("got 3 modules"),
                    HasSubstr("for example pre_moe.weight: expected bfloat16 or float32, got "
                              "float16")));
}

// ---- what parameters are for ------------------------------------------------
struct ManyKinds : nn::Module {
  nn::Conv1d conv{register_module("conv", nn::Conv1d(nn::Conv1dOptions(32, 32, 4)))};
  nn::Conv2d patches{register_module("patches", nn::Conv2d(nn::Conv2dOptions(3, 32, 4)))};
  nn::Bilinear bilinear{register_module("bilinear", nn::Bilinear(32, 32, 4))};
  nn::LSTM lstm{register_module("lstm", nn::LSTM(32, 32))};
  nn::GRUCell cell{register_module("cell", nn::GRUCell(32, 32))};
  nn::Embedding tokens{register_module("tokens", nn::Embedding(64, 32))};
  nn::LayerNorm norm{register_module("norm", nn::LayerNorm(nn::LayerNormOptions({8, 32})))};
  nn::MultiheadAttention attention{
      register_module("attention", nn::MultiheadAttention(nn::MultiheadAttentionOptions(32, 2)))};
  nn::Linear linear{register_module("linear", nn::Linear(32, 32))};
  Tensor experts{register_parameter("experts", torch::randn({4, 32, 32}))};
  Tensor positions{register_parameter("positions", torch::randn({1, 16, 32}))};
  Tensor bias{register_parameter("bias", torch::randn({4, 32}))};
  Tensor A_log{register_parameter("A_log", torch::randn({32, 16}))};
  Tensor counts{register_buffer("counts", torch::zeros({4, 32}))};
};

std::vector<std::string> converted_names(const ConversionReport& report) {
  std::vector<std::string> names;
  for (const ConversionRow& row : report.converted()) names.push_back(row.fqn);
  return names;
}

TEST(QuantizeModel, RankAloneMakesNoWeight) {
  ManyKinds model;
  const auto all = [](const nn::Module&, const std::string&) { return true; };
  for (const ConversionReport& report : {quantize_(model, {{"", kRceil}}, {.dry_run = true}),
                                         quantize_(model, {{"re:.*", kRceil}}, {.dry_run = true}),
                                         quantize_(model, kRceil, all, {.dry_run = true})}) {
    EXPECT_THAT(converted_names(report), ElementsAre("experts"));
    EXPECT_THAT(row_of(report, "conv.weight").reason, HasSubstr("got a parameter of Conv1d"));
    EXPECT_THAT(row_of(report, "bilinear.weight").reason, HasSubstr("got a parameter of Bilinear"));
    EXPECT_THAT(row_of(report, "positions").reason, HasSubstr("'positions' in its name"));
  }
  for (const ConversionReport& report : {quantize_(model, {{"", kLinear}}, {.dry_run = true}),
                                         quantize_(model, kLinear, all, {.dry_run = true})}) {
    EXPECT_THAT(converted_names(report), ElementsAre("attention.in_proj_weight",
                                                     "attention.out_proj.weight", "linear.weight"));
    EXPECT_THAT(row_of(report, "lstm.weight_ih_l0").reason, HasSubstr("got a parameter of LSTM"));
    EXPECT_THAT(row_of(report, "cell.weight_hh").reason, HasSubstr("got a parameter of GRUCell"));
    EXPECT_THAT(row_of(report, "tokens.weight").reason, HasSubstr("Embedding"));
    EXPECT_THAT(row_of(report, "norm.weight").reason, HasSubstr("got a parameter of LayerNorm"));
    EXPECT_THAT(row_of(report, "bias").reason, HasSubstr("'bias' in its name"));
    EXPECT_THAT(row_of(report, "A_log").reason, HasSubstr("'log' in its name"));
  }
  EXPECT_EQ(quantize_(model, {{"positions", kRceil}}).converted().size(), 1u);
  EXPECT_THAT(error_of([&] {
                quantize_(model, {{"conv.weight", kRceil}});
              }),
              AllOf(HasSubstr("'conv.weight'"), HasSubstr("got a parameter of Conv1d")));
}

TEST(QuantizeModel, ABufferIsNamedAsOne) {
  ManyKinds model;
  EXPECT_THAT(error_of([&] {
                quantize_(model, {{"counts", kLinear}});
              }),
              HasSubstr("'counts' names the buffer 'counts', and only parameters"));
}

TEST(QuantizeModel, ALinearThatComputesWithAnotherTensorIsLeftAlone) {
  ManyKinds model;
  model.linear->weight = torch::randn({32, 32});
  const ConversionReport report = quantize_(model, {{"", kLinear}});
  EXPECT_THAT(row_of(report, "linear.weight").reason, HasSubstr("linear->weight"));
  EXPECT_EQ(row_of(report, "linear.weight").config, std::nullopt);
  EXPECT_THAT(error_of([&] {
                quantize_(model, {{"linear.weight", kLinear}});
              }),
              HasSubstr("set_data()"));
}

// ---- shared and odd models --------------------------------------------------
struct LinearOf : nn::LinearImpl {
  explicit LinearOf(const Tensor& shared)
      : LinearImpl(nn::LinearOptions(shared.size(1), shared.size(0)).bias(false)) {
    weight = shared;
    parameters_["weight"] = shared;
  }
};

// An output layer that shares the embedding's weight, and one linear under two names.
struct Tied : nn::Module {
  Tied() {
    tok = register_module("tok", nn::Embedding(32, 64));
    output = register_module("output", std::make_shared<LinearOf>(tok->weight));
    first = register_module("first", nn::Linear(64, 64));
    register_module("second", first);
  }
  nn::Embedding tok{nullptr};
  std::shared_ptr<LinearOf> output;
  nn::Linear first{nullptr};
};

TEST(QuantizeModel, TiedParametersAreConvertedOnce) {
  Tied model;
  const ConversionReport report = quantize_(model, {{"output", kLinear}, {"second", kFloat8}});
  EXPECT_EQ(report.rows.size(), 3u);  // the embedding, and the linear's weight and bias
  EXPECT_EQ(config_of(model.tok->weight), kLinear);
  EXPECT_EQ(config_of(model.first->weight), kFloat8);
  EXPECT_THAT(row_of(report, "tok.weight").reason, HasSubstr("same tensor as output.weight"));
  EXPECT_EQ(row_of(report, "first.weight").key, "second");
  // The embedding still looks up; only the product changed.
  const Tensor ids = torch::tensor({1, 5, 31});
  const Tensor x = model.tok(ids);
  EXPECT_TRUE(same_bits(model.tok->weight.detach().index_select(0, ids), x.detach()));
  EXPECT_TRUE(
      same_bits(quantize_then_linear(x, model.tok->weight, {}, kLinear), model.output->forward(x)));
}

TEST(QuantizeModel, TiedParametersWithTwoConfigsAreAnError) {
  Tied model;
  EXPECT_THAT(error_of([&] {
                quantize_(model, {{"first", kLinear}, {"second", kFloat8}});
              }),
              AllOf(HasSubstr("first.weight"), HasSubstr("second.weight"), HasSubstr("key 'first'"),
                    HasSubstr("key 'second'")));
  EXPECT_THAT(error_of([&] {
                quantize_(model, {{"re:first", kAlone}, {"_default", kFloat8}});
              }),
              HasSubstr("left alone"));
  EXPECT_EQ(config_of(model.first->weight), std::nullopt);
  EXPECT_NO_THROW(quantize_(model, {{"first", kLinear}, {"second", kLinear}}));
}

TEST(QuantizeModel, AWeightThatIsAViewOfABuffer) {
  // Flat parameter buffers: the views of such a weight know the buffer, not the weight.
  struct Flat : nn::Module {
    Flat() {
      constexpr int64_t kElements = int64_t{64} * 64;
      const Tensor buffer = wide_normal({2 * kElements}, at::kFloat, 4, 1);
      a = register_parameter("a", buffer.narrow(0, 0, kElements).view({64, 64}));
      b = register_parameter("b", buffer.narrow(0, kElements, kElements).view({64, 64}));
    }
    Tensor a, b;
  } model;
  ASSERT_TRUE(model.a.is_view());
  quantize_(model, {{"a", kLinear}});
  const Tensor x = wide_normal({3, 64}, at::kFloat, 5, 1);
  EXPECT_TRUE(same_bits(quantize_then_linear(x, model.a.detach().clone(), {}, kLinear),
                        at::mm(x, model.a.t())));
  EXPECT_EQ(at::mm(x, model.b.t()).grad_fn()->name(), "MmBackward0");
  dequantize_(model);
  EXPECT_EQ(at::mm(x, model.a.t()).grad_fn()->name(), "MmBackward0");
}

TEST(QuantizeModel, AWeightWhoseRowsLieBetweenAnothers) {
  struct Interleaved : nn::Module {
    Interleaved() {
      const Tensor buffer = wide_normal({64, 2, 64}, at::kFloat, 4, 1);
      a = register_parameter("a", buffer.select(1, 0));
      b = register_parameter("b", buffer.select(1, 1));
    }
    Tensor a, b;
  } model;
  quantize_(model, {{"a", kLinear}});
  const Tensor x = wide_normal({3, 64}, at::kFloat, 5, 1);
  EXPECT_TRUE(same_bits(quantize_then_linear(x, model.a.detach().clone(), {}, kLinear),
                        at::mm(x, model.a.t())));
  EXPECT_EQ(at::mm(x, model.b.t()).grad_fn()->name(), "MmBackward0");
}

TEST(QuantizeModel, AModelThatContainsItselfIsAnError) {
  auto model = std::make_shared<nn::SequentialImpl>();
  auto child = std::make_shared<nn::SequentialImpl>();
  model->register_module("child", child);
  child->register_module("loop", model);
  EXPECT_THAT(error_of([&] {
                quantize_(*model, {{"_default", kLinear}});
              }),
              HasSubstr("'child.loop', which contains itself"));
  child->unregister_module("loop");
}

// ---- what a conversion survives ---------------------------------------------
struct Results {
  Tensor out, grad_x, grad_pre, grad_w1;
};

Results train_step(Model& model, const Tensor& values) {
  model->zero_grad();
  const Tensor x = values.detach().clone().requires_grad_();
  const Tensor y = model(x, offs());
  y.backward(wide_normal(y.sizes(), y.scalar_type(), 6, 1));
  return {y.detach(), x.grad(), model->pre_moe->weight.grad(), model->experts->w1.grad()};
}

void expect_same(const Results& a, const Results& b) {
  EXPECT_TRUE(same_bits(a.out, b.out));
  EXPECT_TRUE(same_bits(a.grad_x, b.grad_x));
  EXPECT_TRUE(same_bits(a.grad_pre, b.grad_pre));
  EXPECT_TRUE(same_bits(a.grad_w1, b.grad_w1));
}

// The same step without a hook: written with the public operations.
Tensor forward_by_operations(Model& model, const Tensor& x) {
  const auto experts = [&](const Tensor& a, const Tensor& w) {
    return quantize_then_scaled_grouped_mm(a, w.detach().transpose(-2, -1), offs(), kRceil);
  };
  const Tensor pre = quantize_then_linear(x, model->pre_moe->weight.detach(),
                                          model->pre_moe->bias.detach(), kLinear);
  const Tensor moe = experts(at::silu(experts(pre, model->experts->w1)), model->experts->w2);
  return quantize_then_linear(moe, model->post_moe->weight.detach(), {}, kLinear);
}

TEST(QuantizeModel, TheModelComputesWithThePublicOperations) {
  Model model;
  const Results plain = train_step(model, input());
  quantize_(*model, usual_keys());
  const Results low = train_step(model, input());
  EXPECT_TRUE(same_bits(forward_by_operations(model, input()), low.out));
  EXPECT_FALSE(at::equal(plain.out, low.out));
  // Four low-precision products in a row; one alone has about 27 dB.
  EXPECT_GT(testing::sqnr_db(plain.out, low.out), 20);
  EXPECT_GT(testing::sqnr_db(plain.grad_x, low.grad_x), 19);
  EXPECT_GT(testing::sqnr_db(plain.grad_w1, low.grad_w1), 19);
}

TEST(QuantizeModel, DequantizeGivesLibTorchBack) {
  Model model;
  const Results plain = train_step(model, input());
  quantize_(*model, usual_keys());
  train_step(model, input());
  const Tensor alias = model->pre_moe->weight.detach();
  EXPECT_EQ(config_of(alias), kLinear);
  dequantize_(*model);
  expect_same(plain, train_step(model, input()));
  EXPECT_EQ(config_of(alias), std::nullopt);
  expect_configs(model, {});
  dequantize_(*model);  // of a plain model: nothing happens
}

TEST(QuantizeModel, ParametersKeepTheirIdentity) {
  Model model;
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  model->router->weight.set_requires_grad(false);
  model->post_moe->weight.mutable_grad() = torch::ones_like(model->post_moe->weight);
  int hook_calls = 0;
  model->experts->w1.register_hook([&](const Tensor&) { ++hook_calls; });
  std::vector<const void*> before;
  for (const Tensor& p : model->parameters()) before.push_back(p.unsafeGetTensorImpl());
  const void* data = model->experts->w1.data_ptr();

  quantize_(*model, usual_keys());
  std::vector<const void*> after;
  for (const Tensor& p : model->parameters()) after.push_back(p.unsafeGetTensorImpl());
  EXPECT_EQ(before, after);
  EXPECT_EQ(model->experts->w1.data_ptr(), data);
  EXPECT_FALSE(model->router->weight.requires_grad());
  EXPECT_TRUE(at::equal(model->post_moe->weight.grad(), torch::ones_like(model->post_moe->weight)));

  optimizer.zero_grad();
  const Tensor old = model->experts->w1.detach().clone();
  train_step(model, input());
  EXPECT_EQ(hook_calls, 1);
  optimizer.step();
  EXPECT_FALSE(at::equal(old, model->experts->w1));
  // And the next step computes with the new values.
  EXPECT_TRUE(same_bits(forward_by_operations(model, input()), train_step(model, input()).out));
}

TEST(QuantizeModel, SurvivesModuleTo) {
  Model model;
  quantize_(*model, usual_keys());
  const Results before = train_step(model, input());
  model->to(at::kFloat);
  expect_configs(model, {.pre = kLinear, .post = kLinear, .w1 = kRceil, .w2 = kRceil});
  EXPECT_EQ(model->experts->w1.scalar_type(), at::kFloat);
  model->to(at::kBFloat16);
  model->to(at::kCPU);
  expect_same(before, train_step(model, input()));
  dequantize_(*model);
  expect_configs(model, {});
  EXPECT_EQ(model->pre_moe(input()).grad_fn()->name(), "AddmmBackward0");
}

TEST(QuantizeModel, SurvivesSaveAndLoad) {
  Model model;
  quantize_(*model, usual_keys());
  const Results before = train_step(model, input());
  std::stringstream file;
  torch::save(model, file);

  Model plain;  // the file holds plain tensors
  torch::load(plain, file);
  expect_configs(plain, {});
  EXPECT_TRUE(same_bits(model->experts->w1.detach(), plain->experts->w1.detach()));
  quantize_(*plain, usual_keys());
  expect_same(before, train_step(plain, input()));

  Model converted;
  quantize_(*converted, usual_keys());
  file.clear();
  file.seekg(0);
  torch::load(converted, file);
  expect_same(before, train_step(converted, input()));
}

TEST(QuantizeModel, SurvivesSetData) {
  nn::Linear linear(64, 64);
  quantize_(*linear, kLinear);
  const Tensor x = wide_normal({3, 64}, at::kFloat, 5, 1);
  for (const Tensor& alias : {linear->weight.detach(), linear->weight.data()}) {
    EXPECT_TRUE(same_bits(quantize_then_linear(x, linear->weight, {}, kLinear).detach(),
                          at::linear(x, alias)));
  }
  linear->weight.set_data(wide_normal({64, 64}, at::kFloat, 6, 1));
  EXPECT_TRUE(same_bits(quantize_then_linear(x, linear->weight, linear->bias, kLinear), linear(x)));
  {
    const at::NoGradGuard no_grad;
    linear->weight.copy_(wide_normal({64, 64}, at::kFloat, 7, 1));
    linear->weight.mul_(2);
  }
  EXPECT_TRUE(same_bits(quantize_then_linear(x, linear->weight, linear->bias, kLinear), linear(x)));
}

TEST(QuantizeModel, ClonesAreConvertedOnTheirOwn) {
  Model model;
  quantize_(*model, usual_keys());
  const Results before = train_step(model, input());
  Model copy(std::dynamic_pointer_cast<ModelImpl>(model->clone()));
  expect_same(before, train_step(copy, input()));
  dequantize_(*model);
  expect_configs(copy, {.pre = kLinear, .post = kLinear, .w1 = kRceil, .w2 = kRceil});
  expect_same(before, train_step(copy, input()));
  dequantize_(*copy);
  expect_configs(copy, {});
}

TEST(QuantizeModel, OutlivesTheModel) {
  // Tags go with their weights: new tensors at old addresses are plain.
  for (int i = 0; i < 20; ++i) {
    nn::Linear linear(64, 64);
    EXPECT_EQ(config_of(linear->weight), std::nullopt);
    EXPECT_EQ(linear(torch::ones({2, 64})).grad_fn()->name(), "AddmmBackward0");
    quantize_(*linear, kLinear);
  }
}

TEST(QuantizeModel, MasterWeightsInFloat32WithBf16Compute) {
  Model model;
  model->to(at::kFloat);
  quantize_(*model, usual_keys());
  // What a training loop with float32 master weights does by hand.
  const Tensor w1 = model->experts->w1.to(at::kBFloat16).transpose(-2, -1);
  const Tensor out = at::_grouped_mm(input(), w1, offs());
  EXPECT_TRUE(
      same_bits(quantize_then_scaled_grouped_mm(input(), w1.detach(), offs(), kRceil), out));
  out.backward(wide_normal(out.sizes(), at::kBFloat16, 6, 1));
  EXPECT_EQ(model->experts->w1.grad().scalar_type(), at::kFloat);
}

}  // namespace
}  // namespace moe8
