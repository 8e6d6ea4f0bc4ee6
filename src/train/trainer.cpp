// SPDX-License-Identifier: BSD-3-Clause
// The training loop.
#include "train/trainer.h"

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/check.h"
#include "base/log.h"
#include "io/file.h"
#include "moe8/safetensors.h"
#include "train/metrics.h"
#include "train/process_memory.h"
#include "train/run_state.h"
#include "train/schedule.h"
#include "train/stepper.h"
#include "train/text_data.h"

namespace moe8 {
namespace {

constexpr const char* kOp = "train";

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double tokens_of_a_step(const TrainingConfig& t) {
  return static_cast<double>(t.accumulation * t.batch_size * t.seq_len);
}

// Sets the number of LibTorch's threads for a while.
class Threads {
 public:
  explicit Threads(int64_t count) : before_(at::get_num_threads()) {
    if (count > 0) at::set_num_threads(static_cast<int>(count));
  }
  ~Threads() { at::set_num_threads(before_); }

 private:
  int before_;
};

// The config that reproduces the run wherever it is started from.
RunConfig resolved(RunConfig config) {
  for (std::string& file : config.data.files)
    file = std::filesystem::absolute(file).lexically_normal();
  config.output.folder = std::filesystem::absolute(config.output.folder).lexically_normal();
  config.training.threads = at::get_num_threads();
  if (!config.convert.empty()) config.training.recipe = "custom";
  return config;
}

void write_text(const std::string& path, const std::string& text) {
  AtomicFile file(kOp, path);
  file.write(text.data(), text.size());
  file.commit();
}

torch::Tensor loss_of(TransformerImpl& model, const Batch& batch) {
  const torch::Tensor logits = model.forward(batch.tokens).to(at::kFloat);
  return torch::nn::functional::cross_entropy(logits.flatten(0, 1), batch.targets.flatten());
}

struct Load {
  double least = 1;
  double most = 1;
};

// Of the counts since the last update_expert_bias.
Load expert_load(torch::nn::Module& model) {
  Load load;
  model.apply([&](torch::nn::Module& module) {
    const auto* layer = module.as<MoEImpl>();
    if (!layer) return;
    const torch::Tensor relative = layer->tokens_per_expert / layer->tokens_per_expert.mean();
    load.least = std::min(load.least, relative.min().item<double>());
    load.most = std::max(load.most, relative.max().item<double>());
  });
  return load;
}

void save_model(const TransformerImpl& model, const RunConfig& config, const std::string& path) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& parameter : model.named_parameters()) {
    tensors.emplace_back(parameter.key(), parameter.value().detach());
  }
  for (const auto& buffer : model.named_buffers()) {
    // Counts are of one step only; the bias is part of what the model learned.
    if (buffer.key().ends_with(".expert_bias")) tensors.emplace_back(buffer.key(), buffer.value());
  }
  save_safetensors(path, tensors, {{"format", "pt"}, {"recipe", config.training.recipe}});
}

int64_t convert(TransformerImpl& model, const RunConfig& config) {
  const FqnToConfig keys = to_fqn_config(config.conversion());
  if (keys.empty()) return 0;
  const ConversionReport report = quantize_(model, keys);
  log_info("conversion\n" + report.to_table());
  return static_cast<int64_t>(report.converted().size());
}

// One run: made ready completely by the constructor, then trained by go().
class Run {
 public:
  Run(const RunConfig& config, const RunOptions& options);
  RunResult go();

 private:
  StepMetrics step();
  double backward(int64_t number);
  void validate(StepMetrics& metrics);
  void check_finite(double value, const char* what, int64_t number) const;
  RunResult finish(const RunFolder& folder) const;
  RunResult result(const RunFolder& folder) const;

  RunConfig config_;
  RunOptions options_;
  TextData data_;
  Transformer model_{nullptr};
  int64_t converted_parameters_ = 0;
  std::unique_ptr<Stepper> stepper_;
  RunState state_;
  Clock::time_point start_ = Clock::now();
  bool warm_ = false;  // the first step after a start is not timed
};

Run::Run(const RunConfig& config, const RunOptions& options)
    : config_(config),
      options_(options),
      data_(config.data.files, config.data.validation_fraction) {
  data_.check_sizes(config_.training.batch_size, config_.training.seq_len);
  const auto dtype = config_.training.weights == Weights::FLOAT32 ? at::kFloat : at::kBFloat16;
  model_ = Transformer(config_.model, static_cast<uint64_t>(config_.training.seed), dtype);
  converted_parameters_ = convert(*model_, config_);
  stepper_ = std::make_unique<Stepper>(*model_, config_.optimizer, config_.training.weights);
}

void Run::check_finite(double value, const char* what, int64_t number) const {
  MOE8_CHECK(std::isfinite(value), kOp, what, "expected a finite number, got ", value, " at step ",
             number, " (recipe ", config_.training.recipe, ", learning rate ",
             learning_rate(config_.optimizer, config_.training.steps, number),
             "). Training stopped; a lower learning rate or a longer warm-up may help.");
}

// The loss of one step, its gradients left in the stepper.
double Run::backward(int64_t number) {
  const TrainingConfig& t = config_.training;
  double sum = 0;
  for (int64_t i = 0; i < t.accumulation; ++i) {
    const Batch batch = data_.train_batch(static_cast<uint64_t>(t.seed), state_.next_batch++,
                                          t.batch_size, t.seq_len);
    const torch::Tensor loss = loss_of(*model_, batch) / static_cast<double>(t.accumulation);
    sum += loss.item<double>();
    check_finite(sum, "loss", number);
    loss.backward();
    stepper_->accumulate();
  }
  return sum;
}

StepMetrics Run::step() {
  const Clock::time_point start = Clock::now();
  const TrainingConfig& t = config_.training;
  StepMetrics metrics;
  metrics.step = state_.step + 1;
  metrics.lr = learning_rate(config_.optimizer, t.steps, metrics.step);
  metrics.loss = backward(metrics.step);
  metrics.grad_norm = stepper_->step(metrics.lr);
  check_finite(metrics.grad_norm, "grad_norm", metrics.step);
  const Load load = expert_load(*model_);
  metrics.expert_load_min = load.least;
  metrics.expert_load_max = load.most;
  update_expert_bias(*model_);
  const double seconds = seconds_since(start);
  metrics.tokens_per_s = tokens_of_a_step(t) / seconds;

  state_.step = metrics.step;
  state_.tokens_per_s = metrics.tokens_per_s;
  state_.last_losses.push_back(metrics.loss);
  if (static_cast<int64_t>(state_.last_losses.size()) > kLastSteps) state_.last_losses.pop_front();
  if (warm_) {
    state_.timed_seconds += seconds;
    ++state_.timed_steps;
  }
  warm_ = true;
  return metrics;
}

// Where a validation is due after the step of `metrics`.
void Run::validate(StepMetrics& metrics) {
  const TrainingConfig& t = config_.training;
  const bool due = t.validation_interval > 0 && metrics.step % t.validation_interval == 0;
  if (!due && metrics.step != t.steps) return;
  const double loss = validation_loss(*model_, data_, t);
  metrics.validation_loss = state_.validation_loss = loss;
  if (!state_.best || loss < state_.best->loss) state_.best = {metrics.step, loss};
}

RunResult Run::go() {
  const TrainingConfig& t = config_.training;
  const RunFolder folder = make_run_folder(config_.output.folder, options_.overwrite);
  write_text(folder.config(), to_toml(config_));
  MetricsFile file(folder.metrics());
  Progress progress(options_.progress, options_.progress_kind, t.recipe, t.steps);
  while (state_.step < t.steps) {
    StepMetrics metrics = step();
    validate(metrics);
    file.write(metrics);
    progress.show(metrics);
  }
  progress.finish();
  state_.seconds += seconds_since(start_);
  return finish(folder);
}

RunResult Run::result(const RunFolder& folder) const {
  const ParameterCounts counts = count_parameters(config_.model);
  RunResult result;
  result.recipe = config_.training.recipe;
  result.folder = folder.path;
  result.steps = state_.step;
  result.train_loss = std::accumulate(state_.last_losses.begin(), state_.last_losses.end(), 0.0) /
                      static_cast<double>(state_.last_losses.size());
  result.validation_loss = state_.validation_loss.value_or(NAN);
  result.tokens_per_s = state_.tokens_per_s;  // stands when no step was timed
  if (state_.timed_steps > 0) {
    result.tokens_per_s = static_cast<double>(state_.timed_steps) *
                          tokens_of_a_step(config_.training) / state_.timed_seconds;
  }
  result.peak_memory = peak_memory();
  result.seconds = state_.seconds;
  result.parameters = counts.total;
  result.active_parameters = counts.active;
  result.converted_parameters = converted_parameters_;
  return result;
}

RunResult Run::finish(const RunFolder& folder) const {
  const RunResult end = result(folder);
  if (config_.output.checkpoint) save_model(*model_, config_, folder.model());
  const nlohmann::ordered_json json{{"recipe", end.recipe},
                                    {"steps", end.steps},
                                    {"train_loss", end.train_loss},
                                    {"validation_loss", end.validation_loss},
                                    {"tokens_per_s", end.tokens_per_s},
                                    {"peak_memory_bytes", end.peak_memory},
                                    {"seconds", end.seconds},
                                    {"parameters", end.parameters},
                                    {"active_parameters", end.active_parameters},
                                    {"converted_parameters", end.converted_parameters}};
  write_text(folder.result(), json.dump(2) + "\n");
  return end;
}

}  // namespace

RunResult train(const RunConfig& config, const RunOptions& options) {
  config.validate();
  MOE8_CHECK(!config.data.files.empty(), "config", "data.files",
             "expected at least one text file, got none. Pass --data FILE or set data.files.");
  check_run_folder(config.output.folder, options.overwrite);
  const Threads threads(config.training.threads);
  restart_peak_memory();
  return Run(resolved(config), options).go();
}

double validation_loss(TransformerImpl& model, const TextData& data, const TrainingConfig& config) {
  const torch::NoGradGuard no_grad;
  const bool was_training = model.is_training();
  model.eval();
  const int64_t batches = std::min(config.validation_batches,
                                   data.validation_batches(config.batch_size, config.seq_len));
  double sum = 0;
  for (int64_t i = 0; i < batches; ++i) {
    sum +=
        loss_of(model, data.validation_batch(i, config.batch_size, config.seq_len)).item<double>();
  }
  model.train(was_training);
  return sum / static_cast<double>(batches);
}

}  // namespace moe8
