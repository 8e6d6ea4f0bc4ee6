// SPDX-License-Identifier: BSD-3-Clause
// The training loop on a tiny model: losses fall, runs repeat, files are right, mistakes stop
// early.
#include "train/trainer.h"

#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "base/plain_text.h"
#include "convert/aten_hooks.h"
#include "moe8/safetensors.h"
#include "moe8/transformer.h"
#include "testing/compare.h"
#include "testing/folder.h"
#include "train/schedule.h"
#include "train/stepper.h"
#include "train/store/metrics.h"
#include "train/store/speed.h"
#include "train/thread_count.h"
#include "train/tiny_run.h"

namespace moe8 {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::same_bits;
using testing::sqnr_db;
using testing::TemporaryFolder;
using testing::tiny_config;

std::vector<double> losses_of(const RunConfig& config) {
  train(config);
  std::vector<double> losses;
  for (const StepMetrics& step : read_metrics(RunFolder{config.output.folder}.metrics())) {
    losses.push_back(step.loss);
  }
  return losses;
}

// ---- schedule ---------------------------------------------------------------
TEST(Schedule, RisesThenFallsToTheMinimum) {
  OptimizerConfig config;
  config.learning_rate = 1.0;
  config.min_learning_rate = 0.1;
  config.warmup_steps = 10;
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 1), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 5), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 10), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 60), 0.55);
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 110), 0.1);
  for (int64_t step = 11; step <= 110; ++step) {
    EXPECT_LT(learning_rate(config, 110, step), learning_rate(config, 110, step - 1));
  }
  config.warmup_steps = 0;
  EXPECT_GT(learning_rate(config, 100, 1), 0.99);
  config.warmup_steps = 50;  // longer than the run
  EXPECT_DOUBLE_EQ(learning_rate(config, 20, 20), 0.4);
}

TEST(Schedule, OtherShapes) {
  OptimizerConfig config;
  config.learning_rate = 1.0;
  config.min_learning_rate = 0.2;
  config.warmup_steps = 10;
  config.schedule = Schedule::LINEAR;
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 5), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 10), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 60), 0.6);
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 110), 0.2);
  config.schedule = Schedule::CONSTANT;
  for (const int64_t step : {10, 60, 110}) EXPECT_EQ(learning_rate(config, 110, step), 1.0);
  config.schedule = Schedule::WSD;
  config.decay_steps = 40;
  EXPECT_EQ(learning_rate(config, 110, 70), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 90), 0.6);
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 110), 0.2);
  config.decay_steps = 1000;  // longer than what the warm-up leaves
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 60), 0.6);
}

// ---- stepper ----------------------------------------------------------------
// One matrix and one vector.
struct Pair : torch::nn::Module {
  explicit Pair(at::ScalarType dtype) {
    w = register_parameter("w", torch::linspace(-1, 1, 32).view({4, 8}).to(dtype));
    v = register_parameter("v", torch::ones({8}, dtype));
  }
  torch::Tensor w, v;
};

TEST(Stepper, MasterWeightsKeepWhatBf16WouldLose) {
  OptimizerConfig config;
  config.weight_decay = 0;
  config.max_grad_norm = 0;
  Pair master(at::kBFloat16), plain(at::kBFloat16);
  Stepper master_stepper(master, config, Weights::MASTER),
      plain_stepper(plain, config, Weights::BF16);
  const void* storage = master.v.data_ptr();
  for (int i = 0; i < 40; ++i) {
    for (auto [model, stepper] : {std::pair{&master, &master_stepper}, {&plain, &plain_stepper}}) {
      (model->w.sum() + model->v.sum()).backward();
      stepper->accumulate();
      stepper->clip_gradients();
      stepper->step(1e-4);  // far less than half a bf16 step at 1
    }
  }
  EXPECT_EQ(master.v.data_ptr(), storage);
  EXPECT_TRUE(same_bits(torch::ones({8}, at::kBFloat16), plain.v.detach()));
  EXPECT_NEAR(master_stepper.stepped()[1][0].item<double>(), 1 - 40e-4, 1e-5);
  EXPECT_TRUE(same_bits(master_stepper.stepped()[1].to(at::kBFloat16), master.v.detach()));
  EXPECT_LT(master.v[0].item<double>(), 1);
}

TEST(Stepper, GradientsAddUpInFloat32) {
  Pair model(at::kBFloat16);
  Stepper stepper(model, {}, Weights::MASTER);
  (model.v * 256).sum().backward();
  stepper.accumulate();
  EXPECT_FALSE(model.v.grad().defined());
  model.v.sum().backward();
  stepper.accumulate();
  EXPECT_EQ(stepper.stepped()[1].grad()[0].item<double>(), 257);  // 256 in bf16
}

TEST(Stepper, DecaysMatricesOnly) {
  OptimizerConfig config;
  config.weight_decay = 0.5;
  for (const Weights weights : {Weights::MASTER, Weights::FLOAT32}) {
    Pair model(weights == Weights::MASTER ? at::kBFloat16 : at::kFloat);
    Stepper stepper(model, config, weights);
    ((model.w + model.v).sum() * 0).backward();  // gradients are there, and zero
    stepper.accumulate();
    stepper.step(0.5);
    EXPECT_EQ(model.w[0][0].item<double>(), -0.75);
    EXPECT_EQ(model.v[0].item<double>(), 1);
  }
}

TEST(Stepper, ClipsToTheGlobalNormAndReportsTheNormBefore) {
  OptimizerConfig config;
  config.max_grad_norm = 0.5;
  Pair model(at::kFloat);
  Stepper stepper(model, config, Weights::FLOAT32);
  (model.w.sum() * 3 + model.v.sum() * 4).backward();
  const double expected = std::sqrt(32 * 9.0 + 8 * 16.0);
  EXPECT_NEAR(stepper.clip_gradients().item<double>(), expected, 1e-6);
  stepper.step(1e-3);
  double squares = 0;  // of (1 - beta1) times the gradients that the step saw
  for (const auto& [name, offsets, tensor] : stepper.state()) {
    if (name.starts_with("exp_avg."))
      squares += tensor.to(at::kDouble).square().sum().item<double>();
  }
  EXPECT_NEAR(std::sqrt(squares), 0.1 * 0.5, 1e-7);
}

TEST(Stepper, ClipsAsLibTorchDoes) {
  for (const double largest : {0.5, 1e9, 0.0}) {
    OptimizerConfig config;
    config.max_grad_norm = largest;
    Pair ours(at::kFloat), theirs(at::kFloat);
    Stepper stepper(ours, config, Weights::FLOAT32);
    for (Pair* pair : {&ours, &theirs}) (pair->w.square().sum() * 3 + pair->v.sum() * 4).backward();
    const double norm = torch::nn::utils::clip_grad_norm_(
        theirs.parameters(), largest > 0 ? largest : std::numeric_limits<double>::infinity());
    // Sums are added in another order.
    EXPECT_NEAR(stepper.clip_gradients().item<double>(), norm, norm * 1e-7);
    stepper.step(1e-3);
    for (const auto& [name, offsets, tensor] : stepper.state()) {
      if (!name.starts_with("exp_avg.")) continue;
      const at::Tensor grad = (name.ends_with("w") ? theirs.w : theirs.v).grad();
      EXPECT_LE((tensor - grad * 0.1).abs().max().item<double>(),
                2e-7 * grad.abs().max().item<double>());
    }
  }
}

// ---- runs -------------------------------------------------------------------
TEST(Train, LossFallsAndTheFilesAreRight) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.training.validation_interval = 8;
  const RunResult result = train(config);

  const std::vector<StepMetrics> steps = read_metrics(folder / "run/metrics.jsonl");
  ASSERT_EQ(steps.size(), 20u);
  EXPECT_NEAR(steps.front().loss, std::log(256.0), 1.0);
  EXPECT_LT(steps.back().loss, steps.front().loss - 1.5);
  double sum = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    const StepMetrics& m = steps[i];
    EXPECT_EQ(m.step, static_cast<int64_t>(i + 1));
    EXPECT_DOUBLE_EQ(m.lr, learning_rate(config.optimizer, 20, m.step));
    EXPECT_GT(m.grad_norm, 0);
    EXPECT_GT(m.tokens_per_s, 0);
    EXPECT_LE(m.expert_load_min, 1);
    EXPECT_GE(m.expert_load_max, 1);
    EXPECT_EQ(m.validation_loss.has_value(), m.step == 8 || m.step == 16 || m.step == 20);
    sum += m.loss;
  }
  EXPECT_NEAR(result.train_loss, sum / 20, 1e-9);
  EXPECT_DOUBLE_EQ(result.validation_loss, *steps.back().validation_loss);
  EXPECT_EQ(result.tokens_per_s, speed_of(steps).wall.median);
  EXPECT_GT(result.peak_memory, 50 << 20);
  EXPECT_EQ(result.recipe, "bf16");
  EXPECT_EQ(result.parameters, count_parameters(config.model).total);

  EXPECT_EQ(load_safetensors(folder / "run/model.safetensors").size(),
            parameter_shapes(config.model).size() + 1);  // and one expert_bias
  const auto json = nlohmann::json::parse(folder.read("run/result.json"));
  EXPECT_EQ(json.at("validation_loss").get<double>(), result.validation_loss);
}

TEST(Train, TheWrittenConfigReproducesTheRun) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.training.steps = 5;
  config.training.recipe = "mxfp8_rceil";
  const std::vector<double> losses = losses_of(config);
  RunConfig again = load_run_config(folder / "run/run.toml");
  EXPECT_EQ(again.training.recipe, "mxfp8_rceil");
  again.output.folder = folder / "again";
  EXPECT_EQ(losses, losses_of(again));
  again.output.folder = folder / "other";
  again.training.seed = 2;
  EXPECT_NE(losses, losses_of(again));
}

TEST(Train, RecipesChangeTheLossesALittle) {
  const TemporaryFolder folder;
  const double bf16 = train(tiny_config(folder, "bf16")).validation_loss;
  for (const char* recipe : {"mxfp8_rceil", "fp8_rowwise", "mxfp8_cublas"}) {
    RunConfig config = tiny_config(folder, recipe);
    config.training.recipe = recipe;
    const RunResult result = train(config);
    EXPECT_GT(result.converted_parameters, 0) << recipe;
    EXPECT_NE(result.validation_loss, bf16) << recipe;
    EXPECT_NEAR(result.validation_loss, bf16, 0.1 * bf16) << recipe;
  }
}

TEST(Train, EveryOptimizerLowersTheLoss) {
  const TemporaryFolder folder;
  for (const OptimizerKind kind : {OptimizerKind::ADAMW, OptimizerKind::MUON}) {
    for (const MomentDtype moments : {MomentDtype::LIKE_WEIGHTS, MomentDtype::BF16}) {
      RunConfig config = tiny_config(folder, concat(to_string(kind), to_string(moments)));
      config.optimizer.kind = kind;
      config.optimizer.moments = moments;
      const std::vector<double> losses = losses_of(config);
      EXPECT_LT(losses.back(), losses.front() - 1.5) << to_toml(config);
    }
  }
}

// Two half batches are one whole batch: the loss is a mean over tokens.
TEST(Train, AccumulationEqualsALargerBatch) {
  TransformerConfig model_config = tiny_config(TemporaryFolder()).model;
  const torch::Tensor tokens = at::randint(256, {8, 16}, at::kLong),
                      targets = at::randint(256, {8, 16}, at::kLong);
  const auto gradients = [&](int64_t pieces) {
    Transformer model(model_config, 1, at::kFloat);
    Stepper stepper(*model, {}, Weights::FLOAT32);
    const auto parts_in = tokens.chunk(pieces), parts_out = targets.chunk(pieces);
    for (int64_t i = 0; i < pieces; ++i) {
      const torch::Tensor logits = model(parts_in[i]).flatten(0, 1);
      (torch::nn::functional::cross_entropy(logits, parts_out[i].flatten()) / double(pieces))
          .backward();
      stepper.accumulate();
    }
    std::vector<torch::Tensor> grads;
    for (const torch::Tensor& parameter : stepper.stepped())
      grads.push_back(parameter.grad().flatten());
    return at::cat(grads);
  };
  EXPECT_GT(sqnr_db(gradients(1), gradients(2)), 90);
}

TEST(Train, AccumulationSeesOtherTextInEveryPiece) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.training.steps = 3;
  config.training.accumulation = 2;
  config.training.batch_size = 2;
  const double once = losses_of(config).front();
  RunConfig single = tiny_config(folder, "single");
  single.training.steps = 1;
  single.training.batch_size = 2;
  EXPECT_NE(losses_of(single).front(), once);
}

TEST(Train, AllKindsOfWeights) {
  const TemporaryFolder folder;
  for (const Weights weights : {Weights::BF16, Weights::FLOAT32}) {
    RunConfig config = tiny_config(folder, std::string(to_string(weights)));
    config.training.weights = weights;
    const std::vector<double> losses = losses_of(config);
    EXPECT_LT(losses.back(), losses.front() - 1.5) << to_string(weights);
    const auto tensors = load_safetensors(RunFolder{config.output.folder}.model());
    EXPECT_EQ(tensors.at("output.weight").scalar_type(),
              weights == Weights::BF16 ? at::kBFloat16 : at::kFloat);
  }
}

TEST(Train, NumbersThatAreNotFiniteStop) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.optimizer.learning_rate = 1e9;
  config.optimizer.max_grad_norm = 0;
  config.optimizer.warmup_steps = 0;
  EXPECT_THAT(error_of([&] { train(config); }),
              AllOf(HasSubstr("[train] "), HasSubstr(": expected a finite number, got "),
                    HasSubstr(" at step 2 (recipe bf16, learning rate "),
                    HasSubstr("Training stopped; a lower learning rate")));
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"run", "text.txt"}));
  EXPECT_FALSE(std::filesystem::exists(folder / "run/model.safetensors"));
}

TEST(Train, ARunInAnotherPrecisionStopsAfterItsFirstStep) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.training.recipe = "mxfp8_rceil";
  std::optional<WithoutAtenHooks> plain;  // products as a program would run that moe8 cannot see
  RunOptions options;
  options.interrupted = [&] {
    if (!plain) plain.emplace();
    return 0;
  };
  EXPECT_THAT(error_of([&] { train(config, options); }),
              AllOf(HasSubstr("[train] convert: expected products in low precision of every"),
                    HasSubstr("layers.0.attention.wq.weight (32, 32)"),
                    HasSubstr("layers.1.moe.shared_experts.w2.weight (32, 32)"),
                    Not(HasSubstr("moe.experts.w2")),  // moe_experts() needs no hook
                    HasSubstr("Training stopped after the first step")));
  EXPECT_THAT(read_metrics(folder / "run/metrics.jsonl"), ::testing::IsEmpty());
}

TEST(Train, NoCheckpointHasTheWeightsAfterAStepThatWasNotFinite) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.training.steps = 3;
  config.checkpoint.interval = 1;
  config.training.recipe = "bf16";
  config.training.weights = Weights::BF16;
  config.optimizer.learning_rate = 1e9;
  config.optimizer.max_grad_norm = 0;
  config.optimizer.warmup_steps = 0;
  EXPECT_THAT(error_of([&] { train(config); }), HasSubstr(": expected a finite number, got "));
  for (const auto& [name, tensor] :
       load_safetensors(folder / "run/checkpoints/step-00000001/model.safetensors")) {
    EXPECT_TRUE(tensor.isfinite().all().item<bool>()) << name;
  }
}

TEST(Train, ActivationCheckpointingChangesNoBit) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.training.steps = 6;
  config.training.accumulation = 2;
  config.training.recipe = "fp8_rowwise";
  config.model.aux_loss_coeff = 0.01;
  train(config);
  for (const Recompute recompute : {Recompute::NONE, Recompute::SELECTIVE, Recompute::FULL}) {
    for (const GradientSums sums : {GradientSums::ROUNDED, GradientSums::PRODUCTS}) {
      config.training.activation_checkpointing = recompute;
      config.training.gradient_sums = sums;  // which on a CPU changes no bit either
      const std::string name = concat(to_string(recompute), "-", to_string(sums));
      config.output.folder = folder / name;
      train(config);
      EXPECT_EQ(testing::repeatable(folder / name + "/metrics.jsonl"),
                testing::repeatable(folder / "run/metrics.jsonl"));
      EXPECT_EQ(folder.read(name + "/model.safetensors"), folder.read("run/model.safetensors"));
    }
  }
}

TEST(Train, AGraphOnACpuIsRefused) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.training.device = TrainingDevice::CPU;
  config.training.cuda_graph = CudaGraphs::ON;
  EXPECT_THAT(error_of([&] { train(config); }),
              HasSubstr("[train] training.cuda_graph: expected auto or off for a run on the CPU"));
  EXPECT_FALSE(std::filesystem::exists(folder / "run"));
}

TEST(Train, LossesOfTheRoutersAreTrainedOnAndReported) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.training.steps = 8;
  const std::vector<double> without = losses_of(config);
  EXPECT_FALSE(read_metrics(folder / "run/metrics.jsonl").front().aux_loss);
  config.model.aux_loss_coeff = 0.5;
  config.output.folder = folder / "with";
  const std::vector<double> with = losses_of(config);
  EXPECT_EQ(with.front(), without.front());  // the loss is reported without them
  EXPECT_NE(with.back(), without.back());
  for (const StepMetrics& step : read_metrics(folder / "with/metrics.jsonl")) {
    ASSERT_TRUE(step.aux_loss && step.z_loss);
    EXPECT_NEAR(*step.aux_loss, 1, 0.5);
    EXPECT_GT(*step.z_loss, 0);
  }
}

TEST(Train, AProfileSaysWhereTheTimeGoes) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.training.steps = 10;
  const std::vector<double> losses = losses_of(config);
  config.output.folder = folder / "profiled";
  RunOptions options;
  options.profiled_steps = 2;
  std::ostringstream printed;
  options.progress = &printed;
  train(config, options);
  const std::string table = folder.read("profiled/profile.txt");
  EXPECT_THAT(table, AllOf(HasSubstr("ms a step"), HasSubstr("aten::"), HasSubstr("a step\n")));
  EXPECT_THAT(printed.str(), HasSubstr(table));
  const auto trace = nlohmann::json::parse(folder.read("profiled/trace.json"));
  EXPECT_GT(trace.at("traceEvents").size(), 100u);
  const std::vector<StepMetrics> steps = read_metrics(folder / "profiled/metrics.jsonl");
  ASSERT_EQ(steps.size(), losses.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(steps[i].loss, losses[i]);
    ASSERT_TRUE(steps[i].ms);
    const PartTimes& ms = *steps[i].ms;
    EXPECT_GT(std::min({ms.data, ms.forward, ms.backward, ms.optimizer}), 0);
    const double sum = ms.data + ms.forward + ms.backward + ms.optimizer;
    EXPECT_NEAR(sum, 4 * 32 * 1e3 / steps[i].tokens_per_s, 0.01);
  }
  config.training.steps = 7;
  config.output.folder = folder / "short";
  EXPECT_THAT(error_of([&] { train(config, options); }),
              HasSubstr("[train] training.steps: expected at least 8 to profile 2, got 7"));
}

// ---- threads and signals ------------------------------------------------------
TEST(ThreadCount, IsRestoredAtTheEndButNotInAFailure) {
  const int before = at::get_num_threads();
  {
    const ThreadCount one(1);
    EXPECT_EQ(at::get_num_threads(), 1);
  }
  EXPECT_EQ(at::get_num_threads(), before);
  try {
    const ThreadCount other(before + 1);
    throw std::runtime_error("out of memory");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(at::get_num_threads(), before + 1);  // a pool of threads was not asked for others
  at::set_num_threads(before);
}

// A signal may end the process as long as no step is done, and when the run fails or ends.
TEST(ThreadCount, WhatTorchrunLimitsToOneIsSharedBesideGpus) {
  std::map<std::string, const char*> variables;
  const auto chosen = [&] {
    return threads_beside_gpu(
        [&](const char* name) { return variables.contains(name) ? variables[name] : nullptr; }, 32);
  };
  EXPECT_EQ(chosen(), 0);
  variables = {{"TORCHELASTIC_RUN_ID", "x"}, {"LOCAL_WORLD_SIZE", "8"}, {"OMP_NUM_THREADS", "1"}};
  EXPECT_EQ(chosen(), 4);
  variables["LOCAL_WORLD_SIZE"] = "64";
  EXPECT_EQ(chosen(), 1);
  variables["OMP_NUM_THREADS"] = "6";  // somebody has chosen
  EXPECT_EQ(chosen(), 0);
  variables = {{"LOCAL_WORLD_SIZE", "8"}, {"OMP_NUM_THREADS", "1"}};  // not torchrun
  EXPECT_EQ(chosen(), 0);
}

TEST(Train, SaysHowLongASignalMayWait) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.training.steps = 3;
  RunOptions options;
  std::vector<double> said;
  options.patience = [&](double seconds) { said.push_back(seconds); };
  train(config, options);
  ASSERT_GE(said.size(), 4u);
  EXPECT_GT(said.front(), 100);
  EXPECT_EQ(said.back(), 0);
  said.clear();
  config.output.folder = folder / "fails";
  config.optimizer.learning_rate = 1e9;
  config.optimizer.max_grad_norm = 0;
  config.optimizer.warmup_steps = 0;
  config.training.steps = 20;
  EXPECT_NE(error_of([&] { train(config, options); }), "(no error)");
  EXPECT_EQ(said.back(), 0);
}

TEST(Train, AFolderWithARunIsRefusedUnlessTold) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.training.steps = 2;
  train(config);
  folder.write("run/notes.txt", "mine");
  const std::string before = folder.read("run/metrics.jsonl");
  EXPECT_THAT(error_of([&] { train(config); }),
              HasSubstr("[train] output.folder: expected a folder without a run, got '"));
  EXPECT_EQ(folder.read("run/metrics.jsonl"), before);
  config.training.steps = 1;
  RunOptions options;
  options.existing = ExistingRun::REPLACE;
  train(config, options);
  EXPECT_EQ(read_metrics(folder / "run/metrics.jsonl").size(), 1u);
  EXPECT_EQ(folder.read("run/notes.txt"), "mine");
  config.output.folder = folder / "text.txt";
  EXPECT_THAT(error_of([&] { train(config); }), HasSubstr("which is something else"));
}

TEST(Train, MistakesLeaveNoFolderBehind) {
  const TemporaryFolder folder;
  const auto message = [&](const std::function<void(RunConfig&)>& change) {
    RunConfig config = tiny_config(folder);
    change(config);
    const std::string text = error_of([&] { train(config); });
    EXPECT_FALSE(std::filesystem::exists(folder / "run")) << text;
    return text;
  };
  EXPECT_THAT(message([](RunConfig& c) { c.data.files.clear(); }),
              HasSubstr("[config] data.files: "));
  EXPECT_THAT(message([](RunConfig& c) { c.data.files = {"/nowhere.txt"}; }),
              HasSubstr("/nowhere.txt"));
  EXPECT_THAT(message([](RunConfig& c) { c.training.batch_size = 1 << 15; }),
              HasSubstr("validation text"));
  EXPECT_THAT(message([](RunConfig& c) { c.training.steps = 0; }),
              HasSubstr("[config] training.steps: "));
  EXPECT_THAT(message([](RunConfig& c) {
                c.convert = {{"layers.9.x", "rowwise", {}, "c.toml:1"}};
              }),
              HasSubstr("layers.9.x"));
}

// ---- runs in turns ----------------------------------------------------------
TEST(TrainInTurns, EveryRunEndsWithTheBitsThatItHasAlone) {
  const TemporaryFolder folder;
  std::vector<RunConfig> configs;
  for (const char* recipe : {"bf16", "mxfp8_rceil"}) {
    RunConfig config = tiny_config(folder, std::string("alone-") + recipe);
    config.training.recipe = recipe;
    config.training.validation_interval = 8;
    train(config);
    config.output.folder = folder / recipe;
    configs.push_back(config);
  }
  configs[1].training.steps = 20;
  const std::vector<RunResult> results = train_in_turns(configs);
  ASSERT_EQ(results.size(), 2u);
  for (const std::string recipe : {"bf16", "mxfp8_rceil"}) {
    const std::string alone = "alone-" + recipe;
    EXPECT_EQ(testing::repeatable(folder / recipe + "/metrics.jsonl"),
              testing::repeatable(folder / alone + "/metrics.jsonl"));
    EXPECT_EQ(folder.read(recipe + "/model.safetensors"),
              folder.read(alone + "/model.safetensors"));
    EXPECT_TRUE(std::filesystem::exists(folder / recipe + "/result.json"));
  }
  EXPECT_EQ(results[0].recipe, "bf16");
  EXPECT_EQ(results[1].steps, 20);
  EXPECT_GT(results[0].peak_memory, 50 << 20);
  EXPECT_GT(results[1].peak_memory, 50 << 20);  // LibTorch's libraries are part of each
}

TEST(TrainInTurns, ABadConfigStopsAllBeforeTheFirst) {
  const TemporaryFolder folder;
  RunConfig good = tiny_config(folder, "good"), bad = tiny_config(folder, "bad");
  bad.training.recipe = "mxfp9";
  EXPECT_THAT(error_of([&] { train_in_turns({good, bad}); }), HasSubstr("mxfp9"));
  EXPECT_FALSE(std::filesystem::exists(folder / "good"));
}

TEST(Train, SaysWhatItTrainsAndKeepsWhereItCameFrom) {
  const TemporaryFolder folder;
  RunConfig config = tiny_config(folder);
  config.training.steps = 2;
  config.training.recipe = "mxfp8_rceil";
  std::ostringstream progress;
  RunOptions options;
  options.progress = &progress;
  options.origin = {"moe8 1.2.3 (abc)", "moe8 train 'a b'", "a machine"};
  train(config, options);
  EXPECT_THAT(progress.str(), ::testing::StartsWith("mxfp8_rceil\n  model    "));
  EXPECT_THAT(progress.str(), HasSubstr("\n  steps    2 of 128 tokens, on the CPU, 1 thread\n"));
  EXPECT_THAT(progress.str(), HasSubstr("\n  experts  3 weights in mxfp8_rceil\n"));
  EXPECT_THAT(progress.str(), HasSubstr(" in mxfp8_cublas_rceil"));
  const std::vector<RunStart> starts = read_all_metrics(folder / "run/metrics.jsonl").starts;
  ASSERT_EQ(starts.size(), 1u);
  EXPECT_EQ(starts[0].step, 1);
  EXPECT_EQ(starts[0].program, options.origin.program);
  EXPECT_EQ(starts[0].command, options.origin.command);
  EXPECT_EQ(starts[0].machine, options.origin.machine);
  EXPECT_EQ(starts[0].device, "CPU");
  EXPECT_EQ(starts[0].threads, 1);
  EXPECT_THAT(starts[0].date, ::testing::ContainsRegex("^20[0-9-]+ [0-9:]+ UTC$"));
}

// ---- metrics and progress ---------------------------------------------------
TEST(Metrics, ReadBackWhatWasWritten) {
  const TemporaryFolder folder;
  StepMetrics a{1, 5.5, 1e-3, 2.25, 1000, 0.5, 1.5, std::nullopt},
      b{2, 0.1 + 0.2, 1e-3, 2, 1000, 1, 1, 4.5, 123.5, {{1.5, 0}, {4, 2}}};
  b.mfu = 0.25;
  b.ms = {0.5, 10.125, 20, 3};
  b.gpu_memory = {int64_t{78} << 30, int64_t{80} << 30};
  {
    MetricsFile file(folder / "m.jsonl");
    file.write(a);
    EXPECT_EQ(read_metrics(folder / "m.jsonl").size(), 1u);  // there at once
    file.write(b);
  }
  EXPECT_EQ(read_metrics(folder / "m.jsonl"), (std::vector<StepMetrics>{a, b}));
  folder.write("bad.jsonl", "{\"step\": 1}\n");
  EXPECT_THAT(error_of([&] { read_metrics(folder / "bad.jsonl"); }), HasSubstr("bad.jsonl:1: "));
  EXPECT_THAT(error_of([&] { MetricsFile(folder / "none/m.jsonl"); }),
              HasSubstr("expected a writable file"));
}

TEST(Progress, RewritesOneLineOnATerminalAndPrintsLinesElsewhere) {
  StepMetrics last;
  last.step = 10;
  last.loss = 2.5;
  std::ostringstream terminal, lines;
  const auto columns = [] { return 80; };
  Progress a(&terminal, Progress::Kind::TERMINAL, columns),
      b(&lines, Progress::Kind::LINES, columns);
  for (Progress* progress : {&a, &b}) {
    progress->show(progress->add("bf16", 10), last);
    progress->finish();
  }
  EXPECT_THAT(terminal.str(), ::testing::StartsWith("\rbf16  step 10/10  loss 2.5000"));
  EXPECT_THAT(terminal.str(), ::testing::EndsWith("\n"));
  EXPECT_EQ(lines.str().find('\r'), std::string::npos);
  EXPECT_THAT(lines.str(), HasSubstr("step 10/10  loss 2.5000"));
  Progress silent(nullptr, Progress::Kind::LINES, columns);
  silent.show(silent.add("", 10), last);
}

TEST(Progress, FitsTheTerminal) {
  StepMetrics long_one{.step = 123456,
                       .loss = 12.3456,
                       .lr = 1.25e-4,
                       .grad_norm = 1234.56,
                       .tokens_per_s = 1234567};
  long_one.validation_loss = 12.3456;
  for (const int columns : {200, 80, 40, 20, 3, 1}) {
    for (const int runs : {1, 3}) {
      std::ostringstream out;
      Progress progress(&out, Progress::Kind::TERMINAL, [&] { return columns; });
      for (int i = 0; i < runs; ++i) progress.add("mxfp8_rceil_wgrad_with_hp", 200000);
      progress.show(0, long_one);
      const std::string line = out.str();
      EXPECT_EQ(line.front(), '\r');
      EXPECT_LE(line.size() - 1, static_cast<size_t>(std::max(1, columns - 1))) << line;
      if (columns >= 40) {
        EXPECT_THAT(line, HasSubstr("step ")) << line;
      }
      if (columns >= 40 && runs == 1) {
        EXPECT_THAT(line, HasSubstr("loss 12.3456")) << line;
      }
      if (columns == 80 && runs == 1) {
        EXPECT_THAT(line, HasSubstr("ETA ")) << line;
      }
    }
  }
}

TEST(Progress, SeveralRunsShareALine) {
  std::ostringstream out;
  Progress progress(&out, Progress::Kind::TERMINAL, [] { return 80; });
  const size_t a = progress.add("bf16", 2), b = progress.add("mxfp8_rceil", 2);
  progress.show(a, {.step = 2, .loss = 2.5});
  progress.show(b, {.step = 2, .loss = 2.25});
  EXPECT_THAT(out.str(), HasSubstr("\rstep 2/2  bf16 2.5000  mxfp8_rceil 2.2500  took 0s"));
}

TEST(Progress, Durations) {
  EXPECT_EQ(duration_text(0.2), "0s");
  EXPECT_EQ(duration_text(65), "1m 05s");
  EXPECT_EQ(duration_text(3725), "1h 02m");
}

}  // namespace
}  // namespace moe8
