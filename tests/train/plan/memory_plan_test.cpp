// SPDX-License-Identifier: BSD-3-Clause
// Every number of a memory plan against the bytes that a small model really takes.
#include "train/plan/memory_plan.h"

#include <torch/torch.h>

#include <algorithm>
#include <functional>

#include "autograd/training_formats.h"
#include "formats/integers.h"
#include "moe8/float8.h"
#include "moe8/memory.h"
#include "moe8/mx.h"
#include "moe8/transformer.h"
#include "testing/compare.h"
#include "testing/counting_allocator.h"
#include "testing/folder.h"
#include "train/config/recipe_rules.h"
#include "train/stepper.h"

namespace moe8 {
namespace {

using testing::CountingAllocator;
using testing::error_of;
using ::testing::HasSubstr;

class MemoryPlanTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { CountingAllocator::install(); }
  static int64_t alive() { return CountingAllocator::get().alive(); }
};

constexpr int64_t kBatch = 3, kLength = 16;

RunConfig small_config() {
  RunConfig config;
  config.model.vocab_size = 272;
  config.model.dim = 40;
  config.model.n_layers = 3;
  config.model.n_heads = 5;
  config.model.n_kv_heads = 1;
  config.model.max_seq_len = kLength;
  config.model.dense_hidden_dim = 56;
  config.model.hidden_dim = 24;
  config.model.n_experts = 6;
  config.training.batch_size = kBatch;
  config.training.seq_len = kLength;
  return config;
}

// The shapes that models of configs/ differ in.
std::vector<RunConfig> variants() {
  std::vector<RunConfig> list(11, small_config());
  list[1].model.n_dense_layers = 0;
  list[1].model.n_shared_experts = 0;
  list[2].model.n_shared_experts = 2;
  list[2].model.score_function = ScoreFunction::SOFTMAX;
  list[2].model.route_norm = false;
  list[3].model.head_dim = 12;
  list[3].model.n_kv_heads = 5;
  list[3].model.top_k = 3;
  list[4].model.score_before_experts = true;
  list[5].model.n_dense_layers = 2;
  list[5].model.load_balance_coeff = 0;
  list[6].model.qk_norm = QkNorm::HEAD;
  list[6].model.tied_embeddings = true;
  list[7].model.qk_norm = QkNorm::WIDTH;
  list[7].model.attention_bias = true;
  list[8].model.attention_sinks = true;
  list[8].model.attention_bias = true;
  list[8].model.router_bias = true;
  list[8].model.expert_biases = true;
  list[8].model.activation = Activation::CLAMPED_SWIGLU;
  list[9].model.n_kv_heads = 5;
  list[9].model.kv_rank = 16;
  list[9].model.q_rank = 24;
  list[9].model.rotary_dim = 4;
  list[9].model.plain_head_dim = 8;
  list[9].model.n_expert_groups = 3;
  list[9].model.top_k_groups = 2;
  list[10] = list[9];
  list[10].model.q_rank = 0;
  list[10].model.plain_head_dim = 4;
  return list;
}

struct Batch {
  at::Tensor tokens = at::randint(256, {kBatch, kLength}, at::kLong);
  at::Tensor targets = at::randint(256, {kBatch * kLength}, at::kLong);
};

at::Tensor loss_of(Transformer& model, const Batch& batch) {
  const at::Tensor logits = model(batch.tokens).to(at::kFloat);
  return torch::nn::functional::cross_entropy(logits.flatten(0, 1), batch.targets);
}

// Offsets and counts of experts, their biases in float32, the loss, its number of tokens: what plans
// leave out.
int64_t left_out(const RunConfig& config) {
  const TransformerConfig& c = config.model;
  int64_t of_expert = 4;
  if (c.expert_biases) of_expert += 8 * c.hidden_dim;  // of gate and up
  if (c.expert_biases && config.training.weights != Weights::FLOAT32) of_expert += 4 * c.dim;
  return (c.n_layers - c.n_dense_layers) * c.n_experts * of_expert + 8;
}

// As a trainer's: backward, and a change of every weight in place.
void step(Transformer& model, const Batch& batch) {
  loss_of(model, batch).backward();
  const torch::NoGradGuard no_grad;
  for (at::Tensor& weight : model->parameters()) weight.mul_(1);
}

// Of a forward pass and its loss, which are alive.
void expect_planned(const RunConfig& config, const Batch& batch) {
  Transformer model(config.model, 1, dtype_of(config.training.weights));
  const FqnToConfig keys = to_fqn_config(config.conversion());
  if (!keys.empty()) quantize_(*model, keys);
  step(model, batch);  // from then on quantized weights are kept for later batches
  clear_weight_cache();
  const int64_t before = CountingAllocator::get().alive();
  const at::Tensor loss = loss_of(model, batch);
  const int64_t alive = CountingAllocator::get().alive() - before - left_out(config);
  const MemoryPlan plan = plan_memory(config);
  EXPECT_EQ(plan.weight_forms, double(weight_cache_use().bytes)) << to_toml(config);
  EXPECT_EQ(plan.saved() + plan.weight_forms, double(alive)) << to_toml(config);
  EXPECT_EQ(plan.step.begin_of_backward() - plan.step.fixed, double(alive)) << to_toml(config);
}

TEST_F(MemoryPlanTest, SavedActivationsAreWhatAForwardLeavesBehind) {
  const Batch batch;
  for (RunConfig config : variants()) {
    for (const Weights weights : {Weights::MASTER, Weights::FLOAT32}) {
      for (const char* recipe : {"bf16", "mxfp8_rceil", "fp8_rowwise"}) {
        config.training.weights = weights;
        config.training.recipe = recipe;
        expect_planned(config, batch);
      }
    }
  }
}

TEST_F(MemoryPlanTest, RecomputedPartsKeepTheirInputsAlone) {
  const Batch batch;
  for (RunConfig config : variants()) {
    for (const char* recipe : {"bf16", "mxfp8_rceil", "fp8_rowwise"}) {
      config.training.recipe = recipe;
      const double tokens = double(kBatch * kLength);
      const MemoryPlan everything = plan_memory(config);
      EXPECT_EQ(everything.recomputed_a_token, 0);
      for (const Recompute recompute : {Recompute::SELECTIVE, Recompute::FULL}) {
        config.training.activation_checkpointing = recompute;
        Transformer model(config.model, 1, dtype_of(config.training.weights));
        model->set_recompute(recompute);
        const FqnToConfig keys = to_fqn_config(config.conversion());
        if (!keys.empty()) quantize_(*model, keys);
        step(model, batch);
        clear_weight_cache();
        const int64_t before = alive();
        const at::Tensor loss = loss_of(model, batch);
        const int64_t scalars = 8;  // the loss, its number of tokens
        const int64_t kept = alive() - before - weight_cache_use().bytes - scalars;
        const MemoryPlan plan = plan_memory(config);
        EXPECT_EQ(plan.saved_a_token * tokens, double(kept)) << to_toml(config);
        EXPECT_GT(plan.recomputed_a_token, 0);
        EXPECT_LT(plan.saved_a_token, everything.saved_a_token);
      }
      config.training.activation_checkpointing = Recompute::NONE;
    }
  }
}

TEST_F(MemoryPlanTest, QuantizedFormsOfEveryRecipeAreCounted) {
  const Batch batch;
  RunConfig config = small_config();
  for (const std::string& name : training_recipes()) {
    config.training.recipe = name;
    expect_planned(config, batch);
  }
  config.training.recipe = "custom";  // half of a pair, and the output projection
  config.convert = {{"re:.*w1(.weight)?", "none", {}, ""},
                    {"re:.*experts.w3", "mxfp8_rceil", {}, ""},
                    {"_default", "mxfp8_cublas", {}, ""}};
  expect_planned(config, batch);
}

// Weights, masters, gradients at most and moments of a run's first step.
void expect_planned_step(const RunConfig& config, const Batch& batch, int64_t start,
                         const std::function<int64_t()>& alive) {
  const MemoryPlan plan = plan_memory(config);
  Transformer model(config.model, 1, dtype_of(config.training.weights));
  int64_t buffers = config.model.max_seq_len * config.model.head_width() / 2 * 8;  // rotations
  for (const at::Tensor& buffer : model->buffers()) buffers += int64_t(buffer.nbytes());
  EXPECT_EQ(plan.weights, double(alive() - start - buffers));

  const int64_t made = alive();
  Stepper stepper(*model, config.optimizer, config.training.weights,
                  config.training.sums_in_products());
  EXPECT_EQ(plan.masters, double(alive() - made));

  double gradients = 0;
  for (int64_t i = 0; i < config.training.accumulation; ++i) {
    loss_of(model, batch).backward();
    gradients = std::max(gradients, double(alive() - made) - plan.masters);
    stepper.accumulate();
    gradients = std::max(gradients, double(alive() - made) - plan.masters);
  }
  EXPECT_EQ(plan.gradients, gradients) << to_toml(config);
  EXPECT_EQ(plan.step.end_of_backward() - plan.step.fixed, gradients) << to_toml(config);
  stepper.step(1e-3);
  EXPECT_EQ(plan.optimizer, double(alive() - made) - plan.masters) << to_toml(config);
}

TEST_F(MemoryPlanTest, WeightsOptimizerAndGradientsAreWhatTrainingHolds) {
  const Batch batch;
  for (const Weights weights : {Weights::MASTER, Weights::BF16, Weights::FLOAT32}) {
    for (const int64_t accumulation : {1, 2, 3}) {
      for (const GradientSums sums : {GradientSums::ROUNDED, GradientSums::PRODUCTS}) {
        RunConfig config = small_config();
        config.training.weights = weights;
        config.training.accumulation = accumulation;
        config.training.gradient_sums = sums;
        expect_planned_step(config, batch, alive(), alive);
      }
    }
    for (const MomentDtype moments : {MomentDtype::FLOAT32, MomentDtype::BF16}) {
      RunConfig config = small_config();
      config.training.weights = weights;
      config.optimizer.moments = moments;
      config.optimizer.kind = OptimizerKind::MUON;
      expect_planned_step(config, batch, alive(), alive);
    }
  }
}

// What a GPU lets go of with the gradient of a single backward: weights/weight_cache.h.
TEST_F(MemoryPlanTest, QuantizedWeightsOfOneBackwardGoWithTheirGradients) {
  RunConfig config = small_config();
  config.training.device = TrainingDevice::CUDA;
  const auto plan_of = [&](const char* recipe, int64_t accumulation, Recompute recompute) {
    config.training.recipe = recipe;
    config.training.accumulation = accumulation;
    config.training.activation_checkpointing = recompute;
    return plan_memory(config);
  };
  double converted = 0;
  config.training.recipe = "fp8_rowwise";
  for (const ConversionRow& row : plan_conversion(config).converted()) {
    double elements = 1;
    for (const int64_t size : row.shape) elements *= double(size);
    converted += elements;
  }
  for (const auto& [recipe, bytes] :
       {std::pair{"fp8_rowwise", 1.0}, std::pair{"mxfp8_rceil", 2.0}}) {
    // The form for the gradient of the input; of what is computed again the form for the output.
    for (const Recompute recompute : {Recompute::NONE, Recompute::FULL}) {
      const MemoryPlan once = plan_of(recipe, 1, recompute);
      EXPECT_EQ(once.weight_forms, bytes * converted);
      EXPECT_EQ(once.step.end_of_backward(), once.step.fixed + once.gradients);
    }
    const MemoryPlan some = plan_of(recipe, 1, Recompute::SELECTIVE);
    EXPECT_GT(some.weight_forms, bytes * converted);
    EXPECT_LT(some.weight_forms, 2 * bytes * converted);
    const MemoryPlan twice = plan_of(recipe, 2, Recompute::NONE);
    EXPECT_EQ(twice.weight_forms, 2 * bytes * converted);
    EXPECT_EQ(twice.step.end_of_backward(),
              twice.step.fixed + twice.gradients + twice.weight_forms);
  }
}

// From its last part to its first, a backward trades what forward kept for gradients.
TEST_F(MemoryPlanTest, AStepHoldsMostSomewhereInBackward) {
  StepMemory step{.fixed = 100,
                  .parts = {{.saved = 1, .gradients = 2},
                            {.saved = 40, .passing = 5, .forms = 6, .gradients = 30},
                            {.saved = 10, .recomputed = 7, .gradients = 20}}};
  EXPECT_EQ(step.begin_of_backward(), 157);
  EXPECT_EQ(step.end_of_backward(), 152);
  EXPECT_EQ(step.peak(), 157 + 20 - 10 + 5);  // in the second part
  step.parts[1].passing = 0;
  EXPECT_EQ(step.peak(), 157 + 20 - 10);
  step.parts[2].recomputed = 11;
  EXPECT_EQ(step.peak(), 157 + 11);
  // Gradients of later parts are on their way meanwhile.
  step.parts[2].travelling = 9;
  step.most_travelling = 8;
  EXPECT_EQ(step.peak(), 157 + 20 - 10 + 8);
  // Those of an earlier backward and kept weights are there all the time.
  step.parts[0].earlier = 2;
  step.parts[1].kept_forms = 6;
  EXPECT_EQ(step.begin_of_backward(), 159);
  EXPECT_EQ(step.end_of_backward(), 158);
}

TEST_F(MemoryPlanTest, OneBackwardNeedsNoFloat32Gradients) {
  RunConfig config = small_config();
  const double parameters = double(count_parameters(config.model).total);
  EXPECT_EQ(plan_memory(config).gradients, 2 * parameters);
  config.training.accumulation = 2;
  EXPECT_EQ(plan_memory(config).gradients, 4 * parameters);
  config.training.accumulation = 3;
  EXPECT_EQ(plan_memory(config).gradients, 6 * parameters);
  double experts = 0;  // which products add to float32 sums
  for (const ParameterShape& p : parameter_shapes(config.model)) {
    if (p.shape.size() == 3) experts += double(p.shape[0] * p.shape[1] * p.shape[2]);
  }
  config.training.gradient_sums = GradientSums::PRODUCTS;
  EXPECT_EQ(plan_memory(config).gradients, 6 * parameters - 2 * experts);
}

double bytes_of(const at::Tensor& weight, const OperandFormat& format, int64_t axis) {
  if (const auto* mx = std::get_if<MxFormat>(&format)) {
    const MXTensor x = quantize_mx(weight, mx->elem, mx->mode, axis);
    return double(x.data.nbytes() + x.scale.nbytes());
  }
  const auto* fp8 = std::get_if<Float8Format>(&format);
  if (!fp8) return 0;
  const bool whole = fp8->granularity == ScalingGranularity::TENSORWISE;
  const Float8Tensor x = quantize_float8(
      weight, whole ? Float8Granularity::tensorwise() : Float8Granularity::axiswise(axis),
      fp8->elem);
  return double(x.data.nbytes() + x.scale.nbytes());
}

TEST_F(MemoryPlanTest, CodesAreAsLargeAsWhatTheQuantizersMake) {
  for (const RecipeInfo& info : all_recipes()) {
    const TrainingFormats formats = training_formats(info.config);
    const std::vector<int64_t> shape =
        is_grouped(info.config) ? std::vector<int64_t>{3, 40, 72} : std::vector<int64_t>{40, 71};
    const at::Tensor weight = at::ones(shape, at::kBFloat16);
    EXPECT_EQ(code_bytes(info.config, shape), bytes_of(weight, formats.out.right, -1) +
                                                  bytes_of(weight, formats.grad_input.right, -2))
        << info.name;
  }
}

TEST_F(MemoryPlanTest, TheConversionIsThatOfTheRealModel) {
  RunConfig config = small_config();
  for (const std::string& name : training_recipes()) {
    config.training.recipe = name;
    Transformer model(config.model);
    const FqnToConfig keys = to_fqn_config(config.conversion());
    const ConversionReport planned = plan_conversion(config);
    ConversionReport real = quantize_(*model, keys, {.dry_run = true});
    for (ConversionRow& row : real.rows) {  // the plan knows what its own model uses
      if (row.reason.starts_with("converted if used through")) row.reason = "converted";
    }
    EXPECT_EQ(planned.to_json(), real.to_json()) << name;
    double codes = 0;
    for (const ConversionRow& row : real.converted()) codes += code_bytes(*row.config, row.shape);
    EXPECT_EQ(plan_memory(config).codes, codes);
  }
}

TEST_F(MemoryPlanTest, ARuleThatMatchesNothingIsAnError) {
  RunConfig config = small_config();
  config.convert = {{"re:.*expert", "mxfp8_rceil", {}, "a.toml:1"}};
  EXPECT_THAT(error_of([&] { plan_memory(config); }), HasSubstr("re:.*expert"));
}

}  // namespace
}  // namespace moe8
