// SPDX-License-Identifier: BSD-3-Clause
// What a training run is: read from TOML, checked key by key, written back complete.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "convert/conversion_rules.h"
#include "moe8/lora.h"
#include "moe8/optimizer.h"
#include "moe8/recompute.h"
#include "moe8/transformer_config.h"

namespace moe8 {

/// MASTER: the model computes in bf16, the optimizer steps a float32 copy of every parameter.
/// BF16: it steps the bf16 parameters themselves. FLOAT32: everything in float32.
enum class Weights { MASTER, BF16, FLOAT32 };

std::string_view to_string(Weights value);  // "master", "bf16", "float32"

/// AUTO: the first GPU if moe8 has kernels for it, else the CPU. A run keeps what AUTO chose.
enum class TrainingDevice { AUTO, CPU, CUDA };

std::string_view to_string(TrainingDevice value);  // "auto", "cpu", "cuda"

/// Whether a GPU repeats forward and backward of a step as a CUDA graph: train/step_graph.h. ON is
/// refused on a CPU.
enum class CudaGraphs { AUTO, ON, OFF };

std::string_view to_string(CudaGraphs value);  // "auto", "on", "off"

/// Whether a run on a GPU repeats itself bit for bit. AUTO: it does, as resumed runs have to.
/// OFF: attention may take LibTorch's cuDNN kernel, whose backward adds in no fixed order.
enum class Deterministic { AUTO, ON, OFF };

/// How the gradients of a step's batches are added up where the weights have masters. ROUNDED: when
/// a batch's are there, rounded to bf16. PRODUCTS: those of experts by the products that compute
/// them, OptimizerOptions::sums_in_products; of one process.
enum class GradientSums { ROUNDED, PRODUCTS };

std::string_view to_string(GradientSums value);  // "rounded", "products"

/// What a recipe does with Linears whose weights are so small that a GPU multiplies them in bf16 as
/// fast as it quantizes their operands: without_small_linears() in recipe_rules.h.
enum class SmallLinears { CONVERT, BF16 };

std::string_view to_string(SmallLinears value);  // "convert", "bf16"

/// What the files hold. AUTO: tokens where a file says so of itself (docs/text.md), else text, whose
/// bytes are the tokens. UINT16, UINT32: flat files of such tokens.
enum class DataTokens { AUTO, BYTES, UINT16, UINT32 };

std::string_view to_string(DataTokens value);  // "auto", "bytes", "uint16", "uint32"

/// Where the sequences of a batch begin. ANYWHERE: at every token alike, and run on into the next
/// document. DOCUMENTS: where a document begins; it and those behind it that fit as a whole make a
/// sequence, what remains is padded. A longer document is cut.
enum class DataWindows { ANYWHERE, DOCUMENTS };

std::string_view to_string(DataWindows value);  // "anywhere", "documents"

struct DataConfig {
  std::vector<std::string> files;
  DataTokens tokens = DataTokens::AUTO;
  /// How often each file is drawn from, relative to the others. Empty: by its size.
  std::vector<double> weights{};
  double validation_fraction = 0.05;
  DataWindows windows = DataWindows::ANYWHERE;
  bool attention_across_documents = true;  // false: a token sees those of its own document

  bool operator==(const DataConfig&) const = default;
};

/// MUON: hidden matrices and stacked experts by Muon, the rest by AdamW (train/update_rules.h).
enum class OptimizerKind { ADAMW, MUON };

std::string_view to_string(OptimizerKind value);  // "adamw", "muon"
std::string_view to_string(MomentDtype value);    // "auto", "float32", "bf16"

/// After the warm-up, to the last step: along a cosine or a line to the minimum; not at all; or (WSD)
/// not at all but in the last decay_steps, along a line to the minimum.
enum class Schedule { COSINE, LINEAR, CONSTANT, WSD };

std::string_view to_string(Schedule value);  // "cosine", "linear", "constant", "wsd"

/// Decoupled weight decay, never on norms and other 1-D parameters. The learning rate rises over
/// warmup_steps.
struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::ADAMW;
  double learning_rate = 1e-3;
  double min_learning_rate = 1e-4;
  Schedule schedule = Schedule::COSINE;
  int64_t warmup_steps = 20;
  int64_t decay_steps = 0;  // of WSD, and more than 0 there
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double momentum = 0.95;  // of Muon
  double weight_decay = 0.1;
  double max_grad_norm = 1.0;                       // 0: gradients are not clipped
  MomentDtype moments = MomentDtype::LIKE_WEIGHTS;  // "auto"
  /// Parameters that stay as they are: names, or "re:" and a pattern of whole names.
  std::vector<std::string> frozen{};
  /// Factors on the learning rate of parameters, by such keys. None is named by two.
  std::map<std::string, double> rates{};

  bool operator==(const OptimizerConfig&) const = default;
};

/// What is kept of converted weights beside adapters: themselves, or the codes alone that their products
/// make of them (nn/frozen_codes.h).
enum class LoraBase { WEIGHTS, CODES };

std::string_view to_string(LoraBase value);  // "weights", "codes"

/// Adapters that are trained in place of the model (moe8/lora.h).
struct LoraConfig {
  int64_t rank = 0;  // 0: none
  double alpha = 16;
  std::vector<std::string> targets = LoraOptions().targets;
  LoraBase base = LoraBase::WEIGHTS;

  LoraOptions options() const { return {rank, alpha, targets}; }
  bool operator==(const LoraConfig&) const = default;
};

struct TrainingConfig {
  int64_t steps = 100;
  int64_t batch_size = 16;  // sequences of one forward and backward
  int64_t seq_len = 256;
  int64_t accumulation = 1;  // forwards and backwards of one step
  GradientSums gradient_sums = GradientSums::ROUNDED;
  int64_t seed = 1;
  Weights weights = Weights::MASTER;
  std::string recipe = "bf16";  // see recipe_rules.h; "custom" when [[convert]] tables decide
  SmallLinears small_linears = SmallLinears::CONVERT;
  int64_t validation_interval = 0;  // steps between validations; 0: at the end only
  int64_t validation_batches = 8;
  int64_t threads = 0;  // 0: LibTorch's choice
  TrainingDevice device = TrainingDevice::AUTO;
  CudaGraphs cuda_graph = CudaGraphs::AUTO;  // the same bits with and without
  Recompute activation_checkpointing = Recompute::NONE;
  Deterministic deterministic = Deterministic::AUTO;

  /// Whether there is anything that products add up.
  bool sums_in_products() const;
  bool operator==(const TrainingConfig&) const = default;
};

/// How several processes share a run; see docs/distributed.md. What is left of them is data
/// parallel: they share out the sequences of a step, the optimizer's state and its work.
struct ParallelConfig {
  int64_t expert = 1;  // ranks over which the experts of a layer are spread
  int64_t tensor = 1;  // over which each weight of attention, dense and shared experts is spread
  /// A rank that lives but keeps the others waiting for so long is given up (train/watch.h).
  int64_t timeout_s = 45;

  bool operator==(const ParallelConfig&) const = default;
};

/// Checkpoints, see docs/checkpoints.md. With an interval there is one after every so many steps,
/// one at the end and one at every new lowest validation loss; with or without, one when a signal
/// asks the run to stop.
struct CheckpointConfig {
  int64_t interval = 100;  // steps; 0: only when stopped
  int64_t keep = 2;        // the newest that are kept, besides the best by validation loss

  bool operator==(const CheckpointConfig&) const = default;
};

/// How often to look whether low precision is healthy (moe8/numerics.h).
struct NumericsConfig {
  int64_t interval = 50;  // steps from look to look, the first at step 1; 0: never

  bool operator==(const NumericsConfig&) const = default;
};

struct OutputConfig {
  std::string folder = "runs/train";
  bool checkpoint = true;    // model.safetensors at the end
  bool tensorboard = false;  // event files beside metrics.jsonl

  bool operator==(const OutputConfig&) const = default;
};

struct RunConfig {
  /// Folder of a published model whose weights training starts with, and whose config.json decides the
  /// keys of [model] that are not given; a config that gives model.dim gives all. Empty: none.
  std::string from{};
  TransformerConfig model;
  DataConfig data;
  OptimizerConfig optimizer;
  LoraConfig lora;
  TrainingConfig training;
  ParallelConfig parallel;
  CheckpointConfig checkpoint;
  NumericsConfig numerics;
  OutputConfig output;
  std::vector<ConversionRule> convert;  // not empty: instead of training.recipe

  /// The rules of `convert`, or else of training.recipe.
  std::vector<ConversionRule> conversion() const;
  /// Whether some parameters are not trained, or at rates of their own.
  bool trains_in_part() const;
  /// Ranges, and what must fit together. @throws c10::Error "[config] section.key: expected ...".
  void validate() const;
  bool operator==(const RunConfig&) const = default;
};

/// Reads a config and applies overrides "section.key=value" in order. Keys that are not there keep
/// their defaults. The result is validated.
/// @throws c10::Error naming file and line: bad syntax, an unknown section or key (with the
///         nearest), a wrong type, a value out of range; as read_hf_config() of model.from.
RunConfig load_run_config(const std::string& path, const std::vector<std::string>& overrides = {});
RunConfig parse_run_config(const std::string& text, const std::string& source,
                           const std::vector<std::string>& overrides = {});

/// Every setting as ("section.key", value in TOML), then ("convert", its tables): for tables.
/// Always the same keys in the same order.
std::vector<std::pair<std::string, std::string>> settings_text(const RunConfig& config);

/// The complete config as TOML; parse_run_config gives an equal one.
std::string to_toml(const RunConfig& config);

/// A setting that two configs do not share, with both values as TOML.
struct SettingDifference {
  std::string name;  // "training.steps", or "convert" for the rules of the conversion
  std::string first;
  std::string second;
};

std::vector<SettingDifference> differences(const RunConfig& first, const RunConfig& second);

}  // namespace moe8
