// SPDX-License-Identifier: BSD-3-Clause
// Runs that train a part: frozen parameters, rates by pattern, adapters; losses on answers alone, in
// sequences of whole documents.
#include <torch/torch.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "moe8/lora.h"
#include "moe8/pretrained.h"
#include "moe8/safetensors.h"
#include "moe8/transformer.h"
#include "nn/frozen_codes.h"
#include "testing/compare.h"
#include "text/tokenize_job.h"
#include "train/config/trained_parameters.h"
#include "train/evaluate.h"
#include "train/export.h"
#include "train/model_source.h"
#include "train/plan/memory_plan.h"
#include "train/stepper.h"
#include "train/text_data.h"
#include "train/tiny_run.h"
#include "train/trainer.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

using testing::error_of;
using ::testing::HasSubstr;
using testing::same_bits;
using testing::TemporaryFolder;

class FineTuningTest : public ::testing::Test {
 protected:
  RunConfig config(const std::string& out) const {
    RunConfig made = testing::tiny_config(folder_, out);
    made.training.steps = 6;
    made.training.weights = Weights::FLOAT32;
    return made;
  }
  // The weights that a run leaves.
  static std::map<std::string, at::Tensor> trained(const RunConfig& config) {
    train(config, {});
    return load_safetensors(config.output.folder + "/model.safetensors");
  }
  static std::map<std::string, at::Tensor> at_first(const RunConfig& config) {
    Transformer model(config.model, static_cast<uint64_t>(config.training.seed), at::kFloat);
    std::map<std::string, at::Tensor> tensors;
    for (const auto& parameter : model->named_parameters()) {
      tensors[parameter.key()] = parameter.value().detach().clone();
    }
    return tensors;
  }

  static RunOptions resumed() {
    RunOptions options;
    options.existing = ExistingRun::RESUME;
    return options;
  }

  TemporaryFolder folder_;
};

// ---- frozen, rates --------------------------------------------------------------
TEST_F(FineTuningTest, FrozenParametersStay) {
  for (const Recompute recompute : {Recompute::NONE, Recompute::FULL}) {
    RunConfig run = config("frozen" + std::string(to_string(recompute)));
    run.optimizer.frozen = {"tok_embeddings.weight", "re:.*\\.experts\\.w1", "re:.*attention.*"};
    run.training.recipe = "mxfp8_rceil";  // what is converted may be frozen
    run.training.activation_checkpointing = recompute;
    const auto before = at_first(run), after = trained(run);
    for (const auto& [name, tensor] : before) {
      const bool is_frozen = name == "tok_embeddings.weight" || name.ends_with(".experts.w1") ||
                             name.find("attention") != std::string::npos;
      EXPECT_EQ(at::equal(tensor, after.at(name)), is_frozen) << name;
    }
  }
}

TEST_F(FineTuningTest, AStoppedRunWithFrozenParametersGoesOn) {
  RunConfig whole = config("whole");
  whole.optimizer.frozen = {"re:.*attention.*"};
  whole.optimizer.rates = {{"output.weight", 0.5}, {"re:.*\\.router\\..*", 0.25}};
  whole.checkpoint.interval = 3;
  RunConfig parts = whole;
  parts.output.folder = folder_ / "parts";
  const auto expected = trained(whole);
  RunOptions options;
  int calls = 0;
  options.interrupted = [&] { return ++calls > 4 ? 15 : 0; };
  EXPECT_EQ(train(parts, options).stopped_by, 15);
  train(parts, resumed());
  for (const auto& [name, tensor] : load_safetensors(folder_ / "parts/model.safetensors")) {
    EXPECT_TRUE(same_bits(expected.at(name), tensor)) << name;
  }
  parts.optimizer.frozen = {"re:.*w1.*"};
  EXPECT_THAT(error_of([&] { train(parts, resumed()); }), HasSubstr("optimizer.frozen: expected "));
}

// A step of AdamW is as long as its learning rate, where it is the first.
TEST_F(FineTuningTest, RatesMultiplyTheLearningRate) {
  RunConfig run = config("rates");
  run.training.steps = 1;
  run.optimizer.weight_decay = 0;
  run.optimizer.rates = {{"re:.*\\.attention\\.wq\\.weight", 0.25}, {"norm.weight", 2}};
  RunConfig plain = run;
  plain.output.folder = folder_ / "plain";
  plain.optimizer.rates.clear();
  const auto before = at_first(run), after = trained(run), other = trained(plain);
  for (const auto& [name, tensor] : before) {
    const double rate = name.ends_with(".attention.wq.weight") ? 0.25
                        : name == "norm.weight"                ? 2
                                                               : 1;
    const at::Tensor expected = (other.at(name) - tensor) * rate;
    EXPECT_TRUE(at::allclose(after.at(name) - tensor, expected, 1e-3, 1e-6)) << name;
    EXPECT_FALSE(at::equal(after.at(name), tensor)) << name;
  }
}

// The norm that clips is that of all gradients, whatever their rates.
TEST_F(FineTuningTest, RatesDoNotChangeTheNorm) {
  Transformer model(config("a").model, 1, at::kFloat);
  OptimizerConfig optimizer;
  optimizer.max_grad_norm = 0.1;
  Stepper stepper(*model, optimizer, Weights::FLOAT32, /*sums_in_products=*/false,
                  {{"output.weight", 3}, {"norm.weight", 0.5}});
  double squares = 0;
  for (const auto& parameter : model->named_parameters()) {
    parameter.value().mutable_grad() = at::full_like(parameter.value(), 0.25);
    squares += 0.0625 * static_cast<double>(parameter.value().numel());
  }
  EXPECT_NEAR(stepper.clip_gradients().item<double>(), std::sqrt(squares), 1e-4);
}

TEST_F(FineTuningTest, KeysThatNameNothing) {
  RunConfig run = config("wrong");
  run.optimizer.frozen = {"tok_embedding.weight"};
  EXPECT_THAT(
      error_of([&] { run.validate(); }),
      HasSubstr("optimizer.frozen: expected the name of a parameter, or re: and a pattern of "
                "some, got 'tok_embedding.weight', which names none. Did you mean "
                "'tok_embeddings.weight'?"));
  run.optimizer.frozen = {"re:.*"};
  EXPECT_THAT(error_of([&] { run.validate(); }),
              HasSubstr("expected something to train, got none"));
  run.optimizer.frozen.clear();
  run.optimizer.rates = {{"norm.weight", 1}, {"re:norm.*", 2}};
  EXPECT_THAT(error_of([&] { run.validate(); }),
              HasSubstr("expected one key for norm.weight, got 'norm.weight' and 're:norm.*'"));
  run.optimizer.rates = {{"norm.weight", 0}};
  EXPECT_THAT(error_of([&] { run.validate(); }),
              HasSubstr("optimizer.rates: expected more than 0"));
  run.optimizer.rates.clear();
  run.lora.rank = 2;
  run.optimizer.frozen = {"norm.weight"};
  EXPECT_THAT(error_of([&] { run.validate(); }), HasSubstr("expected none beside lora"));
  const RunConfig read = parse_run_config(
      "[optimizer]\nfrozen = \"norm.weight\"\nrates = { \"output.weight\" = 0.5 }\n", "run.toml");
  EXPECT_EQ(read.optimizer.rates, (std::map<std::string, double>{{"output.weight", 0.5}}));
  EXPECT_EQ(parse_run_config(to_toml(read), "again"), read);
}

// ---- adapters -------------------------------------------------------------------
TEST_F(FineTuningTest, AdaptersAreTrainedResumedAndExported) {
  const std::string model = folder_ / "model";
  fs::copy(std::string(MOE8_MODEL_CASES) + "/qwen3_moe", model);
  std::string bytes;
  for (int i = 0; i < 4000; ++i) bytes += {static_cast<char>(i * 7 % 48), '\0'};
  const std::string tokens = folder_.write("tokens.bin", bytes);
  RunConfig run = parse_run_config(
      "[model]\nfrom = \"" + model + "\"\n[data]\nfiles = [\"" + tokens + "\"]\n" +
          "tokens = \"uint16\"\n[lora]\nrank = 4\nalpha = 8\n[training]\nsteps = 6\n" +
          "batch_size = 2\nseq_len = 32\nvalidation_batches = 1\nthreads = 1\ndevice = \"cpu\"\n" +
          "weights = \"float32\"\n[checkpoint]\ninterval = 3\n" + "[output]\nfolder = \"" +
          folder_ / "lora" + "\"\n",
      "run.toml");
  run.optimizer.learning_rate = run.optimizer.min_learning_rate = 1e-2;
  const RunResult result = train(run, {});
  const auto after = load_safetensors(folder_ / "lora/model.safetensors");
  Transformer base(run.model, 0, at::kFloat);
  load_pretrained(*base, model);
  for (const auto& parameter : base->named_parameters()) {
    EXPECT_TRUE(same_bits(parameter.value().detach(), after.at(parameter.key())));
  }
  EXPECT_EQ(after.size(), base->named_parameters().size() + trained_parameters(run).size());
  EXPECT_GT(after.at("layers.0.moe.experts.w2_lora_b").abs().max().item<double>(), 0);

  RunConfig parts = run;
  parts.output.folder = folder_ / "parts";
  RunOptions options;
  int calls = 0;
  options.interrupted = [&] { return ++calls > 4 ? 15 : 0; };
  train(parts, options);
  train(parts, resumed());
  for (const auto& [name, tensor] : load_safetensors(folder_ / "parts/model.safetensors")) {
    EXPECT_TRUE(same_bits(after.at(name), tensor)) << name;
  }

  // The exported model computes what the run's model does with its adapters.
  export_run(folder_ / "lora", folder_ / "merged");
  const ModelSource source = find_model(folder_ / "lora");
  const auto loss = [&](const ModelSource& of) {
    const auto loaded = load_model(of, at::kFloat, at::kCPU);
    return mean_loss(evaluate(*loaded,
                              open_eval_texts({.files = {tokens}, .tokens = DataTokens::UINT16}, of,
                                              nullptr),
                              {.seq_len = 32}, false, nullptr))
        .value;
  };
  const double merged = loss(find_model(folder_ / "merged")), adapted = loss(source);
  EXPECT_NEAR(merged, adapted, 1e-5);
  EXPECT_GT(std::abs(loss(find_model(model)) - adapted), 1e-3);
  EXPECT_TRUE(std::isfinite(result.train_loss));

  // Or with FP8 codes; or the adapters alone.
  export_run(folder_ / "lora", folder_ / "codes", {.weights = ExportedWeights::FP8_ROWWISE});
  EXPECT_NEAR(loss(find_model(folder_ / "codes")), adapted, 0.05);
  const ExportResult alone = export_run(folder_ / "lora", folder_ / "alone", {.adapter = true});
  int64_t elements = 0;
  for (const auto& [name, tensor] : after)
    elements += name.find("lora_") < name.size() ? tensor.numel() : 0;
  EXPECT_EQ(alone.parameters, elements);
  EXPECT_TRUE(fs::exists(folder_ / "alone/adapter_config.json"));
  EXPECT_TRUE(fs::exists(folder_ / "alone/adapter_model.safetensors"));
}

// Nothing but adapters: what moe8 export --adapter leaves out would be missed.
TEST_F(FineTuningTest, AdaptersLeaveTheBalancingBias) {
  RunConfig run = config("bias");
  run.lora.rank = 2;
  ASSERT_GT(run.model.load_balance_coeff, 0);
  const auto after = trained(run);
  EXPECT_EQ(after.at("layers.1.moe.expert_bias").abs().max().item<double>(), 0);
}

// Forward computes the same with codes, and so does a run that goes on with what they stand for.
TEST_F(FineTuningTest, AdaptersBesideWeightsKeptAsCodes) {
  for (const std::string recipe : {"fp8_rowwise", "mxfp8_rceil"}) {
    RunConfig plain = config(recipe + "-weights");
    plain.lora = {.rank = 4, .alpha = 8};
    plain.training.recipe = recipe;
    plain.training.weights = Weights::MASTER;
    plain.training.activation_checkpointing = Recompute::FULL;
    plain.checkpoint.interval = 3;
    RunConfig codes = plain;
    codes.lora.base = LoraBase::CODES;
    codes.output.folder = folder_ / recipe + "-codes";
    trained(plain);
    const auto after = trained(codes);
    const auto losses = [](const RunConfig& run) {
      return read_metrics(run.output.folder + "/metrics.jsonl");
    };
    EXPECT_EQ(losses(plain).front().loss, losses(codes).front().loss);
    EXPECT_NEAR(losses(plain).back().loss, losses(codes).back().loss, 0.02);
    RunConfig parts = codes;
    parts.output.folder = folder_ / recipe + "-parts";
    RunOptions options;
    int calls = 0;
    options.interrupted = [&] { return ++calls > 4 ? 15 : 0; };
    train(parts, options);
    train(parts, resumed());
    const auto again = load_safetensors(parts.output.folder + "/model.safetensors");
    for (const auto& [name, tensor] : after) EXPECT_TRUE(same_bits(tensor, again.at(name))) << name;
    const ModelSource source = find_model(codes.output.folder);
    EXPECT_EQ(source.dtype, at::kBFloat16);
    parts.lora.base = LoraBase::WEIGHTS;
    EXPECT_THAT(error_of([&] { train(parts, resumed()); }),
                HasSubstr("lora.base: expected 'codes'"));
  }
}

TEST_F(FineTuningTest, WhatCannotBeKeptAsCodes) {
  RunConfig run = config("codes");
  run.lora.base = LoraBase::CODES;
  EXPECT_THAT(error_of([&] { run.validate(); }), HasSubstr("lora.base: expected \"weights\""));
  run.lora.rank = 2;
  EXPECT_THAT(error_of([&] { run.validate(); }),
              HasSubstr("training.activation_checkpointing: expected full beside lora.base"));
  run.training.activation_checkpointing = Recompute::FULL;
  EXPECT_THAT(error_of([&] { train(run, {}); }),
              HasSubstr("lora.base: expected a recipe that converts weights to codes"));
}

TEST_F(FineTuningTest, APlanOfCodesHasHalfOfTheWeights) {
  RunConfig run = config("plan");
  run.training.weights = Weights::MASTER;
  run.training.recipe = "fp8_rowwise";
  run.training.activation_checkpointing = Recompute::FULL;
  run.lora.rank = 2;
  const MemoryPlan weights = plan_memory(run);
  run.lora.base = LoraBase::CODES;
  const MemoryPlan codes = plan_memory(run);
  Transformer model(run.model, 1, at::kBFloat16);
  add_lora(*model, run.lora.options());
  convert_model(*model, run.conversion());
  keep_as_codes(*model);
  double bytes = 0;
  for (const auto& parameter : model->named_parameters()) {
    const at::Tensor& x = parameter.value();
    if (!is_kept_as_codes(x)) bytes += double(x.nbytes());
  }
  for (const auto& buffer : model->named_buffers()) {
    const bool is_part = buffer.key().ends_with("_codes") || buffer.key().ends_with("_scales");
    if (is_part) bytes += double(buffer.value().nbytes());
  }
  EXPECT_EQ(codes.weights, bytes);
  EXPECT_LT(codes.weights, 0.75 * weights.weights);
  EXPECT_EQ(codes.weight_forms, 0);
  // Before they are codes the weights are there as they are.
  EXPECT_EQ(codes.step.before, weights.weights + codes.masters + codes.optimizer);
  EXPECT_GE(codes.peak(), codes.step.before);
}

TEST_F(FineTuningTest, AnAdaptersPlanHasNoOptimizerOfTheModel) {
  RunConfig run = config("plan");
  const MemoryPlan whole = plan_memory(run);
  run.lora.rank = 2;
  const MemoryPlan adapters = plan_memory(run);
  double elements = 0;
  for (const TrainedParameter& one : trained_parameters(run)) {
    double product = 1;
    for (const int64_t size : one.parameter.shape) product *= static_cast<double>(size);
    elements += product;
  }
  EXPECT_EQ(adapters.optimizer, 8 * elements);
  EXPECT_EQ(adapters.gradients, 4 * elements);
  EXPECT_EQ(adapters.weights, whole.weights + 4 * elements);
}

// ---- answers --------------------------------------------------------------------
class AnswersTest : public FineTuningTest {
 protected:
  AnswersTest() {
    const auto recorded = nlohmann::json::parse(
        std::ifstream(std::string(MOE8_TOKENIZER_CASES) + "/byte_level_prefix.json"));
    std::string lines;
    for (int i = 0; i < 60; ++i) {
      const std::string number = std::to_string(i * 37 % 101);
      lines += nlohmann::json({{"prompt", "Q " + number + std::string(size_t(i % 5), '?')},
                               {"completion", " A " + number + number}})
                   .dump() +
               "\n";
    }
    job_.files = {folder_.write("chat.jsonl", lines)};
    job_.tokenizer = folder_.write("tokenizer.json", recorded["tokenizer"].dump());
    job_.out = folder_ / "chat";
    job_.end_token = "<mask>";
    job_.documents.answers = true;
    vocabulary_ = tokenize_files(job_).vocabulary;
  }
  DataConfig data() const {
    return {.files = {job_.out},
            .validation_fraction = 0.3,
            .windows = DataWindows::DOCUMENTS,
            .attention_across_documents = false};
  }

  TokenizeJob job_;
  int64_t vocabulary_ = 0;
};

TEST_F(AnswersTest, SequencesAreWholeDocumentsWithTargetsOfAnswers) {
  const TextData data(this->data(), vocabulary_);
  const TokenSource source = TokenSource::open(job_.out);
  const std::vector<uint64_t> ends = source.document_ends();
  std::vector<uint8_t> answers(source.size());
  source.read_answers(0, answers);
  std::vector<uint32_t> ids(source.size());
  source.read(0, ids, ~uint32_t{0});
  constexpr int64_t kLength = 48;
  std::set<int64_t> firsts;
  for (int64_t index = 0; index < 20; ++index) {
    const Batch batch = data.train_batch(1, index, 3, kLength);
    int64_t counted = 0;
    for (int64_t row = 0; row < 3; ++row) {
      const auto at = [&](const at::Tensor& x, int64_t i) { return x[row][i].item<int64_t>(); };
      // The row is what the file holds from where its first document begins.
      const auto first = static_cast<size_t>(at(batch.documents, 0));
      const uint64_t begin = first == 0 ? 0 : ends[first - 1];
      firsts.insert(static_cast<int64_t>(first));
      for (int64_t i = 0; i < kLength; ++i) {
        const int64_t document = at(batch.documents, i), target = at(batch.targets, i);
        if (document < 0) {
          EXPECT_EQ(target, kNoTarget);
          continue;
        }
        const uint64_t place = begin + static_cast<uint64_t>(i);
        EXPECT_EQ(at(batch.tokens, i), ids[place]);
        EXPECT_LT(place, ends[static_cast<size_t>(document)]);
        EXPECT_TRUE(document == 0 || place >= ends[static_cast<size_t>(document) - 1]);
        const bool is_last = place + 1 == ends[static_cast<size_t>(document)];
        if (target == kNoTarget) {
          EXPECT_TRUE(is_last || answers[place + 1] == 0) << place;
          continue;
        }
        ++counted;
        EXPECT_FALSE(is_last);
        EXPECT_EQ(target, ids[place + 1]);
        EXPECT_EQ(answers[place + 1], 1);
      }
    }
    EXPECT_EQ(batch.counted.item<int64_t>(), counted);
    EXPECT_EQ(data.train_counted(1, index, 3, kLength), counted);
    EXPECT_GT(counted, 0);
  }
  EXPECT_GT(firsts.size(), 20U);  // all of them are drawn in time
}

// The loss of a run on its validation documents is that of each document by itself.
TEST_F(AnswersTest, ValidationIsTheLossOfEachAnswer) {
  RunConfig run = config("answers");
  run.model.vocab_size = vocabulary_;
  run.data = data();
  run.training.batch_size = 1;
  run.training.validation_batches = 1000;
  const RunResult result = train(run, {});
  const ModelSource source = find_model(run.output.folder);
  const Tokenizer tokenizer(job_.tokenizer);
  const auto model = load_model(source, at::kFloat, at::kCPU);
  const TextData data(run.data, vocabulary_);
  const std::vector<uint64_t> ends = TokenSource::open(job_.out).document_ends();
  // The documents behind those that it trained on.
  std::vector<EvalText> texts = open_eval_texts({.files = {job_.out}}, source, &tokenizer);
  EvalText& text = texts.front();
  std::erase_if(text.document_ends,
                [&](uint64_t end) { return end <= static_cast<uint64_t>(data.train_tokens()); });
  const int64_t first = data.train_tokens();
  EvalText behind = text;
  behind.size -= first;
  for (uint64_t& end : behind.document_ends) end -= static_cast<uint64_t>(first);
  behind.read = [&](int64_t begin, std::span<uint32_t> ids) { text.read(first + begin, ids); };
  behind.read_counts = [&](int64_t begin, std::span<uint8_t> counts) {
    text.read_counts(first + begin, counts);
  };
  const Estimate loss = mean_loss(evaluate(*model, {behind}, {.seq_len = 32}, false, &tokenizer));
  EXPECT_NEAR(result.validation_loss, loss.value, 1e-5);
  // What moe8 eval takes when it is given the run alone.
  const std::vector<EvalText> held_out = open_eval_texts({}, source, &tokenizer);
  EXPECT_EQ(held_out.front().size, data.validation_tokens());
  EXPECT_EQ(held_out.front().document_ends, behind.document_ends);
  EXPECT_LT(result.validation_loss, std::log(vocabulary_));
}

// The step's loss weighs every answer's token the same, however they lie in the batches.
TEST_F(AnswersTest, TheStepsLossIsTheMeanOverCountedTokens) {
  RunConfig run = config("mean");
  run.model.vocab_size = vocabulary_;
  run.data = data();
  run.training.steps = 1;
  run.training.batch_size = 2;
  run.training.accumulation = 3;
  train(run, {});
  const double loss = read_metrics(run.output.folder + "/metrics.jsonl").front().loss;
  Transformer model(run.model, static_cast<uint64_t>(run.training.seed), at::kFloat);
  const TextData data(run.data, vocabulary_);
  const torch::NoGradGuard no_grad;
  double sum = 0, tokens = 0;
  for (int64_t i = 0; i < 3; ++i) {
    const Batch batch = data.train_batch(static_cast<uint64_t>(run.training.seed), i, 2, 32);
    const at::Tensor logits = model->forward_with(batch.tokens, {.documents = batch.documents});
    sum += at::cross_entropy_loss(logits.flatten(0, 1), batch.targets.flatten(), {},
                                  at::Reduction::Sum, kNoTarget)
               .item<double>();
    tokens += batch.counted.item<double>();
  }
  EXPECT_NEAR(loss, sum / tokens, 1e-5);
}

TEST_F(AnswersTest, FilesWithoutDocumentsAreRefused) {
  DataConfig flat = data();
  flat.files = {folder_.write("flat.bin", std::string(400, '\x01'))};
  flat.tokens = DataTokens::UINT16;
  EXPECT_THAT(error_of([&] { TextData(flat, 300); }),
              HasSubstr("data.windows: expected files that say where documents end"));
  flat.windows = DataWindows::ANYWHERE;
  EXPECT_THAT(error_of([&] { TextData(flat, 300); }),
              HasSubstr("data.attention_across_documents: expected files that say"));
}

}  // namespace
}  // namespace moe8
