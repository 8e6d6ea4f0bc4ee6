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
/// to the model's dtype; MXFP4 (gpt-oss) and FP8 with scales of 128 x 128 blocks (DeepSeek-V3) are
/// dequantized.
/// @throws c10::Error in one line: a file that is missing, in two shards, a Git LFS pointer or of
///         another family, a tensor of another shape, a tensor that nobody asked for.
void load_pretrained(TransformerImpl& model, const std::string& folder);

/// What save_pretrained() does beside writing the tensors.
struct SavePretrainedOptions {
  uint64_t shard_bytes = 5'000'000'000;  // a file holds at most so many, but for a larger tensor
  std::string
      files_from{};  // a folder whose tokenizer's files and token numbers are taken; or none
};

/// Writes a folder that transformers and load_pretrained() read, in the names of the family that has
/// such models. It appears whole or not at all.
/// @param tensor  gives the model's tensors by name, whole; called once for each, or twice
/// @param dtype   of the weights, which they already have
/// @throws c10::Error when no family has all that `config` says, naming what the nearest lacks; when
///         `folder` exists; or on a failure to write.
void save_pretrained(const std::string& folder, const TransformerConfig& config,
                     const std::function<at::Tensor(const std::string& name)>& tensor,
                     at::ScalarType dtype, const SavePretrainedOptions& options = {});

/// The tensors that a published model has, by their names here: parameters, and of DeepSeek-V3 the
/// balancing biases.
std::vector<ParameterShape> pretrained_tensors(const TransformerConfig& config);

}  // namespace moe8
