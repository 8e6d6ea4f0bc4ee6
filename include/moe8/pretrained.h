// SPDX-License-Identifier: BSD-3-Clause
// Published models as Hugging Face lays them out: a folder with config.json and safetensors files, of
// which model.safetensors.index.json says where each tensor is. Families: Qwen3-MoE, OLMoE, Mixtral,
// gpt-oss, DeepSeek-V3 (docs/models.md).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "moe8/lora.h"
#include "moe8/transformer_config.h"

namespace moe8 {

class TransformerImpl;

/// The model that `folder`/config.json describes. Its balancing bias is off but for DeepSeek-V3.
/// @throws c10::Error naming the key that is missing, wrong, or an option that moe8 does not compute.
TransformerConfig read_pretrained_config(const std::string& folder);

/// float32 where all of the folder's tensors are in it, else bf16.
/// @throws c10::Error naming a file that is missing or no safetensors file.
at::ScalarType pretrained_dtype(const std::string& folder);

/// The tokens of the folder's config.json and generation_config.json that end a text (eos_token_id).
std::vector<int64_t> pretrained_end_tokens(const std::string& folder);

/// Copies the folder's weights into a model of its config, which may differ in max_seq_len and in the
/// coefficients of training. Of experts over several ranks each reads its own. Weights are converted
/// to the model's dtype; MXFP4 (gpt-oss), FP8 with scales of 128 x 128 blocks (DeepSeek-V3), and what
/// ExportedWeights says are dequantized.
/// @throws c10::Error in one line: a file that is missing, in two shards, a Git LFS pointer or of
///         another family, a tensor of another shape, a tensor that nobody asked for.
void load_pretrained(TransformerImpl& model, const std::string& folder);

/// How save_pretrained() writes the matrices of attention, feed-forward and experts. FP8_ROWWISE: e4m3
/// with a power-of-two scale per row; MXFP8: with one per 32 elements of a row, rounded up or down. Codes
/// and scales are those of quantize_float8() and quantize_mx(), in the names of the library
/// compressed-tensors, which vLLM reads: "NAME.weight" and "NAME.weight_scale".
enum class ExportedWeights { PLAIN, FP8_ROWWISE, MXFP8_RCEIL, MXFP8_FLOOR };

/// What save_pretrained() does beside writing the tensors.
struct SavePretrainedOptions {
  uint64_t shard_bytes = 5'000'000'000;  // a file holds at most so many, but for a larger tensor
  std::string
      files_from{};  // a folder whose tokenizer's files and token numbers are taken; or none
  ExportedWeights weights = ExportedWeights::PLAIN;
};

/// Writes a folder that transformers and load_pretrained() read, in the names of the family that has
/// such models. It appears whole or not at all.
/// @param tensor  gives the model's tensors by name, whole; called once for each, or twice
/// @param dtype   of the weights, which they already have
/// @throws c10::Error when no family has all that `config` says, naming what the nearest lacks; when
///         options.weights have no place in the family's files (gpt-oss) or blocks of 32 none in their
///         rows; when `folder` exists; or on a failure to write.
void save_pretrained(const std::string& folder, const TransformerConfig& config,
                     const std::function<at::Tensor(const std::string& name)>& tensor,
                     at::ScalarType dtype, const SavePretrainedOptions& options = {});

/// What save_adapter() writes beside the adapters of a model.
struct SaveAdapterOptions {
  LoraOptions lora{};
  std::string base{};  // the folder or name of the model that they belong to
};

/// Writes adapters as PEFT keeps them, adapter_config.json and adapter_model.safetensors, for the model
/// as transformers 5 makes it, whose experts are stacked: PEFT adapts them by target_parameters. Those of
/// w1 and w3 become one of up to twice the rank. The folder appears whole or not at all.
/// @param tensor  gives adapters by the names of lora_shapes()
/// @throws c10::Error when no family has all that `config` says; for a model of one expert, to which PEFT
///         cannot add adapters; when `folder` exists; or on a failure to write.
void save_adapter(const std::string& folder, const TransformerConfig& config,
                  const std::function<at::Tensor(const std::string& name)>& tensor,
                  const SaveAdapterOptions& options);

/// The tensors that a published model has, by their names here: parameters, and of DeepSeek-V3 the
/// balancing biases.
std::vector<ParameterShape> pretrained_tensors(const TransformerConfig& config);

}  // namespace moe8
