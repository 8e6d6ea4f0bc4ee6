// SPDX-License-Identifier: BSD-3-Clause
// The training loop.
#include "train/trainer.h"

#include <torch/nn/functional/loss.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "device/implementation.h"
#include "io/file.h"
#include "moe8/safetensors.h"
#include "train/health.h"
#include "train/schedule.h"
#include "train/stepper.h"
#include "train/store/checkpoint.h"
#include "train/store/checkpoint_folder.h"
#include "train/store/metrics.h"
#include "train/store/named_tensors.h"
#include "train/store/resume.h"
#include "train/store/run_lock.h"
#include "train/store/run_state.h"
#include "train/text_data.h"
#include "train/training_device.h"

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
  config.training.device = training_device(config.training.device).is_cuda() ? TrainingDevice::CUDA
                                                                             : TrainingDevice::CPU;
  if (!config.convert.empty()) config.training.recipe = "custom";
  return config;
}

torch::Tensor loss_of(TransformerImpl& model, const Batch& batch) {
  const torch::Device device = model.output->weight.device();
  const torch::Tensor logits = model.forward(batch.tokens.to(device)).to(at::kFloat);
  return torch::nn::functional::cross_entropy(logits.flatten(0, 1),
                                              batch.targets.to(device).flatten());
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

int64_t convert(TransformerImpl& model, const RunConfig& config) {
  const FqnToConfig keys = to_fqn_config(config.conversion());
  if (keys.empty()) return 0;
  // What does not run in low precision ends the run after its first step: check_products.
  const ConversionReport report = quantize_(model, keys, {.unused = Unused::IGNORE});
  log_info("conversion\n" + report.to_table());
  return static_cast<int64_t>(report.converted().size());
}

// A run must not go on in another precision than its config says.
void check_products(const TransformerImpl& model) {
  const std::string complaints = check_conversion(model).to_line();
  MOE8_CHECK(complaints.empty(), kOp, "convert", complaints,
             " Training stopped after the first step.");
}

// One run: made ready completely by the constructor, then trained by go().
class Run {
 public:
  Run(RunConfig config, RunOptions options);
  RunResult go();

 private:
  void open_folder();
  void resume();
  void load(const CheckpointFolder::Entry& entry, const CheckpointInfo& info);
  void train_on(Progress& progress);
  StepMetrics step();
  double backward(int64_t number);
  bool validate(StepMetrics& metrics);
  bool checkpoint_due(bool new_best) const;
  void save();
  void keep_checkpoints();
  void check_finite(double value, const char* what, int64_t number) const;
  int stop_signal() const;
  void count_seconds();
  RunResult result() const;
  void write_results(const RunResult& end) const;

  RunConfig config_;
  RunOptions options_;
  at::Device device_;
  Deterministic deterministic_;
  TextData data_;
  std::vector<std::string> text_;  // fingerprints of the data
  Transformer model_{nullptr};
  int64_t converted_parameters_ = 0;
  std::unique_ptr<Stepper> stepper_;
  std::unique_ptr<Health> health_;
  RunState state_;
  bool warm_ = false;  // the first step of a process is not timed, and is followed by checks
  int64_t saved_step_ = 0;
  std::vector<std::string> notes_;  // what to say before training
  Clock::time_point start_ = Clock::now();

  RunFolder folder_;
  CheckpointFolder checkpoints_;
  std::optional<RunLock> lock_;
  std::optional<MetricsFile> metrics_;
};

Run::Run(RunConfig config, RunOptions options)
    : config_(std::move(config)),
      options_(std::move(options)),
      device_(training_device(config_.training.device)),
      deterministic_(device_),
      data_(config_.data.files, config_.data.validation_fraction),
      folder_{config_.output.folder},
      checkpoints_(folder_.checkpoints()) {
  data_.check_sizes(config_.training.batch_size, config_.training.seq_len);
  text_ = data_.fingerprints();
  const auto dtype = config_.training.weights == Weights::FLOAT32 ? at::kFloat : at::kBFloat16;
  model_ = Transformer(config_.model, static_cast<uint64_t>(config_.training.seed), dtype);
  if (device_.is_cuda()) model_->to(device_);  // made on the CPU: the same weights everywhere
  converted_parameters_ = convert(*model_, config_);
  stepper_ = std::make_unique<Stepper>(*model_, config_.optimizer, config_.training.weights);
  health_ = std::make_unique<Health>(*model_, config_.numerics);
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
  torch::Tensor sum;  // stays on the device until the step's products are under way
  health_->start(number);
  for (int64_t i = 0; i < t.accumulation; ++i) {
    const Batch batch = data_.train_batch(static_cast<uint64_t>(t.seed), state_.next_batch++,
                                          t.batch_size, t.seq_len);
    const torch::Tensor loss = loss_of(*model_, batch) / static_cast<double>(t.accumulation);
    const torch::Tensor part = loss.detach().to(at::kDouble);
    sum = sum.defined() ? sum + part : part;
    loss.backward();
    health_->stop();  // one batch stands for the step
    stepper_->accumulate();
  }
  const auto total = sum.item<double>();
  check_finite(total, "loss", number);
  return total;
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
  health_->finish();
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

// Where one is due after the step of `metrics`. True when the loss is the lowest so far.
bool Run::validate(StepMetrics& metrics) {
  const TrainingConfig& t = config_.training;
  const bool due = t.validation_interval > 0 && metrics.step % t.validation_interval == 0;
  if (!due && metrics.step != t.steps) return false;
  const double loss = validation_loss(*model_, data_, t);
  check_finite(loss, "validation_loss", metrics.step);
  metrics.validation_loss = state_.validation_loss = loss;
  if (state_.best && loss >= state_.best->loss) return false;
  state_.best = {metrics.step, loss};
  return true;
}

// ---- the folder -------------------------------------------------------------
// From here on the folder is this run's.
void Run::open_folder() {
  make_run_folder(folder_);
  lock_.emplace(folder_.lock());
  remove_leftovers(folder_.path);
  // Again, as another process may have been quicker.
  check_run_folder(folder_.path, options_.existing);
  if (options_.existing == ExistingRun::REPLACE) clear_run_folder(folder_);
  at::manual_seed(static_cast<uint64_t>(config_.training.seed));
  if (options_.existing == ExistingRun::RESUME) resume();
  write_file(kOp, folder_.config(), to_toml(config_));
  metrics_.emplace(folder_.metrics(), state_.step);
  checkpoints_.prepare();
  checkpoints_.set_aside_after(state_.step);
  keep_checkpoints();
}

// Continues after the newest good checkpoint, or begins anew where there is none yet.
void Run::resume() {
  const auto entry = checkpoints_.newest_good();
  if (entry) {
    load(*entry, read_checkpoint_info(entry->path));
  } else if (std::filesystem::exists(folder_.config())) {
    notes_ = allowed_changes(load_run_config(folder_.config()), config_, folder_.config());
  }
  notes_.insert(notes_.begin(), entry ? "Going on after " + entry->path
                                      : "There is no checkpoint yet: beginning with step 1");
}

void Run::load(const CheckpointFolder::Entry& entry, const CheckpointInfo& info) {
  notes_ = allowed_changes(info.config, config_, entry.path);
  MOE8_CHECK(info.text == text_, "resume", "data.files", "expected the text that '", entry.path,
             "' was trained on, got another: its checksums differ");
  MOE8_CHECK(info.state.step <= config_.training.steps, "resume", "training.steps",
             "expected at least the ", info.state.step, " steps of '", entry.path, "', got ",
             config_.training.steps);
  const std::string environment = changes(info.environment, this_environment(device_));
  if (!environment.empty()) {
    log_warning("losses may differ from those of an unbroken run in their last digits: " +
                environment);
  }
  const CheckpointFiles files{entry.path};
  load_into(learned_tensors(*model_), files.model());
  stepper_->restore(files.training());
  restore_generators(files.training(), device_);
  state_ = info.state;
  saved_step_ = state_.step;
}

bool Run::checkpoint_due(bool new_best) const {
  const int64_t interval = config_.checkpoint.interval;
  if (interval == 0) return false;
  return new_best || state_.step % interval == 0 || state_.step == config_.training.steps;
}

// The metrics first: a checkpoint promises the lines up to its step.
void Run::save() {
  count_seconds();
  metrics_->sync();
  CheckpointTensors tensors{learned_tensors(*model_), stepper_->state()};
  for (auto& state : generator_states(device_)) tensors.training.push_back(std::move(state));
  write_checkpoint(checkpoints_.path_of(state_.step),
                   {config_, state_, text_, this_environment(device_)}, tensors);
  saved_step_ = state_.step;
  keep_checkpoints();
}

void Run::keep_checkpoints() {
  const auto best = state_.best ? std::optional(state_.best->step) : std::nullopt;
  checkpoints_.keep(config_.checkpoint.keep, best);
}

// ---- from begin to end ------------------------------------------------------
int Run::stop_signal() const {
  return options_.interrupted ? options_.interrupted() : 0;
}

void Run::count_seconds() {
  state_.seconds += seconds_since(start_);
  start_ = Clock::now();
}

void Run::train_on(Progress& progress) {
  while (state_.step < config_.training.steps && stop_signal() == 0) {
    const bool is_first = !warm_;
    StepMetrics metrics = step();
    if (is_first) check_products(*model_);
    const bool new_best = validate(metrics);
    if (const auto report = health_->take()) {
      metrics_->write(metrics.step, *report);
      progress.warn(health_->fresh_warnings(*report));
    }
    metrics_->write(metrics);
    progress.show(metrics);
    if (checkpoint_due(new_best)) save();
  }
  if (state_.step < config_.training.steps && state_.step > saved_step_) save();
}

RunResult Run::go() {
  open_folder();
  const TrainingConfig& t = config_.training;
  Progress progress(options_.progress, options_.progress_kind, t.recipe, t.steps, state_.step);
  if (device_.is_cuda() || !kernels_wanted()) progress.say(describe_device(device_));
  for (const std::string& note : notes_) progress.say(note);
  train_on(progress);
  progress.finish();
  count_seconds();
  const RunResult end = result();
  if (end.stopped_by == 0) write_results(end);
  return end;
}

RunResult Run::result() const {
  const ParameterCounts counts = count_parameters(config_.model);
  RunResult result;
  result.recipe = config_.training.recipe;
  result.folder = folder_.path;
  result.steps = state_.step;
  if (state_.step < config_.training.steps) result.stopped_by = stop_signal();
  result.train_loss = std::accumulate(state_.last_losses.begin(), state_.last_losses.end(), 0.0) /
                      static_cast<double>(state_.last_losses.size());
  result.validation_loss = state_.validation_loss.value_or(NAN);
  result.tokens_per_s = state_.tokens_per_s;  // stands when no step was timed
  if (state_.timed_steps > 0) {
    result.tokens_per_s = static_cast<double>(state_.timed_steps) *
                          tokens_of_a_step(config_.training) / state_.timed_seconds;
  }
  result.peak_memory = peak_memory(device_);
  result.seconds = state_.seconds;
  result.parameters = counts.total;
  result.active_parameters = counts.active;
  result.converted_parameters = converted_parameters_;
  return result;
}

void Run::write_results(const RunResult& end) const {
  if (config_.output.checkpoint) {
    save_safetensors(folder_.model(), learned_tensors(*model_),
                     {{"format", "pt"}, {"recipe", config_.training.recipe}});
  }
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
  write_file(kOp, folder_.result(), json.dump(2) + "\n");
}

}  // namespace

RunResult train(const RunConfig& config, const RunOptions& options) {
  config.validate();
  MOE8_CHECK(!config.data.files.empty(), "config", "data.files",
             "expected at least one text file, got none. Pass --data FILE or set data.files.");
  check_run_folder(config.output.folder, options.existing);
  const Threads threads(config.training.threads);
  const RunConfig complete = resolved(config);
  restart_peak_memory(training_device(complete.training.device));
  return Run(complete, options).go();
}

double validation_loss(TransformerImpl& model, const TextData& data, const TrainingConfig& config) {
  const torch::NoGradGuard no_grad;
  const bool was_training = model.is_training();
  model.eval();
  const int64_t batches = std::min(config.validation_batches,
                                   data.validation_batches(config.batch_size, config.seq_len));
  torch::Tensor sum = torch::zeros({}, at::kDouble);
  for (int64_t i = 0; i < batches; ++i) {
    const torch::Tensor loss =
        loss_of(model, data.validation_batch(i, config.batch_size, config.seq_len));
    sum = sum.to(loss.device()) + loss.to(at::kDouble);
  }
  model.train(was_training);
  return sum.item<double>() / static_cast<double>(batches);
}

}  // namespace moe8
