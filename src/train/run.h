// SPDX-License-Identifier: BSD-3-Clause
// One training run, alone or as one of the ranks of a crew. Its steps are run.cpp's, what it leaves in
// its folder run_files.cpp's.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dist/activity.h"
#include "moe8/quantize_model.h"
#include "moe8/transformer.h"
#include "train/batch_share.h"
#include "train/crew.h"
#include "train/health.h"
#include "train/profile/step_profile.h"
#include "train/progress.h"
#include "train/step_clock.h"
#include "train/step_graph.h"
#include "train/step_readout.h"
#include "train/stepper.h"
#include "train/store/checkpoint.h"
#include "train/store/checkpoint_folder.h"
#include "train/store/event_file.h"
#include "train/store/metrics.h"
#include "train/store/run_lock.h"
#include "train/store/run_state.h"
#include "train/text_data.h"
#include "train/thread_count.h"
#include "train/trainer.h"
#include "train/training_device.h"
#include "weights/weight_cache.h"

namespace moe8 {

inline constexpr const char* kTrain = "train";  // begins errors

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

// One run: made ready completely by the constructor, then begin(), turn() until that is false,
// end(). Between these calls other runs may do the same.
class Run {
 public:
  /// @param others_hold  bytes that are in use for other runs
  Run(RunConfig config, RunOptions options, Progress& progress, int64_t others_hold,
      const Crew& crew);
  void begin();
  bool turn();
  RunResult end();
  /// From here on other runs work as well: what more is in use cannot be told apart.
  void share_process();

 private:
  using Clock = std::chrono::steady_clock;

  std::vector<std::pair<std::string, std::string>> shared_settings() const;
  void check_tokens() const;
  void check_ranks() const;
  bool goes_on() const;
  void begin_with_published();
  void end_counts();
  void keep_base_as_codes();
  void open_folder();
  void take_folder();
  void resume();
  void load(const std::string& path, const CheckpointInfo& info);
  std::optional<RunResult> finished(bool has_checkpoint) const;
  void write_start();
  // What LibTorch is set to while the run works.
  struct Settings {
    ThreadCount threads;
    DeviceSettings device;
    TrainingStream stream;
    std::optional<FormsForOneBackward> forms;
  };
  Settings settings() const {
    const TrainingConfig& t = config_.training;
    // A GPU's memory is small, and its weights are quantized again at no cost worth mentioning.
    const bool one_backward = device_.is_cuda() && share_.rounds() == 1;
    return {ThreadCount(t.threads), DeviceSettings(device_, t.deterministic),
            TrainingStream(device_),
            one_backward ? std::optional<FormsForOneBackward>(
                               std::in_place, t.activation_checkpointing != Recompute::NONE)
                         : std::nullopt};
  }
  // A step that is being computed, or was: its numbers are looked at later.
  struct LaunchedStep {
    StepMetrics metrics;  // what is known without them
    StepReadout numbers;  // loss, norm of the gradients, rows of every expert
    StepClock clock;
    Activity before{}, after{};  // of its launch
  };
  LaunchedStep launch();
  torch::Tensor backward(int64_t number, StepClock& clock);
  std::vector<Batch> next_batches();
  void weigh(std::vector<Batch>& batches) const;
  torch::Tensor forward_backward(const std::vector<Batch>& batches, StepClock* clock);
  std::vector<torch::Tensor> numbers_of_all(const torch::Tensor& losses);
  bool runs_as_graph(int64_t step);
  bool must_look_at_once(int64_t step) const;
  void look();
  void show_health(bool waits);
  void measure(StepMetrics& metrics, const LaunchedStep& step);
  bool validation_due(int64_t step) const;
  bool validate(StepMetrics& metrics);
  bool checkpoint_due(bool new_best) const;
  std::vector<TensorPiece> model_pieces() const;
  void save();
  void keep_checkpoints();
  void check_finite(double value, const char* what, int64_t number);
  int stop_signal() const { return signal_; }
  void count_process();
  void count_use(const LaunchedStep& step, const std::vector<ExpertTokens>& layers);
  RankUse use();
  std::string ranks_text() const;
  RunResult result(const std::vector<RankUse>& uses) const;
  void write_results(const RunResult& end, const NamedTensors& model) const;
  NamedTensors whole_model() const;

  RunConfig config_;
  RunOptions options_;
  Progress& progress_;
  const Crew& crew_;
  BatchShare share_;
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
  int signal_ = 0;                        // that wants the run to stop, known to all ranks
  RankUse used_;                          // sums over the steps of this process
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
  std::optional<EventFile> events_;
};

}  // namespace moe8
