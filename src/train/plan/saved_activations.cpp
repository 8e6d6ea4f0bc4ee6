// SPDX-License-Identifier: BSD-3-Clause
#include "train/plan/saved_activations.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <utility>

#include "moe8/lora.h"

namespace moe8 {
namespace {

using bytes_of::kFloat;
using bytes_of::kInt;
using bytes_of::kLong;

// Adds up what is of one kind; a kind keeps its place in the list.
void add_to(std::vector<SavedTensor>& rows, const std::string& what, double bytes) {
  const auto same = std::ranges::find(rows, what, &SavedTensor::what);
  same == rows.end() ? rows.push_back({what, bytes}) : void(same->bytes += bytes);
}

// What one part of a model keeps.
class SavedList {
 public:
  SavedList(const PlannedConversion& conversion, const ParallelConfig& held, bool adapts_experts)
      : conversion_(conversion), held_(held), adapts_experts_(adapts_experts) {}

  void add(const std::string& what, double bytes) { add_to(rows_, what, bytes); }

  /// An activation that products with weights read: each keeps a form of its own, one config's
  /// products under a SharedInput keep one, or the activation, which all share.
  /// @param readers  weights of one SharedInput together
  void add_input(const std::string& what, int64_t elements, const std::string& layer,
                 const std::vector<std::vector<std::string>>& readers) {
    double itself = 0;
    for (const std::vector<std::string>& weights : readers) {
      for (auto weight = weights.begin(); weight != weights.end(); ++weight) {
        const double form = conversion_.forms(layer + *weight).of_input;
        if (form == 0) itself = itemsize(conversion_.input_dtype(layer + *weight));
        const bool is_kept = std::any_of(weights.begin(), weight, [&](const std::string& other) {
          return conversion_.have_one_config(layer + *weight, layer + other);
        });
        if (form > 0 && !is_kept) add(what, form * double(elements));
      }
    }
    add(what, itself * double(elements));
  }

  /// The same of what weights in parts read: the tokens of all ranks of a tensor group.
  void add_gathered_input(const std::string& what, int64_t elements, const std::string& layer,
                          const std::vector<std::vector<std::string>>& readers) {
    add_input(what, held_.tensor * elements, layer, readers);
  }
  bool gathers() const { return held_.tensor > 1; }
  int64_t tensor_ranks() const { return held_.tensor; }
  bool is_on_gpu() const { return conversion_.is_on_gpu(); }
  /// Ranks over which the experts of a layer are spread.
  int64_t expert_ranks() const { return held_.expert; }
  bool adapts_experts() const { return adapts_experts_; }

  bool are_fused_experts(const std::string& weight) const {
    return conversion_.is_of_fused_experts(weight);
  }
  /// Whether a fused layer of experts keeps codes of its input, as on a GPU with kernels of moe8.
  bool keeps_codes_of_input(const std::string& weight) const {
    return conversion_.is_on_gpu() && conversion_.forms(weight).of_input == 1;
  }
  double model_itemsize() const { return conversion_.itemsize(); }
  double out_itemsize(const std::string& weight) const {
    return itemsize(conversion_.out_dtype(weight));
  }
  std::vector<SavedTensor> take() { return std::move(rows_); }

 private:
  const PlannedConversion& conversion_;
  ParallelConfig held_;
  bool adapts_experts_;
  std::vector<SavedTensor> rows_;
};

// The reciprocal root of each row, and on a GPU the input; on a CPU LibTorch composes the norm, of
// the input and the normalized input, both in float32.
void add_norm(SavedList& list, int64_t width, int64_t rows = 1) {
  const double of_element = list.is_on_gpu() ? list.model_itemsize() : 2 * kFloat;
  list.add("norms", of_element * double(width) + kFloat * double(rows));
}

// Of features that a tensor group shares out: the input, and the roots of all its positions.
void add_norm_in_parts(SavedList& list, int64_t width, int64_t norms) {
  if (list.tensor_ranks() == 1) return add_norm(list, width, norms);
  list.add("norms",
           list.model_itemsize() * double(width) + kFloat * double(norms * list.tensor_ranks()));
}

// A layer that is not there: kept whatever the conversion.
constexpr const char* kOther = "";

// Values are widened to the width of keys, which copies them; or else they are a part of what wkv_b
// made, which stays.
void add_latent_attention(SavedList& list, const TransformerConfig& c, const std::string& layer) {
  const std::string part = layer + "attention.";
  const int64_t width = c.n_heads * std::max(c.query_width(), c.head_width());
  const int64_t values = c.n_heads * c.head_width();
  list.add_input("attention: input", c.dim, part,
                 {{c.q_rank > 0 ? "wq_a.weight" : "wq.weight", "wkv_a.weight"}});
  if (c.q_rank > 0) {
    add_norm(list, c.q_rank);
    list.add_input("attention: latents", c.q_rank, part, {{"wq_b.weight"}});
  }
  add_norm(list, c.kv_rank);
  list.add_input("attention: latents", c.kv_rank, part, {{"wkv_b.weight"}});
  const int64_t v = width > values ? width : values + c.n_heads * c.plain_head_dim;
  list.add("attention: q, k, v", list.model_itemsize() * double(2 * width + v));
  if (width > values) list.add("attention: output", list.model_itemsize() * double(width));
  std::vector<std::vector<std::string>> readers{{"wo.weight"}};
  if (width == values) readers.push_back({kOther});
  list.add_input("attention: output", values, part, readers);
  list.add("attention: softmax sums", kFloat * double(c.n_heads));
}

void add_attention(SavedList& list, const TransformerConfig& c, const std::string& layer) {
  if (c.has_latent_attention()) return add_latent_attention(list, c, layer);
  const int64_t width = c.n_heads * c.head_width(), kv = c.n_kv_heads * c.head_width();
  if (c.qk_norm == QkNorm::HEAD) add_norm(list, width + kv, c.n_heads + c.n_kv_heads);
  if (c.qk_norm == QkNorm::WIDTH) add_norm_in_parts(list, width + kv, 2);
  list.add_gathered_input("attention: input", c.dim, layer + "attention.",
                          {{"wq.weight", "wk.weight", "wv.weight"}});
  list.add("attention: q, k, v", list.model_itemsize() * double(width + 2 * kv));
  list.add_input("attention: output", width, layer + "attention.", {{"wo.weight"}, {kOther}});
  list.add("attention: softmax sums", kFloat * double(c.n_heads));
}

// w1's and w3's output, on a CPU silu's as well, and the product of gate and up, which w2 reads.
void add_hidden(SavedList& list, const std::string& what, int64_t elements, const std::string& part,
                const std::string& suffix) {
  const double w1 = list.out_itemsize(part + "w1" + suffix);
  const double w3 = list.out_itemsize(part + "w3" + suffix);
  list.add(what, ((list.is_on_gpu() ? 1 : 2) * w1 + w3) * double(elements));
  list.add_input(what, elements, part, {{"w2" + suffix}});
}

void add_dense(SavedList& list, const TransformerConfig& c, const std::string& layer) {
  const std::string part = layer + "feed_forward.";
  list.add_gathered_input("feed-forward: input", c.dim, part, {{"w1.weight", "w3.weight"}});
  add_hidden(list, "feed-forward: hidden", c.dense_hidden_dim, part, ".weight");
}

// What src/experts/fused.cpp saves: its input is the router's, so what is left are the results of the
// first product, gate and up.
void add_fused_experts(SavedList& list, const TransformerConfig& c, const std::string& part) {
  list.add("experts: hidden rows",
           2 * list.out_itemsize(part + "w1") * double(c.top_k * c.hidden_dim));
}

// What the operations of src/experts/unfused.cpp save.
void add_unfused_experts(SavedList& list, const TransformerConfig& c, const std::string& part) {
  const int64_t rows = c.top_k * c.dim, hidden = c.top_k * c.hidden_dim;
  const std::string around = "experts: input and output rows";
  list.add_input(around, rows, part, {{"w1"}, {"w3"}});
  // Scores multiply the rows that go into the experts, or those that come out.
  const double scaled =
      c.score_before_experts ? list.model_itemsize() : list.out_itemsize(part + "w2");
  list.add(around, scaled * double(rows));
  if (c.score_before_experts) list.add("router: scores of the chosen", kFloat * double(c.top_k));
  // Gate, silu of it and up in float32, and the product of the last two.
  list.add("experts: hidden rows", 3 * kFloat * double(hidden));
  list.add_input("experts: hidden rows", hidden, part, {{"w2"}});
}

// What the experts of a rank get of all ranks of their group, instead of its own tokens: each once,
// with the indices, scores and places of its choices.
void add_arrived(SavedList& list, const TransformerConfig& c, const std::string& experts,
                 bool as_codes) {
  const char* what = "experts: tokens of all ranks";
  const double tokens = double(list.expert_ranks()) * chance_of_rank(c, list.expert_ranks());
  const int64_t elements = std::llround(tokens * double(c.dim));
  list.add_input(what, elements, experts, {{as_codes ? "w1" : kOther}});
  list.add(what, tokens * ((as_codes ? kFloat : 0) + (kFloat + 4 * kInt) * double(c.top_k)));
}

void add_router(SavedList& list, const TransformerConfig& c) {
  const double k = double(c.top_k), all = double(c.n_experts);
  if (list.is_on_gpu()) {  // one function, which keeps the logits
    list.add("router: scores of all experts", list.model_itemsize() * all);
    list.add("router: scores of the chosen", kFloat * k);
  } else {
    list.add("router: scores of all experts", kFloat * all);
    list.add("router: scores of the chosen", kFloat * (c.route_norm ? 2 * k + 1 : k));
  }
  list.add("router: indices", (kLong + 2 * kInt) * k);  // experts, and rows and slots by the other
}

void add_moe(SavedList& list, const TransformerConfig& c, const std::string& layer) {
  const std::string part = layer + "moe.", experts = part + "experts.";
  const bool shared = c.n_shared_experts > 0, is_spread = list.expert_ranks() > 1;
  const bool fused = list.are_fused_experts(experts + "w1") && !list.adapts_experts();
  std::vector<std::vector<std::string>> readers{{"router.gate.weight"}};
  const std::vector<std::string> of_shared{"shared_experts.w1.weight", "shared_experts.w3.weight"};
  if (shared && !list.gathers()) readers.push_back(of_shared);
  const bool as_codes = list.keeps_codes_of_input(experts + "w1");
  if (fused && !is_spread) {
    // The experts save it as it is, once for gate and up; or codes with a scale.
    readers.push_back({as_codes ? "experts.w1" : kOther});
    if (as_codes) list.add("router: input", kFloat);
  }
  list.add_input("router: input", c.dim, part, readers);
  add_router(list, c);
  if (is_spread) add_arrived(list, c, experts, as_codes);
  fused ? add_fused_experts(list, c, experts) : add_unfused_experts(list, c, experts);
  if (!shared) return;
  if (list.gathers()) list.add_gathered_input("shared experts: input", c.dim, part, {of_shared});
  add_hidden(list, "shared experts: hidden rows", c.hidden_dim * c.n_shared_experts,
             part + "shared_experts.", ".weight");
}

// Of an adapter its input, though others may keep it as well, and what A makes of it.
void add_adapter(SavedList& list, const ParameterShape& one, int64_t top_k) {
  const bool is_of_experts = one.shape.size() == 3;
  // A [rank, in] reads an input, B [out, rank] what A made.
  const double rows = is_of_experts ? double(top_k) : 1;
  list.add("adapters", rows * list.model_itemsize() * double(one.shape.back()));
}

void add_attention_half(SavedList& list, const TransformerConfig& c, const std::string& layer) {
  add_norm(list, c.dim);
  add_attention(list, c, layer);
}

void add_other_half(SavedList& list, const TransformerConfig& c, int64_t number,
                    const std::string& layer) {
  add_norm(list, c.dim);
  number < c.n_dense_layers ? add_dense(list, c, layer) : add_moe(list, c, layer);
}

std::string layer_name(int64_t number) {
  return "layers." + std::to_string(number) + ".";
}

void add_layer(SavedList& list, const TransformerConfig& c, int64_t number, Recompute recompute) {
  const std::string layer = layer_name(number);
  if (recompute != Recompute::FULL) add_attention_half(list, c, layer);
  if (recompute == Recompute::NONE) return add_other_half(list, c, number, layer);
  // The residual stream, which a GPU's norm keeps anyway, and beside it what attention adds.
  const bool selective = recompute == Recompute::SELECTIVE;
  const double inputs = selective && !list.is_on_gpu() ? 2 : 1;
  list.add("inputs of what is recomputed", inputs * list.model_itemsize() * double(c.dim));
}

// Norm, output projection and loss: on a CPU log-probabilities, on a GPU logits, where their gradient
// will be as well.
void add_end(SavedList& list, const TransformerConfig& c) {
  add_norm(list, c.dim);
  list.add_input("output projection: input", c.dim, "", {{"output.weight"}});
  const bool gpu = list.is_on_gpu();
  list.add(gpu ? "loss: logits" : "loss: log-probabilities",
           (gpu ? list.out_itemsize("output.weight") : kFloat) * double(c.vocab_size));
  if (gpu) list.add("loss: logits", kFloat);  // the sum of a row
}

double sum_of(const std::vector<SavedTensor>& rows) {
  return std::accumulate(rows.begin(), rows.end(), 0.0,
                         [](double sum, const SavedTensor& row) { return sum + row.bytes; });
}

// Adapters of experts are computed by src/experts/unfused.cpp alone.
bool adapts_experts(const std::vector<ParameterShape>& adapters) {
  return std::ranges::any_of(adapters,
                             [](const ParameterShape& one) { return one.shape.size() == 3; });
}

}  // namespace

double SavedByPart::bytes() const {
  return sum_of(kept);
}

size_t parts_of_model(const TransformerConfig& config) {
  return static_cast<size_t>(config.n_layers) + 2;
}

size_t part_of_name(const std::string& name, const TransformerConfig& config) {
  constexpr std::string_view kLayers = "layers.";
  if (!name.starts_with(kLayers)) return name.starts_with("tok_") ? 0 : parts_of_model(config) - 1;
  size_t number = 0;
  std::from_chars(name.data() + kLayers.size(), name.data() + name.size(), number);
  return number + 1;
}

bool is_recomputed(const std::string& name, Recompute recompute) {
  if (recompute == Recompute::NONE || !name.starts_with("layers.")) return false;
  return recompute == Recompute::FULL || name.find(".attention.") == std::string::npos;
}

double chance_of_rank(const TransformerConfig& config, int64_t ranks) {
  const double experts = double(config.n_experts), elsewhere = experts - experts / double(ranks);
  double none = 1;
  for (int64_t i = 0; i < config.top_k; ++i) {
    none *= std::max(elsewhere - double(i), 0.0) / (experts - double(i));
  }
  return 1 - none;
}

std::vector<SavedByPart> saved_by_part(const RunConfig& config, const PlannedConversion& conversion,
                                       const ParallelConfig& held) {
  const TransformerConfig& c = config.model;
  const Recompute recompute = config.training.activation_checkpointing;
  std::vector<ParameterShape> adapters;
  if (config.lora.rank > 0) adapters = lora_shapes(c, config.lora.options());
  const auto list_of = [&](const auto& fill) {
    SavedList list(conversion, held, adapts_experts(adapters));
    fill(list);
    return list;
  };
  std::vector<SavedByPart> parts(parts_of_model(c));
  for (int64_t number = 0; number < c.n_layers; ++number) {
    SavedByPart& part = parts[static_cast<size_t>(number) + 1];
    part.kept = list_of([&](SavedList& list) { add_layer(list, c, number, recompute); }).take();
    if (recompute == Recompute::NONE) continue;
    part.recomputed = sum_of(list_of([&](SavedList& list) {
                               const std::string layer = layer_name(number);
                               if (recompute == Recompute::FULL) add_attention_half(list, c, layer);
                               add_other_half(list, c, number, layer);
                             }).take());
  }
  parts.back().kept = list_of([&](SavedList& list) { add_end(list, c); }).take();
  for (const ParameterShape& one : adapters) {
    SavedByPart& part = parts[part_of_name(one.name, c)];
    const std::vector<SavedTensor> rows =
        list_of([&](SavedList& list) { add_adapter(list, one, c.top_k); }).take();
    if (is_recomputed(one.name, recompute)) {
      part.recomputed += sum_of(rows);
      continue;
    }
    for (const SavedTensor& row : rows) add_to(part.kept, row.what, row.bytes);
  }
  return parts;
}

std::vector<SavedTensor> saved_for_backward(const RunConfig& config, const ParallelConfig& held) {
  const PlannedConversion conversion(plan_conversion(config), config.training);
  std::vector<SavedTensor> all;
  for (const SavedByPart& part : saved_by_part(config, conversion, held)) {
    for (const SavedTensor& row : part.kept) add_to(all, row.what, row.bytes);
  }
  return all;
}

}  // namespace moe8
