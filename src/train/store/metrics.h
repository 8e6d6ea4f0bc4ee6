// SPDX-License-Identifier: BSD-3-Clause
// metrics.jsonl: one JSON object for every step, readable while the run goes on. Lines of another
// kind have a "kind" beside their "step", and stand before the next checkpoint's step.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"
#include "moe8/numerics.h"

namespace moe8 {

/// How the rows of one MoE layer were spread over its experts.
struct LayerLoad {
  double busiest = 1;  // rows of the busiest expert, relative to the mean
  int64_t idle = 0;    // experts without a row

  bool operator==(const LayerLoad&) const = default;
};

/// Milliseconds that the parts of a step took on the device; of accumulated batches the sums.
struct PartTimes {
  double data = 0;  // what the device waited for, and the copy of the batch
  double forward = 0;
  double backward = 0;
  double optimizer = 0;

  bool operator==(const PartTimes&) const = default;
};

/// Memory of a GPU, in bytes, by LibTorch's allocator.
struct GpuMemory {
  int64_t peak = 0;      // of tensors, the most since the run began
  int64_t reserved = 0;  // taken from the GPU, now

  bool operator==(const GpuMemory&) const = default;
};

struct StepMetrics {
  int64_t step = 0;  // 1 is the first
  double loss = 0;   // mean over the tokens of the step, in nats, before the step's update
  double lr = 0;
  double grad_norm = 0;  // before clipping
  double tokens_per_s = 0;
  // Rows that the least and the most loaded expert of any layer got, relative to the mean: 1 and 1
  // when perfectly balanced.
  double expert_load_min = 0;
  double expert_load_max = 0;
  std::optional<double> validation_loss{};  // after the step's update, where one was measured
  // A second of CPU time of all threads, where CPUs compute. Not in files of older versions.
  std::optional<double> tokens_per_cpu_s{};
  std::vector<LayerLoad> layers{};  // of the MoE layers, in order; likewise
  // Of the routers, before their coefficients, means over layers and batches; with coefficients only.
  std::optional<double> aux_loss{}, z_loss{};
  // Of the operations a second that the GPU's maker gives for bf16, the share that the model's
  // are; not on CPUs and unknown GPUs.
  std::optional<double> mfu{};
  std::optional<PartTimes> ms{};
  std::optional<GpuMemory> gpu_memory{};

  bool operator==(const StepMetrics&) const = default;
};

/// A process that trained a run: one at its start, one more for every time that it went on.
struct RunStart {
  int64_t step = 0;       // the first that it was to do
  std::string date{};     // in UTC, "2026-11-29 22:03:08 UTC"
  std::string program{};  // "moe8 0.1.0 (7cf44ee)"
  std::string command{};  // as a shell takes it
  std::string machine{};  // "AMD EPYC 9B14, 2 CPUs, 23.5 GiB"
  std::string device{};   // "CPU" or the name of a GPU
  int64_t threads = 0;

  bool operator==(const RunStart&) const = default;
};

/// What the numerics line of a step says, as far as a report shows it.
struct NumericsLine {
  struct Product {
    std::string weight{};   // "layers.1.moe.experts.w1"
    std::string product{};  // "out", "grad_input" or "grad_weight"
    double sqnr_db = 0;     // infinite when nothing was lost
    double underflow = 0;   // of the worse operand, here and below
    double saturated = 0;
    double amax = 0;                  // the larger; NaN when not finite
    std::optional<ElemDtype> elem{};  // the coarser operand's, which decides the bound
  };
  int64_t step = 0;
  std::vector<Product> products;  // those of a weight together, sorted by name
  std::vector<ExpertTokens> experts;
  std::vector<std::string> warnings;
};

class MetricsFile {
 public:
  /// Keeps the lines up to the last of step `last_step`, and cuts off what follows: later steps,
  /// and half a line. With 0, makes or empties the file.
  /// @throws c10::Error when it cannot be written, or the lines of steps 1 to last_step are not all
  /// there, each once.
  explicit MetricsFile(const std::string& path, int64_t last_step = 0);
  /// Appends one line, which other programs see at once. @throws c10::Error on a failure to write.
  void write(const StepMetrics& metrics);
  /// The same for {"kind": "numerics", "step": step, ...}, the rest from NumericsReport::to_json().
  /// Call it before a checkpoint of this step or a later one is made.
  void write_numerics(int64_t step, std::string_view report);
  /// The same for {"kind": "start", "step": start.step, ...}.
  void write(const RunStart& start);
  /// Waits until the disk has all lines.
  void sync();

 private:
  void write(const std::string& line);

  std::string path_;
  Descriptor fd_;
};

/// The steps; lines of another kind are passed over, and a last line that is not ended yet.
/// @throws c10::Error naming file and line of what is not a step, or has a NUL byte.
std::vector<StepMetrics> read_metrics(const std::string& path);

/// The lines of kind "numerics"; others are passed over. @throws c10::Error likewise.
std::vector<NumericsLine> read_numerics(const std::string& path);

/// Everything that stands in metrics.jsonl, by kind.
struct MetricsRecord {
  std::vector<StepMetrics> steps;
  std::vector<NumericsLine> numerics;
  std::vector<RunStart> starts;
};

/// All kinds in one pass. @throws c10::Error likewise.
MetricsRecord read_all_metrics(const std::string& path);

}  // namespace moe8
