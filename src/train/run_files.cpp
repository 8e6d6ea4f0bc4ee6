// SPDX-License-Identifier: BSD-3-Clause
// What a run leaves in its folder, and how it goes on from there. Of several ranks the first alone
// changes the folder, but for its checkpoints.
#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <cmath>
#include <ctime>
#include <filesystem>
#include <numeric>

#include "base/check.h"
#include "base/log.h"
#include "device/cuda_device.h"
#include "io/file.h"
#include "moe8/safetensors.h"
#include "train/agree.h"
#include "train/run.h"
#include "train/store/named_tensors.h"
#include "train/store/resume.h"
#include "train/store/speed.h"

namespace moe8 {
namespace {

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[64];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

}  // namespace

// From here on the folder is this run's. The first rank alone changes it, but for the checkpoints.
void Run::open_folder() {
  agree(crew_.world(), [&] {
    if (crew_.is_first()) take_folder();
  });
  at::manual_seed(static_cast<uint64_t>(config_.training.seed));
  if (options_.existing == ExistingRun::RESUME) resume();
  if (finished_) return;
  agree(crew_.world(), [&] {
    if (!crew_.is_first()) return;
    write_file(kTrain, folder_.config(), to_toml(config_));
    metrics_.emplace(folder_.metrics(), state_.step);
    if (config_.output.tensorboard) events_.emplace(folder_.events(), state_.step + 1);
    checkpoints_.prepare();
    checkpoints_.set_aside_after(state_.step);
    keep_checkpoints();
  });
}

void Run::take_folder() {
  make_run_folder(folder_);
  lock_.emplace(folder_.lock());
  remove_leftovers(folder_.path);
  // Again, as another process may have been quicker.
  check_run_folder(folder_.path, options_.existing);
  if (options_.existing == ExistingRun::REPLACE) clear_run_folder(folder_);
}

// Continues after the newest good checkpoint, or begins anew where there is none yet; a run that is
// finished stays as it is.
void Run::resume() {
  const std::string path = tell_all(crew_.world(), [&] {
    const auto entry = checkpoints_.newest_good();
    return entry ? entry->path : "";
  });
  agree(crew_.world(), [&] {
    if (!path.empty()) {
      load(path, read_checkpoint_info(path));
    } else if (std::filesystem::exists(folder_.config())) {
      notes_ = allowed_changes(load_run_config(folder_.config()), config_, folder_.config());
    }
    finished_ = finished(!path.empty());
  });
  if (finished_) {
    notes_ = {"This run is finished: nothing is changed. More steps: --set training.steps=N"};
    return;
  }
  notes_.insert(notes_.begin(), path.empty() ? "There is no checkpoint yet: beginning with step 1"
                                             : "Going on after " + path);
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

void Run::load(const std::string& path, const CheckpointInfo& info) {
  notes_ = allowed_changes(info.config, config_, path);
  MOE8_CHECK(info.text == text_, "resume", "data.files", "expected the text that '", path,
             "' was trained on, got another: its checksums differ");
  MOE8_CHECK(info.state.step <= config_.training.steps, "resume", "training.steps",
             "expected at least the ", info.state.step, " steps of '", path, "', got ",
             config_.training.steps);
  const std::string environment = changes(info.environment, this_environment(device_));
  if (!environment.empty() && crew_.is_first()) {
    log_warning("losses may differ from those of an unbroken run in their last digits: " +
                environment);
  }
  if (info.ranks != crew_.size()) {
    notes_.push_back(concat("ranks = ", crew_.size(), " (was ", info.ranks, ")"));
  }
  const CheckpointFiles files{path};
  load_into(learned_tensors(*model_), PieceReader(files.models(info.ranks)),
            crew_.part(config_.model));
  const PieceReader training(files.trainings(info.ranks));
  stepper_->restore(training);
  restore_generators(training, device_);
  state_ = info.state;
  saved_step_ = state_.step;
}

bool Run::checkpoint_due(bool new_best) const {
  const int64_t interval = config_.checkpoint.interval;
  if (interval == 0) return false;
  return new_best || state_.step % interval == 0 || state_.step == config_.training.steps;
}

// What this rank writes of the model: of several ranks its part of what is stepped, and what is not,
// frozen weights and balancing biases, where no rank before it has the same.
std::vector<TensorPiece> Run::model_pieces() const {
  const bool is_alone = crew_.is_alone();
  const ModelPart part = crew_.part(config_.model);
  const auto parameters = model_->named_parameters();
  std::vector<TensorPiece> pieces;
  if (!is_alone) pieces = stepper_->owned();
  for (auto& [name, tensor] : learned_tensors(*model_)) {
    const at::Tensor* const parameter = parameters.find(name);
    if (!is_alone && parameter && parameter->requires_grad()) continue;
    const HeldAlong held = held_along(name, tensor, part);
    const Group& alike = held.parts == 1               ? crew_.world()
                         : holds_experts(name, tensor) ? crew_.expert_data()
                                                       : crew_.data();
    if (alike.rank() > 0) continue;
    const bool rows = held.axis == 0;
    pieces.push_back(piece_of(name, rows ? held.first : 0, tensor, rows ? 0 : held.first));
  }
  return pieces;
}

// The metrics first: a checkpoint promises the lines up to its step.
void Run::save() {
  count_process();
  const bool is_first = crew_.is_first();
  agree(crew_.world(), [&] {
    if (is_first) metrics_->sync();
  });
  CheckpointTensors tensors{model_pieces(), stepper_->state()};
  if (is_first) {
    for (auto& [name, state] : generator_states(device_)) {
      tensors.training.push_back(piece_of(name, 0, state));
    }
  }
  write_checkpoint(checkpoints_.path_of(state_.step),
                   {config_, state_, text_, this_environment(device_), crew_.size()}, tensors,
                   crew_.world());
  saved_step_ = state_.step;
  if (is_first) keep_checkpoints();
}

void Run::keep_checkpoints() {
  const auto best = state_.best ? std::optional(state_.best->step) : std::nullopt;
  checkpoints_.keep(config_.checkpoint.keep, best);
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

// ---- at the end -------------------------------------------------------------
RunResult Run::result(const std::vector<RankUse>& uses) const {
  const ParameterCounts counts = count_parameters(config_.model);
  RunResult result;
  result.recipe = config_.training.recipe;
  result.folder = folder_.path;
  result.steps = state_.step;
  if (state_.step < config_.training.steps) result.stopped_by = stop_signal();
  result.train_loss = std::accumulate(state_.last_losses.begin(), state_.last_losses.end(), 0.0) /
                      static_cast<double>(state_.last_losses.size());
  result.validation_loss = state_.validation_loss.value_or(NAN);
  result.tokens_per_s = speed_of(read_metrics(folder_.metrics())).wall.median;
  result.peak_memory = state_.peak_memory;
  result.seconds = state_.seconds;
  result.parameters = counts.total;
  result.active_parameters = counts.active;
  result.converted_parameters = static_cast<int64_t>(conversion_.converted().size());
  if (uses.size() > 1) result.ranks = uses;
  return result;
}

// On the first rank all that the model learned; every rank must call it. Parts come from the ranks
// that hold them.
NamedTensors Run::whole_model() const {
  NamedTensors tensors = learned_tensors(*model_);
  const ModelPart part = crew_.part(config_.model);
  for (auto& [name, tensor] : tensors) {
    const HeldAlong held = held_along(name, tensor, part);
    if (held.parts == 1) continue;
    const Group& holders = holds_experts(name, tensor) ? crew_.expert() : crew_.tensor();
    const torch::Tensor part_of_it = tensor.to(device_).transpose(0, held.axis).contiguous();
    const torch::Tensor all = all_gather(holders, part_of_it);
    tensor = crew_.is_first() ? all.transpose(0, held.axis).cpu().contiguous() : torch::Tensor();
  }
  return tensors;
}

void Run::write_results(const RunResult& end, const NamedTensors& model) const {
  if (config_.output.checkpoint) {
    save_safetensors(folder_.model(), model,
                     {{"format", "pt"}, {"recipe", config_.training.recipe}});
  }
  write_result(folder_.result(), end);
}

}  // namespace moe8
