// SPDX-License-Identifier: BSD-3-Clause
// The training loop.
#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "device/cuda_device.h"
#include "device/implementation.h"
#include "io/file.h"
#include "moe8/model_ops.h"
#include "moe8/quantize_model.h"
#include "moe8/safetensors.h"
#include "moe8/transformer.h"
#include "train/expert_load.h"
#include "train/health.h"
#include "train/profile/step_profile.h"
#include "train/report/flops.h"
#include "train/run_header.h"
#include "train/schedule.h"
#include "train/step_clock.h"
#include "train/step_graph.h"
#include "train/step_readout.h"
#include "train/stepper.h"
#include "train/store/checkpoint.h"
#include "train/store/checkpoint_folder.h"
#include "train/store/metrics.h"
#include "train/store/named_tensors.h"
#include "train/store/resume.h"
#include "train/store/run_lock.h"
#include "train/store/run_state.h"
#include "train/store/speed.h"
#include "train/text_data.h"
#include "train/thread_count.h"
#include "train/training_device.h"

namespace moe8 {
namespace {

constexpr const char* kTrain = "train";
constexpr int64_t kStepsAlone = 2;  // of runs in turns; the second has the moments of AdamW

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double tokens_of_a_step(const TrainingConfig& t) {
  return static_cast<double>(t.accumulation * t.batch_size * t.seq_len);
}

// Says how long a signal may wait for the step that is being computed: until the first step is done
// and after the last not at all, whatever ends the run.
class Patience {
 public:
  explicit Patience(const RunOptions& options) : say_(options.patience) {}
  ~Patience() {
    if (say_) say_(0);
  }
  Patience(const Patience&) = delete;
  Patience& operator=(const Patience&) = delete;

  // With its validation and checkpoint.
  void step_took(double seconds) {
    constexpr double kMinSeconds = 120, kTimesLongest = 10;
    longest_ = std::max(longest_, seconds);
    if (say_) say_(kMinSeconds + kTimesLongest * longest_);
  }

 private:
  const std::function<void(double)>& say_;
  double longest_ = 0;
};

void check(const RunConfig& config, const RunOptions& options) {
  config.validate();
  MOE8_CHECK(!config.data.files.empty(), "config", "data.files",
             "expected at least one text file, got none. Pass --data FILE or set data.files.");
  to_fqn_config(config.conversion());  // names a recipe that there is
  check_run_folder(config.output.folder, options.existing);
  const int64_t needed = StepProfile::kWarmUp + options.profiled_steps + 1;
  MOE8_CHECK(options.profiled_steps == 0 || config.training.steps >= needed, kTrain,
             "training.steps", "expected at least ", needed, " to profile ", options.profiled_steps,
             ", got ", config.training.steps);
}

// The config that reproduces the run wherever it is started from.
RunConfig resolved(RunConfig config) {
  const ThreadCount threads(config.training.threads);
  for (std::string& file : config.data.files)
    file = std::filesystem::absolute(file).lexically_normal();
  config.output.folder = std::filesystem::absolute(config.output.folder).lexically_normal();
  config.training.threads = at::get_num_threads();
  config.training.device = training_device(config.training.device).is_cuda() ? TrainingDevice::CUDA
                                                                             : TrainingDevice::CPU;
  if (!config.convert.empty()) config.training.recipe = "custom";
  return config;
}

// A scalar on the model's device. Copies there do not wait for it.
torch::Tensor loss_of(TransformerImpl& model, const Batch& batch) {
  const torch::Device device = model.output->weight.device();
  const auto moved = [&](const at::Tensor& x) { return x.to(device, /*non_blocking=*/true); };
  return cross_entropy(model.forward(moved(batch.tokens)), moved(batch.targets),
                       {.overwrite_logits = true});
}

// On the model's device, through pinned memory: nothing waits for the copy.
Batch moved(const Batch& batch, const at::Device& device) {
  if (device.is_cpu()) return batch;
  const auto move = [&](const at::Tensor& x) {
    return x.pin_memory().to(device, /*non_blocking=*/true);
  };
  return {move(batch.tokens), move(batch.targets)};
}

ConversionReport convert(TransformerImpl& model, const RunConfig& config) {
  const FqnToConfig keys = to_fqn_config(config.conversion());
  if (keys.empty()) return {};
  // What does not run in low precision ends the run after its first step: check_products.
  ConversionReport report = quantize_(model, keys, {.unused = Unused::IGNORE});
  log_info("conversion\n" + report.to_table());
  return report;
}

// A run must not go on in another precision than its config says.
void check_products(const TransformerImpl& model) {
  const std::string complaints = check_conversion(model).to_line();
  MOE8_CHECK(complaints.empty(), kTrain, "convert", complaints,
             " Training stopped after the first step.");
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[64];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

// CPU time of all threads of this process so far.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// One run: made ready completely by the constructor, then begin(), turn() until that is false,
// end(). Between these calls other runs may do the same.
class Run {
 public:
  /// @param others_hold  bytes that are in use for other runs
  Run(RunConfig config, RunOptions options, Progress& progress, int64_t others_hold);
  void begin();
  bool turn();
  RunResult end();
  /// From here on other runs work as well: what more is in use cannot be told apart.
  void share_process();

 private:
  void open_folder();
  void resume();
  void load(const CheckpointFolder::Entry& entry, const CheckpointInfo& info);
  std::optional<RunResult> finished(bool has_checkpoint) const;
  void write_start();
  // What LibTorch is set to while the run works.
  struct Settings {
    ThreadCount threads;
    DeviceSettings device;
    TrainingStream stream;
  };
  Settings settings() const {
    return {ThreadCount(config_.training.threads),
            DeviceSettings(device_, config_.training.deterministic), TrainingStream(device_)};
  }
  // A step that is being computed, or was: its numbers are looked at later.
  struct LaunchedStep {
    StepMetrics metrics;  // what is known without them
    StepReadout numbers;  // loss, norm of the gradients, rows of every expert
    StepClock clock;
  };
  LaunchedStep launch();
  torch::Tensor backward(int64_t number, StepClock& clock);
  std::vector<Batch> next_batches();
  torch::Tensor forward_backward(const std::vector<Batch>& batches, StepClock* clock);
  bool runs_as_graph(int64_t step);
  bool must_look_at_once(int64_t step) const;
  void look();
  void measure(StepMetrics& metrics, const LaunchedStep& step);
  bool validation_due(int64_t step) const;
  bool validate(StepMetrics& metrics);
  bool checkpoint_due(bool new_best) const;
  void save();
  void keep_checkpoints();
  void check_finite(double value, const char* what, int64_t number) const;
  int stop_signal() const;
  void count_process();
  RunResult result() const;
  void write_results(const RunResult& end) const;

  RunConfig config_;
  RunOptions options_;
  Progress& progress_;
  size_t row_ = 0;  // of the progress
  int64_t others_hold_;
  bool shares_process_ = false;
  std::optional<Patience> patience_;
  at::Device device_;
  std::optional<double> peak_flops_;  // a second, in bf16; of known GPUs
  TextData data_;
  std::vector<std::string> text_;  // fingerprints of the data
  Transformer model_{nullptr};
  ConversionReport conversion_;
  std::unique_ptr<Stepper> stepper_;
  std::unique_ptr<Health> health_;
  RunState state_;
  std::optional<StepGraph> graph_;        // of steps that are all alike, once it is wanted
  std::optional<bool> wants_graph_;       // known after a few steps
  std::optional<LaunchedStep> launched_;  // the last step, until its numbers were looked at
  int64_t first_step_ = 1;                // of this process
  std::optional<StepProfile> profile_;
  int64_t saved_step_ = 0;
  std::vector<std::string> notes_;     // what to say before training
  std::optional<RunResult> finished_;  // there is nothing to do
  Clock::time_point start_ = Clock::now();

  RunFolder folder_;
  CheckpointFolder checkpoints_;
  std::optional<RunLock> lock_;
  std::optional<MetricsFile> metrics_;
};

Run::Run(RunConfig config, RunOptions options, Progress& progress, int64_t others_hold)
    : config_(std::move(config)),
      options_(std::move(options)),
      progress_(progress),
      others_hold_(others_hold),
      device_(training_device(config_.training.device)),
      peak_flops_(bf16_peak(device_name(device_))),
      data_(config_.data.files, config_.data.validation_fraction),
      folder_{config_.output.folder},
      checkpoints_(folder_.checkpoints()) {
  MOE8_CHECK(device_.is_cuda() || config_.training.cuda_graph != CudaGraphs::ON, kTrain,
             "training.cuda_graph",
             "expected auto or off for a run on the CPU, got on. A graph is of a GPU's work.");
  const Settings now = settings();
  data_.check_sizes(config_.training.batch_size, config_.training.seq_len);
  text_ = data_.fingerprints();
  const auto dtype = config_.training.weights == Weights::FLOAT32 ? at::kFloat : at::kBFloat16;
  model_ = Transformer(config_.model, static_cast<uint64_t>(config_.training.seed), dtype);
  model_->set_recompute(config_.training.activation_checkpointing);
  weigh_router_losses(*model_, 1.0 / static_cast<double>(config_.training.accumulation));
  if (device_.is_cuda()) model_->to(device_);  // made on the CPU: the same weights everywhere
  conversion_ = convert(*model_, config_);
  stepper_ = std::make_unique<Stepper>(*model_, config_.optimizer, config_.training.weights);
  health_ = std::make_unique<Health>(*model_, config_.numerics, config_.training.steps);
  if (options_.profiled_steps > 0) profile_.emplace(device_, options_.profiled_steps);
}

void Run::check_finite(double value, const char* what, int64_t number) const {
  MOE8_CHECK(std::isfinite(value), kTrain, what, "expected a finite number, got ", value,
             " at step ", number, " (recipe ", config_.training.recipe, ", learning rate ",
             learning_rate(config_.optimizer, config_.training.steps, number),
             "). Training stopped; a lower learning rate or a longer warm-up may help.");
}

std::vector<Batch> Run::next_batches() {
  const TrainingConfig& t = config_.training;
  std::vector<Batch> batches;
  for (int64_t i = 0; i < t.accumulation; ++i) {
    batches.push_back(moved(data_.train_batch(static_cast<uint64_t>(t.seed), state_.next_batch++,
                                              t.batch_size, t.seq_len),
                            device_));
  }
  return batches;
}

// The loss of one step, a scalar on the device; its gradients are left in the stepper.
// @param clock  null: the parts of this step cannot be told apart
torch::Tensor Run::forward_backward(const std::vector<Batch>& batches, StepClock* clock) {
  torch::Tensor sum = at::zeros({}, at::TensorOptions(device_).dtype(at::kDouble));
  for (const Batch& batch : batches) {
    if (clock) clock->start(StepClock::Part::FORWARD);
    const torch::Tensor loss = loss_of(*model_, batch) / static_cast<double>(batches.size());
    sum += loss.detach();
    if (clock) clock->start(StepClock::Part::BACKWARD);
    loss.backward();
    health_->stop();  // one batch stands for the step
    stepper_->accumulate();
  }
  return sum;
}

// Steps whose numerics are looked at do more than the others, and a profile shows every kernel by
// its name either way.
bool Run::runs_as_graph(int64_t step) {
  if (step < first_step_ + kStepsBeforeGraph || health_->is_due(step)) return false;
  if (!wants_graph_) {
    const int64_t step_bytes = peak_memory(device_) - memory_in_use(device_);
    wants_graph_ = wants_graph(config_.training.cuda_graph, device_, step_bytes);
    if (*wants_graph_) {
      std::vector<torch::Tensor> holders = model_->parameters();
      if (config_.training.weights == Weights::MASTER) {
        holders.insert(holders.end(), stepper_->stepped().begin(), stepper_->stepped().end());
      }
      graph_.emplace(std::move(holders));
    }
  }
  return graph_.has_value();
}

torch::Tensor Run::backward(int64_t number, StepClock& clock) {
  const std::vector<Batch> batches = next_batches();
  if (!runs_as_graph(number)) {
    health_->start(number);
    return forward_backward(batches, &clock);
  }
  clock.start(StepClock::Part::BACKWARD);  // and forward: one launch
  return graph_->run(batches, [&](const std::vector<Batch>& inputs) {
    return forward_backward(inputs, /*clock=*/nullptr);
  });
}

// Computes the next step, or on a GPU has it computed: nothing here waits for the device. The
// optimizer leaves the weights alone when the norm of the gradients is not finite; look() then ends
// the run before anything is written.
Run::LaunchedStep Run::launch() {
  const double cpu_start = cpu_seconds();
  const TrainingConfig& t = config_.training;
  StepMetrics metrics;
  metrics.step = state_.step + 1;
  metrics.lr = learning_rate(config_.optimizer, t.steps, metrics.step);
  // Steps that follow one another without anything between them.
  const bool goes_on = launched_ && !shares_process_;
  StepClock clock(device_, goes_on ? &launched_->clock : nullptr);
  std::vector<torch::Tensor> numbers{backward(metrics.step, clock)};
  clock.start(StepClock::Part::OPTIMIZER);
  numbers.push_back(stepper_->clip_gradients());
  for (torch::Tensor& counts : expert_counts(*model_)) numbers.push_back(std::move(counts));
  for (torch::Tensor& losses : router_losses(*model_)) numbers.push_back(std::move(losses));
  StepReadout readout(std::move(numbers));
  stepper_->step(metrics.lr);
  update_expert_bias(*model_);
  clock.stop();
  if (device_.is_cpu()) {
    metrics.tokens_per_cpu_s = tokens_of_a_step(t) / (cpu_seconds() - cpu_start);
  } else {
    metrics.gpu_memory = {peak_memory(device_), reserved_memory(device_)};
  }
  state_.step = metrics.step;
  return {std::move(metrics), std::move(readout), std::move(clock)};
}

// Waits for the numbers of a step, and checks them.
void Run::measure(StepMetrics& metrics, const LaunchedStep& step) {
  const std::vector<double> values = step.numbers.values();
  metrics.loss = values[0];
  metrics.grad_norm = values[1];
  check_finite(metrics.loss, "loss", metrics.step);
  check_finite(metrics.grad_norm, "grad_norm", metrics.step);
  const std::vector<ExpertTokens> experts = expert_tokens(*model_, std::span(values).subspan(2));
  add_loads(metrics, experts);
  const size_t losses = 2 * router_losses(*model_).size();
  add_router_losses(metrics, std::span(values).last(losses), config_.training.accumulation);
  health_->finish(experts);
  metrics.tokens_per_s = tokens_of_a_step(config_.training) / step.clock.seconds();
  metrics.ms = step.clock.parts();
  if (profile_) profile_->took(metrics.step - first_step_, step.clock.seconds());
  if (peak_flops_) {
    metrics.mfu =
        metrics.tokens_per_s * model_flops(config_.model, config_.training.seq_len) / *peak_flops_;
  }
  state_.last_losses.push_back(metrics.loss);
  if (static_cast<int64_t>(state_.last_losses.size()) > kLastSteps) state_.last_losses.pop_front();
}

bool Run::validation_due(int64_t step) const {
  const TrainingConfig& t = config_.training;
  return step == t.steps || (t.validation_interval > 0 && step % t.validation_interval == 0);
}

// Where one is due after the step of `metrics`. True when the loss is the lowest so far.
bool Run::validate(StepMetrics& metrics) {
  if (!validation_due(metrics.step)) return false;
  const double loss = validation_loss(*model_, data_, config_.training);
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
  if (finished_) return;
  write_file(kTrain, folder_.config(), to_toml(config_));
  metrics_.emplace(folder_.metrics(), state_.step);
  checkpoints_.prepare();
  checkpoints_.set_aside_after(state_.step);
  keep_checkpoints();
}

// Continues after the newest good checkpoint, or begins anew where there is none yet; a run that is
// finished stays as it is.
void Run::resume() {
  const auto entry = checkpoints_.newest_good();
  if (entry) {
    load(*entry, read_checkpoint_info(entry->path));
  } else if (std::filesystem::exists(folder_.config())) {
    notes_ = allowed_changes(load_run_config(folder_.config()), config_, folder_.config());
  }
  finished_ = finished(entry.has_value());
  if (finished_) {
    notes_ = {"This run is finished: nothing is changed. More steps: --set training.steps=N"};
    return;
  }
  notes_.insert(notes_.begin(), entry ? "Going on after " + entry->path
                                      : "There is no checkpoint yet: beginning with step 1");
}

// The result that the folder holds, when all steps are done and all that they lead to is there.
std::optional<RunResult> Run::finished(bool has_checkpoint) const {
  namespace fs = std::filesystem;
  if (!fs::exists(folder_.result()) || !fs::exists(folder_.metrics())) return std::nullopt;
  if (config_.output.checkpoint && !fs::exists(folder_.model())) return std::nullopt;
  const int64_t steps = config_.training.steps;
  if (has_checkpoint && state_.step != steps) return std::nullopt;
  RunResult result = read_result(folder_.result());
  return result.steps == steps ? std::optional(result) : std::nullopt;
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
  count_process();
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

// Adds to the state what this process took since the last time.
void Run::count_process() {
  state_.seconds += seconds_since(start_);
  start_ = Clock::now();
  if (shares_process_) return;
  state_.peak_memory = std::max(state_.peak_memory, peak_memory(device_) - others_hold_);
}

void Run::share_process() {
  count_process();
  shares_process_ = true;
}

void Run::write_start() {
  metrics_->write(RunStart{.step = state_.step + 1,
                           .date = utc_now(),
                           .program = options_.origin.program,
                           .command = options_.origin.command,
                           .machine = options_.origin.machine,
                           .device = device_.is_cuda() ? device_name(device_) : "CPU",
                           .threads = at::get_num_threads()});
}

void Run::begin() {
  const Settings now = settings();
  open_folder();
  first_step_ = state_.step + 1;
  row_ = progress_.add(config_.training.recipe, config_.training.steps, state_.step);
  if (!finished_) {
    if (state_.step < config_.training.steps) write_start();
    progress_.say(config_.training.recipe);
    for (const std::string& line : header_of(config_, conversion_, device_)) {
      progress_.say_once(line);
    }
    if (device_.is_cuda() || !kernels_wanted()) progress_.say_once(describe_device(device_));
    patience_.emplace(options_);
  }
  for (const std::string& note : notes_) progress_.say(note);
}

// Whether something after this step needs its numbers, or its weights as they are then. On a CPU the
// numbers are there anyway.
bool Run::must_look_at_once(int64_t step) const {
  return device_.is_cpu() || step == first_step_ || validation_due(step) || checkpoint_due(false) ||
         health_->is_due(step);
}

// Looks at the numbers of the last step, and does what is due after it.
void Run::look() {
  if (!launched_) return;
  const LaunchedStep step = *std::exchange(launched_, std::nullopt);
  StepMetrics metrics = step.metrics;
  measure(metrics, step);
  const bool new_best = validate(metrics);
  if (const auto report = health_->take()) {
    metrics_->write(metrics.step, *report);
    progress_.warn(row_, health_->fresh_warnings(*report));
  }
  metrics_->write(metrics);
  progress_.show(row_, metrics);
  if (metrics.step == state_.step && checkpoint_due(new_best)) save();
}

// A step. The one before it is looked at while a GPU computes this one, so that it never waits for
// the host. False when there is none to do any more.
bool Run::turn() {
  if (finished_ || state_.step >= config_.training.steps || stop_signal() != 0) return false;
  const Settings now = settings();
  const Clock::time_point start = Clock::now();
  if (health_->is_due(state_.step + 1)) look();
  if (profile_) profile_->before(state_.step + 1 - first_step_);
  LaunchedStep step = launch();
  if (step.metrics.step == first_step_) check_products(*model_);
  look();  // at the step before
  launched_ = std::move(step);
  const bool was_recorded = profile_ && profile_->after(folder_, progress_);
  patience_->step_took(seconds_since(start));
  if (was_recorded || must_look_at_once(state_.step)) look();
  patience_->step_took(seconds_since(start));
  return true;
}

RunResult Run::end() {
  if (finished_) return *finished_;
  const Settings now = settings();
  look();
  if (state_.step < config_.training.steps && state_.step > saved_step_) save();
  progress_.finish();
  count_process();
  const RunResult end = result();
  if (end.stopped_by == 0) write_results(end);
  patience_.reset();
  return end;
}

RunResult Run::result() const {
  const ParameterCounts counts = count_parameters(config_.model);
  RunResult result;
  result.recipe = config_.training.recipe;
  result.folder = folder_.path;
  result.steps = state_.step;
  const int signal = stop_signal();
  if (state_.step < config_.training.steps) result.stopped_by = signal;
  result.train_loss = std::accumulate(state_.last_losses.begin(), state_.last_losses.end(), 0.0) /
                      static_cast<double>(state_.last_losses.size());
  result.validation_loss = state_.validation_loss.value_or(NAN);
  result.tokens_per_s = speed_of(read_metrics(folder_.metrics())).wall.median;
  result.peak_memory = state_.peak_memory;
  result.seconds = state_.seconds;
  result.parameters = counts.total;
  result.active_parameters = counts.active;
  result.converted_parameters = static_cast<int64_t>(conversion_.converted().size());
  return result;
}

void Run::write_results(const RunResult& end) const {
  if (config_.output.checkpoint) {
    save_safetensors(folder_.model(), learned_tensors(*model_),
                     {{"format", "pt"}, {"recipe", config_.training.recipe}});
  }
  write_result(folder_.result(), end);
}

}  // namespace

RunResult train(const RunConfig& config, const RunOptions& options) {
  return train_in_turns({config}, options).front();
}

std::vector<RunResult> train_in_turns(const std::vector<RunConfig>& configs,
                                      const RunOptions& options) {
  for (const RunConfig& config : configs) check(config, options);
  Progress progress(options.progress, options.progress_kind, options.columns);
  std::vector<std::unique_ptr<Run>> runs;
  int64_t held_at_first = 0;
  for (const RunConfig& config : configs) {
    const RunConfig complete = resolved(config);
    const at::Device device = training_device(complete.training.device);
    restart_peak_memory(device);
    const int64_t held = memory_in_use(device);
    if (runs.empty()) held_at_first = held;
    Run& run = *runs.emplace_back(
        std::make_unique<Run>(complete, options, progress, held - held_at_first));
    run.begin();
    if (configs.size() == 1) break;
    for (int64_t i = 0; i < kStepsAlone && run.turn(); ++i) {
    }
    run.share_process();
  }
  for (bool go_on = true; go_on;) {
    go_on = false;
    for (const auto& run : runs) go_on = run->turn() || go_on;
  }
  std::vector<RunResult> results;
  results.reserve(runs.size());
  for (const auto& run : runs) results.push_back(run->end());
  return results;
}

double validation_loss(TransformerImpl& model, const TextData& data, const TrainingConfig& config) {
  const torch::NoGradGuard no_grad;
  const bool was_training = model.is_training();
  model.eval();
  const int64_t batches = std::min(config.validation_batches,
                                   data.validation_batches(config.batch_size, config.seq_len));
  std::vector<torch::Tensor> losses;
  for (int64_t i = 0; i < batches; ++i) {
    losses.push_back(loss_of(model, data.validation_batch(i, config.batch_size, config.seq_len)));
  }
  model.train(was_training);
  const std::vector<double> values = StepReadout(std::move(losses)).values();
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(batches);
}

}  // namespace moe8
