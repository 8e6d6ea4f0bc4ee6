// SPDX-License-Identifier: BSD-3-Clause
// What each TensorLayout of a family's table means, in both directions.
#include "models/hf_weights.h"

#include <ATen/ops/stack.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "base/check.h"
#include "io/row_runs.h"
#include "io/safetensors_header.h"
#include "models/quantized_weights.h"
#include "moe8/pretrained.h"

namespace moe8 {
namespace {

// ---- which tensors a model has ----------------------------------------------
std::string first_name(const TensorPlace& place) {
  return of_expert(place.name, 0);
}

bool holds(const HfFiles& files, const std::string& name) {
  return files.contains(held_name(files, name));
}

// Of another family, whose names for the experts are there.
std::string hint_of_names(const HfFiles& files, const Family& family, int64_t moe_layer) {
  const std::string w1 = concat("layers.", moe_layer, ".moe.experts.w1");
  const bool has_own = holds(files, first_name(place_of(family, w1)));
  for (const Family& other : families()) {
    if (!has_own && holds(files, first_name(place_of(other, w1)))) {
      return concat(" Its experts have the names of ", other.model_type,
                    ": does config.json belong to these files?");
    }
  }
  return " Is a shard missing, or does config.json belong to another model?";
}

// "model.layers.61." of a model of 61 layers: DeepSeek-V3's extra layer predicts further tokens.
bool is_of_extra_layer(const std::string& name, int64_t layers) {
  constexpr std::string_view kLayers = "model.layers.";
  if (!name.starts_with(kLayers)) return false;
  const std::string number =
      name.substr(kLayers.size(), name.find('.', kLayers.size()) - kLayers.size());
  constexpr size_t kMostDigits = 9;
  const bool is_number = !number.empty() && number.size() <= kMostDigits &&
                         number.find_first_not_of("0123456789") == std::string::npos;
  return is_number && std::stoll(number) >= layers;
}

bool may_be_left(const std::string& name, const Family& family, const TransformerConfig& config) {
  const bool is_made_anew = name.ends_with(".rotary_emb.inv_freq");
  const bool is_tied = config.tied_embeddings && name == place_of(family, "output.weight").name;
  return is_made_anew || is_tied ||
         (family.model_type == "deepseek_v3" && is_of_extra_layer(name, config.n_layers));
}

}  // namespace

std::vector<ParameterShape> pretrained_tensors(const TransformerConfig& config) {
  std::vector<ParameterShape> list = parameter_shapes(config);
  if (config.load_balance_coeff == 0) return list;
  for (int64_t layer = config.n_dense_layers; layer < config.n_layers; ++layer) {
    list.push_back({concat("layers.", layer, ".moe.expert_bias"), {config.n_experts}});
  }
  return list;
}

HfWeights::HfWeights(const HfFiles& files, const Family& family, const TransformerConfig& config)
    : files_(files), family_(family) {
  std::set<std::string> expected;
  std::vector<std::string> missing;
  for (const HfTensor& tensor : hf_tensors(family, pretrained_tensors(config))) {
    const std::string& name = *expected.insert(held_name(files, tensor.name)).first;
    if (!files.contains(name)) missing.push_back(tensor.name);
  }
  MOE8_CHECK(missing.empty(), kPretrained, files.folder(), "expected the ", expected.size(),
             " tensors of its config.json (", family.model_type, "), of which ", missing.size(),
             missing.size() == 1 ? " is" : " are", " not there, such as ", shown(missing.front()),
             ".", hint_of_names(files, family, config.n_dense_layers));
  for (const std::string& name : files.names()) {
    MOE8_CHECK(expected.contains(name) || is_quantized_part(name, files) ||
                   may_be_left(name, family, config),
               kPretrained, files.folder(), "tensor ", shown(name),
               ": expected none of this name in a model of its config.json (", family.model_type,
               "). moe8 would leave it out.");
  }
}

namespace {

// Every row of `out` from the file, or from its codes: memory is written once, by all threads.
void read_rows(const PlainRows& from, const HeldPart& part, const at::Tensor& out) {
  const bool has_all_columns = out.dim() < 2 || part.whole[1] == out.size(1);
  for_each_run_of_rows(out.size(0), from.row_bytes(), [&](int64_t begin, int64_t end) {
    const at::Tensor own = out.narrow(0, begin, end - begin);
    const int64_t first = part.first_row + begin;
    if (has_all_columns) {
      from.read(first, own);
    } else {
      own.copy_(from.rows(first, end - begin).narrow(1, part.first_column, out.size(1)));
    }
  });
}

void for_each_expert(const at::Tensor& out,
                     const std::function<void(int64_t expert, const at::Tensor& own)>& read) {
  const int64_t bytes = static_cast<int64_t>(out.nbytes()) / std::max<int64_t>(1, out.size(0));
  for_each_run_of_rows(out.size(0), bytes, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) read(e, out.select(0, e));
  });
}

}  // namespace

void HfWeights::read(const std::string& ours, const HeldPart& part, const at::Tensor& out) const {
  const TensorPlace place = place_of(family_, ours);
  const std::vector<int64_t>& whole = part.whole;
  switch (place.layout) {
    case TensorLayout::SAME:
      return read_rows(PlainRows(files_, place.name, whole), part, out);
    case TensorLayout::EVEN:
    case TensorLayout::ODD: {
      const int64_t first = place.layout == TensorLayout::ODD ? 1 : 0;
      const PlainRows both(files_, place.name, {whole[0], 2 * whole[1]});
      out.copy_(both.rows(part.first_row, out.size(0)).slice(1, first, std::nullopt, 2));
      return;
    }
    case TensorLayout::EXPERTS: {
      std::vector<PlainRows> matrices;
      for (int64_t e = 0; e < out.size(0); ++e) {
        const std::string name = of_expert(place.name, part.first_row + e);
        matrices.emplace_back(files_, name, std::vector<int64_t>(whole.begin() + 1, whole.end()));
      }
      return for_each_expert(out, [&](int64_t e, const at::Tensor& own) {
        matrices[static_cast<size_t>(e)].read(0, own);
      });
    }
    case TensorLayout::TRANSPOSED:
    case TensorLayout::EVEN_COLUMNS:
    case TensorLayout::ODD_COLUMNS: {
      const int64_t step = place.layout == TensorLayout::TRANSPOSED ? 1 : 2;
      const int64_t first = place.layout == TensorLayout::ODD_COLUMNS ? 1 : 0;
      const StackedRows stacked(files_, place.name, whole[0], step * whole[1], whole[2]);
      return for_each_expert(out, [&](int64_t e, const at::Tensor& own) {
        own.copy_(stacked.of(part.first_row + e).slice(0, first, std::nullopt, step));
      });
    }
  }
}

// ---- the other way round ----------------------------------------------------
std::vector<HfTensor> hf_tensors(const Family& family, const std::vector<ParameterShape>& ours) {
  std::vector<HfTensor> list;
  std::map<std::string, size_t> whole;  // of those that are made of several of ours, by name
  for (const ParameterShape& own : ours) {
    const TensorPlace place = place_of(family, own.name);
    const int64_t elements =
        std::accumulate(own.shape.begin(), own.shape.end(), int64_t{1}, std::multiplies<>());
    const bool is_split = place.layout == TensorLayout::EXPERTS;
    const int64_t count = is_split ? own.shape[0] : 1;
    for (int64_t e = 0; e < count; ++e) {
      const std::string name = is_split ? of_expert(place.name, e) : place.name;
      const bool is_new = is_split || whole.emplace(name, list.size()).second;
      HfTensor& tensor = is_new ? list.emplace_back() : list[whole.at(name)];
      tensor.name = name;
      tensor.parts.emplace_back(own.name, place.layout);
      tensor.expert = e;
      tensor.elements += elements / count;
      tensor.in = own.shape.back();
    }
  }
  return list;
}

at::Tensor made_of(const HfTensor& tensor,
                   const std::function<at::Tensor(const std::string& name)>& read) {
  const auto& [name, layout] = tensor.parts.front();
  const at::Tensor first = read(name);
  switch (layout) {
    case TensorLayout::SAME:
      return first;
    case TensorLayout::EXPERTS:
      return first.select(0, tensor.expert);
    case TensorLayout::TRANSPOSED:
      return first.transpose(1, 2);
    case TensorLayout::EVEN_COLUMNS:
    case TensorLayout::ODD_COLUMNS: {
      const at::Tensor second = read(tensor.parts.at(1).first);
      const bool in_order = layout == TensorLayout::EVEN_COLUMNS;
      return at::stack({in_order ? first : second, in_order ? second : first}, 2)
          .flatten(1, 2)
          .transpose(1, 2);
    }
    case TensorLayout::EVEN:
    case TensorLayout::ODD: {
      const at::Tensor second = read(tensor.parts.at(1).first);
      const bool in_order = layout == TensorLayout::EVEN;
      return at::stack({in_order ? first : second, in_order ? second : first}, 2).flatten(1, 2);
    }
  }
  return first;
}

}  // namespace moe8
