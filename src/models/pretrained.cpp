// SPDX-License-Identifier: BSD-3-Clause
#include "moe8/pretrained.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "io/file.h"
#include "models/families.h"
#include "models/hf_config.h"
#include "models/hf_files.h"
#include "models/hf_weights.h"
#include "models/quantization_config.h"
#include "models/quantized_weights.h"
#include "moe8/safetensors.h"
#include "moe8/tensor_parallel.h"
#include "moe8/transformer.h"
#include "nn/model_settings.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSavePretrained = "save_pretrained";

const Family& family_of(const std::string& folder) {
  const OrderedJson json = OrderedJson::parse(read_hf_file(folder, "config.json"));
  return *find_family(json["model_type"].get<std::string>());
}

// The experts of every layer are spread alike.
int64_t first_expert_of(const TransformerImpl& model) {
  for (const auto& module : model.modules()) {
    if (const auto* experts = module->as<ExpertsImpl>()) return experts->first_expert();
  }
  return 0;
}

// Parameters, and balancing biases.
std::vector<std::pair<std::string, at::Tensor>> tensors_of(const TransformerImpl& model) {
  std::vector<std::pair<std::string, at::Tensor>> list;
  for (const auto& parameter : model.named_parameters()) {
    list.emplace_back(parameter.key(), parameter.value());
  }
  for (const auto& buffer : model.named_buffers()) {
    if (buffer.key().ends_with(".expert_bias")) list.emplace_back(buffer.key(), buffer.value());
  }
  return list;
}

// What a rank holds of a tensor: of dense weights a part of the rows or columns, of experts its own.
HeldPart held_part(const std::string& name, const at::Tensor& own, const TransformerConfig& config,
                   const Group& tensor_group, int64_t first_expert) {
  HeldPart part{.whole = own.sizes().vec()};
  if (name.find(".moe.experts.") != std::string::npos) {
    part.whole[0] = config.n_experts;
    part.first_row = first_expert;
  }
  const TensorSplit split = tensor_split(name);
  if (split == TensorSplit::NONE || tensor_group.size() == 1) return part;
  const size_t axis = split == TensorSplit::COLUMN_PARALLEL ? 0 : 1;
  const int64_t first = tensor_group.rank() * part.whole[axis];
  (axis == 0 ? part.first_row : part.first_column) = first;
  part.whole[axis] *= tensor_group.size();
  return part;
}

// A model may have been made with other settings of training, but has to have a balancing bias where
// the files do.
void check_same_model(TransformerConfig own, const TransformerConfig& there,
                      const std::string& folder) {
  own.max_seq_len = there.max_seq_len;
  own.aux_loss_coeff = there.aux_loss_coeff;
  own.z_loss_coeff = there.z_loss_coeff;
  if (own.head_width() == there.head_width()) own.head_dim = there.head_dim;
  const bool both_balance = own.load_balance_coeff > 0 && there.load_balance_coeff > 0;
  if (both_balance) own.load_balance_coeff = there.load_balance_coeff;
  const auto mine = model_settings(own), theirs = model_settings(there);
  for (size_t i = 0; i < mine.size(); ++i) {
    MOE8_CHECK(mine[i] == theirs[i], kPretrained, "model." + mine[i].first, "expected ",
               theirs[i].second, ", as in ", folder, ", got ", mine[i].second);
  }
}

// ---- saving -------------------------------------------------------------------
// Tensors of one file.
using Shard = std::vector<const HfTensor*>;

std::vector<Shard> shards_of(const std::vector<HfTensor>& tensors, at::ScalarType dtype,
                             const SavePretrainedOptions& options) {
  std::vector<Shard> shards(1);
  uint64_t bytes = 0;
  for (const HfTensor& tensor : tensors) {
    const uint64_t own = bytes_of(tensor, options.weights, dtype);
    if (!shards.back().empty() && bytes + own > options.shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(&tensor);
    bytes += own;
  }
  return shards;
}

// Keeps the tensor that it read last: the matrices of stacked experts come one after the other.
class LastRead {
 public:
  explicit LastRead(const std::function<at::Tensor(const std::string&)>& read) : read_(read) {}
  at::Tensor operator()(const std::string& name) {
    if (name != name_) {
      tensor_ = at::Tensor();  // before the next one is there
      tensor_ = read_(name).detach();
      name_ = name;
    }
    return tensor_;
  }

 private:
  const std::function<at::Tensor(const std::string&)>& read_;
  std::string name_;
  at::Tensor tensor_;
};

// A tensor of the files, or its codes and scales.
std::vector<std::pair<std::string, at::Tensor>> file_tensors(
    const HfTensor& tensor, ExportedWeights weights,
    const std::function<at::Tensor(const std::string&)>& read) {
  const at::Tensor made = made_of(tensor, read);
  if (is_quantized(tensor, weights)) return quantized(tensor.name, made, weights);
  return {{tensor.name, made}};
}

void write_shards(const std::string& folder, const std::vector<Shard>& shards,
                  ExportedWeights weights,
                  const std::function<at::Tensor(const std::string&)>& read) {
  const auto last = std::make_shared<LastRead>(read);
  const auto read_once = [last](const std::string& name) { return (*last)(name); };
  OrderedJson map = OrderedJson::object();
  uint64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file =
        shards.size() == 1 ? "model.safetensors"
                           : formatted("model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    std::vector<std::pair<std::string, at::Tensor>> tensors;
    for (const HfTensor* tensor : shards[i]) {
      for (auto& [name, made] : file_tensors(*tensor, weights, read_once)) {
        map[name] = file;
        total += made.nbytes();
        tensors.emplace_back(name, std::move(made));
      }
    }
    save_safetensors(folder + "/" + file, tensors, {{"format", "pt"}});
  }
  if (shards.size() == 1) return;
  const OrderedJson index{{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  write_file(kSavePretrained, folder + "/model.safetensors.index.json", index.dump(2) + "\n");
}

bool is_number_or_list(const OrderedJson& json) {
  const auto is_plain = [](const OrderedJson& one) { return one.is_primitive(); };
  return is_plain(json) || (json.is_array() && std::ranges::all_of(json, is_plain));
}

// The tokenizer's files, and what config.json says of its tokens.
void copy_beside(const std::string& from, const std::string& to, OrderedJson& config) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
                           "chat_template.jinja", "generation_config.json"}) {
    const fs::path file = fs::path(from) / name;
    if (fs::is_regular_file(file)) fs::copy_file(file, fs::path(to) / name);
  }
  if (!fs::exists(fs::path(from) / "config.json")) return;
  const OrderedJson source = OrderedJson::parse(read_hf_file(from, "config.json"), nullptr, false);
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    if (source.is_object() && source.contains(key) && is_number_or_list(source[key])) {
      config[key] = source[key];
    }
  }
}

}  // namespace

TransformerConfig read_pretrained_config(const std::string& folder) {
  return read_hf_config(folder);
}

at::ScalarType pretrained_dtype(const std::string& folder) {
  const HfFiles files(folder);
  const std::vector<std::string> names = files.names();
  const bool all = std::ranges::all_of(
      names, [&](const std::string& name) { return files.entry(name).dtype == "F32"; });
  return all ? at::kFloat : at::kBFloat16;
}

std::vector<int64_t> pretrained_end_tokens(const std::string& folder) {
  std::vector<int64_t> tokens;
  for (const char* name : {"config.json", "generation_config.json"}) {
    if (!fs::is_regular_file(fs::path(folder) / name)) continue;
    const OrderedJson json = OrderedJson::parse(read_hf_file(folder, name), nullptr, false);
    if (!json.is_object() || !json.contains("eos_token_id")) continue;
    const OrderedJson& end = json["eos_token_id"];  // one, or a list
    const auto add = [&](const OrderedJson& token) {
      if (token.is_number_integer()) tokens.push_back(token.get<int64_t>());
    };
    add(end);
    if (end.is_array()) std::ranges::for_each(end, add);
  }
  return tokens;
}

void load_pretrained(TransformerImpl& model, const std::string& folder) {
  const TransformerConfig there = read_hf_config(folder);
  check_same_model(model.config(), there, folder);
  const HfFiles files(folder);
  const HfWeights weights(files, family_of(folder), there);
  const int64_t first_expert = first_expert_of(model);
  const at::NoGradGuard no_grad;
  for (auto& [name, tensor] : tensors_of(model)) {
    const HeldPart part = held_part(name, tensor, there, model.tensor_group(), first_expert);
    if (tensor.is_cpu()) {
      weights.read(name, part, tensor);
    } else {
      const at::Tensor read = at::empty(tensor.sizes(), at::dtype(tensor.scalar_type()));
      weights.read(name, part, read);
      tensor.copy_(read);
    }
  }
}

void save_pretrained(const std::string& folder, const TransformerConfig& config,
                     const std::function<at::Tensor(const std::string& name)>& tensor,
                     at::ScalarType dtype, const SavePretrainedOptions& options) {
  MOE8_CHECK(!fs::exists(folder), kSavePretrained, folder, "expected a folder that does not exist");
  WrittenConfig written = write_config(config);
  const std::vector<HfTensor> tensors = hf_tensors(*written.family, pretrained_tensors(config));
  check_can_quantize(tensors, options.weights);
  AtomicFolder made(kSavePretrained, folder);
  if (!options.files_from.empty()) copy_beside(options.files_from, made.partial(), written.json);
  written.json["torch_dtype"] = dtype == at::kFloat ? "float32" : "bfloat16";
  if (options.weights != ExportedWeights::PLAIN) {
    const bool is_rowwise = options.weights == ExportedWeights::FP8_ROWWISE;
    written.json["quantization_config"] =
        quantization_config(is_rowwise ? kFloatQuantized : kMxfp8Quantized);
  }
  write_file(kSavePretrained, made.partial() + "/config.json", written.json.dump(2) + "\n");
  write_shards(made.partial(), shards_of(tensors, dtype, options), options.weights, tensor);
  made.commit();
}

}  // namespace moe8
