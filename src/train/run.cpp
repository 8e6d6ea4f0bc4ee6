// SPDX-License-Identifier: BSD-3-Clause
// The steps of a run.
#include "train/run.h"

#include <torch/headeronly/version.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <map>
#include <numeric>
#include <set>
#include <span>

#include "base/check.h"
#include "base/log.h"
#include "base/nearest.h"
#include "device/cuda_device.h"
#include "device/implementation.h"
#include "dist/activity.h"
#include "moe8/lora.h"
#include "moe8/model_ops.h"
#include "moe8/pretrained.h"
#include "moe8/version.h"
#include "nn/frozen_codes.h"
#include "nn/init.h"
#include "train/agree.h"
#include "train/config/trained_parameters.h"
#include "train/expert_load.h"
#include "train/model_source.h"
#include "train/report/flops.h"
#include "train/run_header.h"
#include "train/schedule.h"

namespace moe8 {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double tokens_of_a_step(const TrainingConfig& t) {
  return static_cast<double>(t.accumulation * t.batch_size * t.seq_len);
}

// A scalar on the model's device, of this rank's positions. Copies there do not wait for it.
torch::Tensor loss_of(TransformerImpl& model, const Batch& batch) {
  const torch::Device device = model.tok_embeddings->weight.device();
  const auto moved = [&](const at::Tensor& x) {
    return x.defined() ? x.to(device, /*non_blocking=*/true) : x;
  };
  const at::Tensor targets = sequence_part(model.tensor_group(), moved(batch.targets));
  const at::Tensor logits =
      model.forward_with(moved(batch.tokens), {.documents = moved(batch.documents)});
  return cross_entropy(logits, targets, {.ignore_index = kNoTarget, .overwrite_logits = true});
}

// On the model's device, through pinned memory: nothing waits for the copy.
Batch moved(const Batch& batch, const at::Device& device) {
  if (device.is_cpu()) return batch;
  const auto move = [&](const at::Tensor& x) {
    return x.defined() ? x.pin_memory().to(device, /*non_blocking=*/true) : x;
  };
  return {move(batch.tokens), move(batch.targets), move(batch.documents), move(batch.counted)};
}

// A run must not go on in another precision than its config says.
void check_products(const TransformerImpl& model) {
  const std::string complaints = check_conversion(model).to_line();
  MOE8_CHECK(complaints.empty(), kTrain, "convert", complaints,
             " Training stopped after the first step.");
}

// All that the run does not train: with lora everything, beside which adapters are added.
void freeze(TransformerImpl& model, const RunConfig& config) {
  if (config.lora.rank > 0) {
    return add_lora(model, config.lora.options(), static_cast<uint64_t>(config.training.seed));
  }
  if (config.optimizer.frozen.empty()) return;
  std::set<std::string> trained;
  for (const TrainedParameter& one : trained_parameters(config)) trained.insert(one.parameter.name);
  for (const auto& parameter : model.named_parameters()) {
    if (!trained.contains(parameter.key())) parameter.value().requires_grad_(false);
  }
}

std::map<std::string, double> rates_of(const RunConfig& config) {
  std::map<std::string, double> rates;
  for (const TrainedParameter& one : trained_parameters(config)) {
    if (one.rate != 1) rates[one.parameter.name] = one.rate;
  }
  return rates;
}

// CPU time of all threads of this process so far.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

Run::Run(RunConfig config, RunOptions options, Progress& progress, int64_t others_hold,
         const Crew& crew)
    : config_(std::move(config)),
      options_(std::move(options)),
      progress_(progress),
      crew_(crew),
      share_(config_.training.batch_size, config_.training.accumulation, crew.data().size(),
             crew.data().rank(), crew.tensor().size()),
      others_hold_(others_hold),
      device_(crew.device(config_)),
      peak_flops_(bf16_peak(device_name(device_))),
      data_(config_.data, config_.model.vocab_size),
      folder_{config_.output.folder},
      checkpoints_(folder_.checkpoints()) {
  MOE8_CHECK(device_.is_cuda() || config_.training.cuda_graph != CudaGraphs::ON, kTrain,
             "training.cuda_graph",
             "expected auto or off for a run on the CPU, got on. A graph is of a GPU's work.");
  const LongWork reads_files;
  const Settings now = settings();
  check_tokens();
  check_ranks();
  data_.check_sizes(config_.training.batch_size, config_.training.seq_len);
  text_ = data_.fingerprints();
  crew_.check_same(shared_settings());
  const auto dtype = config_.training.weights == Weights::FLOAT32 ? at::kFloat : at::kBFloat16;
  {
    std::optional<WithoutInit> weights_come;
    if (!config_.from.empty() || goes_on()) weights_come.emplace();
    model_ = Transformer(config_.model, static_cast<uint64_t>(config_.training.seed), dtype,
                         crew_.expert(), crew_.tensor());
  }
  model_->set_recompute(config_.training.activation_checkpointing);
  begin_with_published();
  weigh_router_losses(*model_, 1.0 / static_cast<double>(share_.losses()));
  if (device_.is_cuda()) model_->to(device_);  // made on the CPU: the same weights everywhere
  freeze(*model_, config_);
  conversion_ = convert_model(*model_, config_.conversion());
  stepper_ = crew_.is_alone()
                 ? std::make_unique<Stepper>(*model_, config_.optimizer, config_.training.weights,
                                             config_.training.sums_in_products(), rates_of(config_))
                 : std::make_unique<Stepper>(*model_, config_.optimizer, config_.training.weights,
                                             crew_.sharding(), crew_.part(config_.model),
                                             rates_of(config_));
  health_ = std::make_unique<Health>(*model_, config_.numerics, config_.training.steps);
  if (options_.profiled_steps > 0 && crew_.is_first()) {
    profile_.emplace(device_, options_.profiled_steps);
  }
}

// A published model knows the tokens of its tokenizer, not bytes.
void Run::check_tokens() const {
  const bool are_bytes = std::string_view(data_.unit()) == "bytes";
  MOE8_CHECK(config_.from.empty() || !are_bytes || config_.data.tokens == DataTokens::BYTES, kTrain,
             "data.files",
             "expected token files for the model of model.from, got text. Make them "
             "with: moe8 tokenize FILE... --tokenizer ",
             config_.from, " --out DIR");
}

// The losses of a tensor group's ranks are those of equal parts.
void Run::check_ranks() const {
  MOE8_CHECK(!data_.counts_some() || crew_.tensor().size() == 1, kTrain, "parallel.tensor",
             "expected 1 where some targets do not count, got ", crew_.tensor().size());
}

// After a checkpoint, whose weights are read once the folder is this run's.
bool Run::goes_on() const {
  return options_.existing == ExistingRun::RESUME && !checkpoints_.entries().empty();
}

void Run::begin_with_published() {
  if (!config_.from.empty() && !goes_on()) load_pretrained(*model_, config_.from);
}

// What ranks that differ in it must not train together. Paths may differ, not what is in the files.
std::vector<std::pair<std::string, std::string>> Run::shared_settings() const {
  std::vector<std::pair<std::string, std::string>> settings{{"moe8", version()},
                                                            {"LibTorch", TORCH_VERSION}};
  for (const auto& [name, value] : settings_text(config_)) {
    if (name != "data.files" && name != "training.threads") settings.emplace_back(name, value);
  }
  settings.emplace_back("text of data.files", join(text_));
  return settings;
}

void Run::check_finite(double value, const char* what, int64_t number) {
  if (!std::isfinite(value)) show_health(/*waits=*/true);  // where it may have begun
  MOE8_CHECK(std::isfinite(value), kTrain, what, "expected a finite number, got ", value,
             " at step ", number, " (recipe ", config_.training.recipe, ", learning rate ",
             learning_rate(config_.optimizer, config_.training.steps, number),
             "). Training stopped; a lower learning rate or a longer warm-up may help.");
}

std::vector<Batch> Run::next_batches() {
  const TrainingConfig& t = config_.training;
  std::vector<Batch> batches;
  for (int64_t round = 0; round < share_.rounds(); ++round) {
    const MicroBatch piece = share_.at(state_.next_batch, round);
    batches.push_back(moved(data_.train_batch(static_cast<uint64_t>(t.seed), piece.index,
                                              t.batch_size, t.seq_len, piece.rows),
                            device_));
  }
  if (data_.counts_some()) weigh(batches);
  state_.next_batch += t.accumulation;
  return batches;
}

// Each counted token of the step, whoever computes it, weighs the same in its loss.
void Run::weigh(std::vector<Batch>& batches) const {
  const TrainingConfig& t = config_.training;
  int64_t counted = 0;
  for (int64_t i = 0; i < t.accumulation; ++i) {
    counted += data_.train_counted(static_cast<uint64_t>(t.seed), state_.next_batch + i,
                                   t.batch_size, t.seq_len);
  }
  const auto all = static_cast<double>(std::max<int64_t>(counted, 1));
  for (Batch& batch : batches) batch.counted = batch.counted / all;
}

// What this rank's batches add to the loss of the step, in float64 on the device; their gradients are
// left in the stepper.
// @param clock  null: the parts of this step cannot be told apart
torch::Tensor Run::forward_backward(const std::vector<Batch>& batches, StepClock* clock) {
  std::vector<torch::Tensor> losses;
  for (const Batch& batch : batches) {
    if (clock) clock->start(StepClock::Part::FORWARD);
    const torch::Tensor mean = loss_of(*model_, batch);
    const torch::Tensor loss = batch.counted.defined()
                                   ? mean * batch.counted  // its share of the step's
                                   : mean / static_cast<double>(share_.losses());
    losses.push_back(loss.detach().to(at::kDouble));
    if (clock) clock->start(StepClock::Part::BACKWARD);
    loss.backward();
    health_->stop();  // one batch stands for the step
    stepper_->accumulate();
  }
  return at::stack(losses);
}

// The losses of a step's pieces in their order, and what the layers of experts have counted: of all
// ranks, left in the layers as well. Counts are whole numbers and a loss is one rank's, so that only
// the sums of routers' losses are rounded.
std::vector<torch::Tensor> Run::numbers_of_all(const torch::Tensor& losses) {
  std::vector<torch::Tensor> counted = expert_counts(*model_);
  for (torch::Tensor& sums : router_losses(*model_)) counted.push_back(std::move(sums));
  std::vector<torch::Tensor> numbers{losses};
  if (!crew_.is_alone()) {
    numbers[0] = at::zeros({share_.rounds(), crew_.size()}, losses.options());
    numbers[0].select(1, crew_.rank()).copy_(losses);
    std::vector<torch::Tensor> flat{numbers[0].flatten()};
    for (const torch::Tensor& x : counted) flat.push_back(x.to(at::kDouble));
    const torch::Tensor sums = at::cat(flat);
    all_reduce_(crew_.world(), sums);
    numbers[0] = sums.narrow(0, 0, share_.losses());
    int64_t begin = share_.losses();
    for (const torch::Tensor& x : counted) {
      x.copy_(sums.narrow(0, begin, x.numel()));
      begin += x.numel();
    }
  }
  numbers.insert(numbers.end(), counted.begin(), counted.end());
  return numbers;
}

// Steps whose numerics are looked at do more than the others, and a profile shows every kernel by
// its name either way.
bool Run::runs_as_graph(int64_t step) {
  // A graph cannot hold what ranks send each other while backward runs.
  if (!crew_.is_alone()) return false;
  if (step < first_step_ + kStepsBeforeGraph || health_->is_due(step)) return false;
  if (!wants_graph_) {
    const int64_t step_bytes = peak_memory(device_) - memory_in_use(device_);
    wants_graph_ = wants_graph(config_.training.cuda_graph, device_, step_bytes);
    if (*wants_graph_) {
      std::vector<torch::Tensor> holders = model_->parameters();
      if (config_.training.weights == Weights::MASTER) {
        for (torch::Tensor& stepped : stepper_->stepped()) holders.push_back(std::move(stepped));
      }
      graph_.emplace(std::move(holders));
    }
  }
  return graph_.has_value();
}

torch::Tensor Run::backward(int64_t number, StepClock& clock) {
  const std::vector<Batch> batches = next_batches();
  if (!runs_as_graph(number)) {
    if (crew_.is_first()) health_->start(number);  // it has the step's first batch
    return forward_backward(batches, &clock);
  }
  clock.start(StepClock::Part::BACKWARD);  // and forward: one launch
  return graph_->run(batches, [&](const std::vector<Batch>& inputs) {
    return forward_backward(inputs, /*clock=*/nullptr);
  });
}

// Of the layers of experts. Their balancing biases are part of the model, which adapters leave as it is.
void Run::end_counts() {
  if (config_.lora.rank == 0) return update_expert_bias(*model_);
  const at::NoGradGuard no_grad;
  for (const at::Tensor& counts : expert_counts(*model_)) counts.zero_();
  for (const at::Tensor& sums : router_losses(*model_)) sums.zero_();
}

// Computes the next step, or on a GPU has it computed: nothing here waits for the device. The
// optimizer leaves the weights alone when the norm of the gradients is not finite; look() then ends
// the run before anything is written.
Run::LaunchedStep Run::launch() {
  const double cpu_start = cpu_seconds();
  const Activity before = activity();
  const TrainingConfig& t = config_.training;
  StepMetrics metrics;
  metrics.step = state_.step + 1;
  metrics.lr = learning_rate(config_.optimizer, t.steps, metrics.step);
  // Steps that follow one another without anything between them.
  const bool goes_on = launched_ && !shares_process_;
  StepClock clock(device_, goes_on ? &launched_->clock : nullptr);
  const torch::Tensor losses = backward(metrics.step, clock);
  clock.start(StepClock::Part::OPTIMIZER);
  const torch::Tensor norm = stepper_->clip_gradients();
  std::vector<torch::Tensor> numbers = numbers_of_all(losses);
  numbers.insert(numbers.begin() + 1, norm);
  StepReadout readout(std::move(numbers));
  stepper_->step(metrics.lr);
  end_counts();
  clock.stop();
  if (device_.is_cpu()) {
    metrics.tokens_per_cpu_s = tokens_of_a_step(t) / (cpu_seconds() - cpu_start);
  } else {
    metrics.gpu_memory = {peak_memory(device_), reserved_memory(device_)};
  }
  state_.step = metrics.step;
  return {std::move(metrics), std::move(readout), std::move(clock), before, activity()};
}

// Waits for the numbers of a step, and checks them.
void Run::measure(StepMetrics& metrics, const LaunchedStep& step) {
  const std::vector<double> all = step.numbers.values();
  const std::span<const double> values = std::span(all).subspan(share_.losses());
  metrics.loss = std::accumulate(all.begin(), all.begin() + share_.losses(), 0.0);
  metrics.grad_norm = values[0];
  check_finite(metrics.loss, "loss", metrics.step);
  check_finite(metrics.grad_norm, "grad_norm", metrics.step);
  const std::vector<ExpertTokens> experts = expert_tokens(*model_, values.subspan(1));
  add_loads(metrics, experts);
  const size_t losses = 2 * router_losses(*model_).size();
  add_router_losses(metrics, values.last(losses), share_.losses());
  if (crew_.is_first()) health_->finish(experts);
  count_use(step, experts);
  metrics.tokens_per_s = tokens_of_a_step(config_.training) / step.clock.seconds();
  metrics.ms = step.clock.parts();
  if (profile_) profile_->took(metrics.step - first_step_, step.clock.seconds());
  if (peak_flops_) {
    metrics.mfu = metrics.tokens_per_s * model_flops(config_.model, config_.training.seq_len) /
                  (*peak_flops_ * static_cast<double>(crew_.size()));
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
  const double loss = validation_loss(*model_, data_, config_.training, crew_.data());
  check_finite(loss, "validation_loss", metrics.step);
  metrics.validation_loss = state_.validation_loss = loss;
  if (state_.best && loss >= state_.best->loss) return false;
  state_.best = {metrics.step, loss};
  return true;
}

// ---- from begin to end ------------------------------------------------------
// Adds to the state what this process took since the last time.
void Run::count_process() {
  state_.seconds += seconds_since(start_);
  start_ = Clock::now();
  if (shares_process_) return;
  state_.peak_memory = std::max(state_.peak_memory, peak_memory(device_) - others_hold_);
}

// Of the steps that are done: how long this rank took and waited for others, what its experts got.
void Run::count_use(const LaunchedStep& step, const std::vector<ExpertTokens>& layers) {
  const ExpertPart part = crew_.experts(config_.model);
  for (const ExpertTokens& layer : layers) {
    const std::span<const int64_t> all(layer.tokens);
    const std::span<const int64_t> own =
        part.count == 0 ? all.subspan(0, 0)
                        : all.subspan(part.first, part.count / crew_.expert().size());
    used_.expert_rows += static_cast<double>(std::accumulate(own.begin(), own.end(), int64_t{0}));
  }
  used_.step_seconds += step.clock.seconds();
  const auto waited = step.after.waited - step.before.waited;
  used_.waited_seconds += std::chrono::duration<double>(waited).count();
  used_.bytes_sent += static_cast<double>(step.after.bytes_sent - step.before.bytes_sent);
}

// The means of a step.
RankUse Run::use() {
  const auto steps = static_cast<double>(std::max<int64_t>(state_.step - first_step_ + 1, 1));
  return {used_.step_seconds / steps, used_.waited_seconds / steps, used_.bytes_sent / steps,
          peak_memory(device_) - others_hold_, used_.expert_rows / steps};
}

void Run::share_process() {
  count_process();
  shares_process_ = true;
}

// The weights that this run begins or goes on with are there by now.
void Run::keep_base_as_codes() {
  MOE8_CHECK(
      keep_as_codes(*model_) > 0, kTrain, "lora.base",
      "expected a recipe that converts weights to codes whose scales are powers of two, got ",
      config_.training.recipe, ". base = \"weights\" keeps them as they are.");
}

void Run::begin() {
  const Settings now = settings();
  open_folder();
  if (!finished_ && config_.lora.base == LoraBase::CODES) keep_base_as_codes();
  first_step_ = state_.step + 1;
  row_ = progress_.add(config_.training.recipe, config_.training.steps, state_.step);
  if (!finished_) {
    if (state_.step < config_.training.steps && crew_.is_first()) write_start();
    progress_.say(config_.training.recipe);
    for (const std::string& line : header_of(config_, conversion_, device_)) {
      progress_.say_once(line);
    }
    if (!crew_.is_alone()) progress_.say_once(ranks_text());
    if (device_.is_cuda() || !kernels_wanted()) progress_.say_once(describe_device(device_));
    patience_.emplace(options_);
  }
  for (const std::string& note : notes_) progress_.say(note);
}

// Whether something after this step needs its numbers, or its weights as they are then. On a CPU the
// numbers are there anyway.
bool Run::must_look_at_once(int64_t step) const {
  return device_.is_cpu() || step == first_step_ || validation_due(step) || checkpoint_due(false);
}

// Looks at the numbers of the last step, and does what is due after it.
void Run::look() {
  if (!launched_) return;
  const LaunchedStep step = *std::exchange(launched_, std::nullopt);
  StepMetrics metrics = step.metrics;
  measure(metrics, step);
  const bool new_best = validate(metrics);
  const bool saves = metrics.step == state_.step && checkpoint_due(new_best);
  show_health(/*waits=*/saves || device_.is_cpu());
  if (metrics_) metrics_->write(metrics);
  if (events_) events_->write(metrics.step, scalars_of(metrics));
  progress_.show(row_, metrics);
  if (saves) save();
}

// The look at a step that was due, once it has been measured.
void Run::show_health(bool waits) {
  const auto seen = health_->take(waits);
  if (!seen) return;
  metrics_->write_numerics(seen->step, seen->json);
  if (events_) events_->write(seen->step, scalars_of(seen->report));
  progress_.warn(row_, health_->fresh_warnings(*seen));
}

// A step. The one before it is looked at while a GPU computes this one, so that it never waits for
// the host. False when there is none to do any more.
bool Run::turn() {
  if (finished_ || state_.step >= config_.training.steps) return false;
  signal_ = static_cast<int>(crew_.largest(options_.interrupted ? options_.interrupted() : 0));
  if (stop_signal() != 0) return false;
  const Settings now = settings();
  const Clock::time_point start = Clock::now();
  if (health_->is_due(state_.step + 1)) {
    look();
    show_health(/*waits=*/true);
  }
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
  show_health(/*waits=*/true);
  if (state_.step < config_.training.steps && state_.step > saved_step_) save();
  progress_.finish();
  count_process();
  const std::vector<RankUse> uses = crew_.gather_use(use());
  const NamedTensors model = config_.output.checkpoint ? whole_model() : NamedTensors();
  RunResult end;
  agree(crew_.world(), [&] {
    if (!crew_.is_first()) return;
    end = result(uses);
    if (end.stopped_by == 0) write_results(end, model);
  });
  end.stopped_by = state_.step < config_.training.steps ? stop_signal() : 0;
  patience_.reset();
  return end;
}

// "  ranks    4, each batches 1 in 4" : how the work is split.
std::string Run::ranks_text() const {
  std::string text = concat(
      "  ranks    ", crew_.size(), ", experts over ", crew_.expert().size(),
      crew_.tensor().size() > 1 ? concat(", dense weights over ", crew_.tensor().size()) : "",
      "; a step is ", share_.rounds(), " x ", share_.rows(), " sequences on each");
  if (config_.training.cuda_graph == CudaGraphs::ON) text += "; CUDA graphs are off";
  return text;
}

// Where targets count in part, the mean over those that do.
double validation_loss(TransformerImpl& model, const TextData& data, const TrainingConfig& config,
                       const Group& ranks) {
  const torch::NoGradGuard no_grad;
  const bool was_training = model.is_training();
  model.eval();
  const int64_t batches = std::min(config.validation_batches,
                                   data.validation_batches(config.batch_size, config.seq_len));
  const at::Device device = model.tok_embeddings->weight.device();
  const torch::Tensor losses = at::zeros({batches}, at::TensorOptions(device).dtype(at::kDouble));
  const torch::Tensor weights = at::zeros_like(losses);  // where batches have some
  // Every rank computes as often, as experts of other ranks may be needed; the last ones in vain.
  for (int64_t first = 0; first < batches; first += ranks.size()) {
    const int64_t own = first + ranks.rank(), i = own < batches ? own : first;
    const Batch batch = data.validation_batch(i, config.batch_size, config.seq_len);
    const torch::Tensor loss = loss_of(model, batch);
    if (own >= batches) continue;
    losses[own].copy_(loss);
    if (batch.counted.defined()) weights[own].copy_(batch.counted);
  }
  model.train(was_training);
  all_reduce_(ranks, losses);  // each is one rank's
  // Or the mean of those that the ranks of a tensor group have of equal parts.
  all_reduce_(model.tensor_group(), losses);
  losses.div_(model.tensor_group().size());
  if (data.counts_some()) {
    all_reduce_(ranks, weights);
    const std::vector<double> sums =
        StepReadout({losses.mul(weights).sum(), weights.sum()}).values();
    return sums[0] / sums[1];
  }
  const std::vector<double> values = StepReadout({losses}).values();
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(batches);
}

}  // namespace moe8
