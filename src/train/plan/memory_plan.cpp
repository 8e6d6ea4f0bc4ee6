// SPDX-License-Identifier: BSD-3-Clause
// Sizes and sums. Which formats a config means is asked of src/autograd/training_formats.h, in
// which form a kernel reads an operand of src/gemm/low_precision_gemm.h.
#include "train/plan/memory_plan.h"

#include <ATen/ops/promote_types.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "autograd/training_formats.h"
#include "base/overloaded.h"
#include "convert/resolve.h"
#include "gemm/low_precision_gemm.h"
#include "moe8/mx.h"
#include "moe8/tensor_parallel.h"
#include "train/config/trained_parameters.h"
#include "train/update_rules.h"

namespace moe8 {
namespace {

constexpr double kFloat = 4, kBf16 = 2, kLong = 8, kInt = 4;  // bytes

double numel(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), 1.0, std::multiplies<>());
}

double ceil_div(double x, double y) {
  return std::ceil(x / y);
}

double itemsize(at::ScalarType dtype) {
  return double(c10::elementSize(dtype));
}

at::ScalarType dtype_of(Weights weights) {
  return weights == Weights::FLOAT32 ? at::kFloat : at::kBFloat16;
}

// ---- the optimizer ------------------------------------------------------------
double moment_bytes(const OptimizerConfig& optimizer, double stepped) {
  switch (optimizer.moments) {
    case MomentDtype::LIKE_WEIGHTS:
      return stepped;
    case MomentDtype::FLOAT32:
      return kFloat;
    case MomentDtype::BF16:
      return kBf16;
  }
  return stepped;
}

// AdamW keeps two moments of a parameter, Muon one.
double moments_of(const RunConfig& config, const std::vector<ParameterShape>& parameters,
                  double stepped) {
  double elements = 0;
  for (const ParameterShape& p : parameters) {
    const UpdateRule rule =
        update_rule(config.optimizer.kind, p.name, static_cast<int64_t>(p.shape.size()));
    elements += (rule == UpdateRule::MUON ? 1 : 2) * numel(p.shape);
  }
  return elements * moment_bytes(config.optimizer, stepped);
}

// Of each parameter, at most. With masters the first backward of a step leaves bf16, which the
// second one's come beside until both are added up in float32; those of a third come beside that.
// Where products add to float32 sums nothing comes beside.
double gradient_bytes(const TrainingConfig& t, bool in_product) {
  if (t.weights != Weights::MASTER) return itemsize(dtype_of(t.weights));
  if (t.accumulation == 1) return kBf16;
  if (in_product) return kFloat;
  return t.accumulation == 2 ? 2 * kBf16 : kFloat + kBf16;
}

// ---- quantized operands -----------------------------------------------------
// What the products of one converted weight keep, in bytes of an element; 0: the source itself.
struct KeptForms {
  double of_weight = 0;   // along its in-features and along its out-features
  double of_forward = 0;  // along its in-features alone
  double of_input = 0;    // for the gradient of the weight, instead of the input
};

// Of the right operand, as a Hopper GPU's kernels read it: codes of FP8, values of MX formats. A
// build without CUDA has no kernel that could be asked.
double hopper_form_bytes(const OperandFormat& right) {
  return std::visit(
      Overloaded{[](const HighPrecision&) { return 0.0; }, [](const MxFormat&) { return kBf16; },
                 [](const Float8Format&) { return 1.0; }},
      right);
}

// Of the right operand, as the CPU's kernel of the product reads it. The kernels themselves are
// asked.
double form_bytes(Gemm gemm, const GemmFormats& formats, at::ScalarType left, at::ScalarType right,
                  at::ScalarType out) {
  const std::vector<int64_t> rows{64, 64}, weight{1, 64, 64};  // no kernel of a CPU asks for sizes
  const GemmProblem problem{
      .gemm = gemm,
      .left = Operand::future(rows, left, at::kCPU),
      .right = Operand::future(gemm == Gemm::GRAD_WEIGHT ? rows : weight, right, at::kCPU),
      .groups = {},
      .formats = formats,
      .out_dtype = out};
  const Encoding encoding = choose_gemm_kernel(problem).encoding;
  const double bytes = encoding == Encoding::BF16 ? kBf16 : kFloat;
  const bool is_source =
      std::holds_alternative<HighPrecision>(formats.right) && bytes == itemsize(right);
  return is_source ? 0 : bytes;
}

KeptForms kept_forms(const Config& config, at::ScalarType weight, at::ScalarType input,
                     bool on_gpu) {
  const TrainingFormats formats = training_formats(config);
  const at::ScalarType out = out_dtype_of(config, input);
  KeptForms kept;
  if (on_gpu) {
    kept.of_forward = hopper_form_bytes(formats.out.right);
    kept.of_weight = kept.of_forward + hopper_form_bytes(formats.grad_input.right);
    kept.of_input = hopper_form_bytes(formats.grad_weight.right);
    return kept;
  }
  kept.of_forward = form_bytes(Gemm::OUT, formats.out, input, weight, out);
  kept.of_weight =
      kept.of_forward + form_bytes(Gemm::GRAD_INPUT, formats.grad_input, out, weight, input);
  kept.of_input = form_bytes(Gemm::GRAD_WEIGHT, formats.grad_weight, out, input, weight);
  if (kept.of_input > itemsize(input)) kept.of_input = 0;  // the input itself is smaller
  return kept;
}

// The configs of the converted weights, and the dtypes that follow.
class Conversion {
 public:
  Conversion(const ConversionReport& report, const TrainingConfig& training)
      : dtype_(dtype_of(training.weights)), on_gpu_(training.device == TrainingDevice::CUDA) {
    for (const ConversionRow& row : report.converted()) configs_.emplace(row.fqn, *row.config);
  }

  at::ScalarType dtype() const { return dtype_; }
  bool is_on_gpu() const { return on_gpu_; }
  const Config* config(const std::string& fqn) const {
    const auto found = configs_.find(fqn);
    return found == configs_.end() ? nullptr : &found->second;
  }
  /// Of the result of the product with this weight.
  at::ScalarType out_dtype(const std::string& fqn) const {
    const Config* found = config(fqn);
    return found ? out_dtype_of(*found, dtype_) : dtype_;
  }
  /// w2 of the routed experts reads what w1 and w3 made.
  at::ScalarType input_dtype(const std::string& fqn) const {
    constexpr std::string_view kSecond = "experts.w2";
    if (!fqn.ends_with(kSecond)) return dtype_;
    const std::string part = fqn.substr(0, fqn.size() - 2);
    return at::promote_types(out_dtype(part + "w1"), out_dtype(part + "w3"));
  }
  KeptForms forms(const std::string& fqn) const {
    const Config* found = config(fqn);
    return found ? kept_forms(*found, dtype_, input_dtype(fqn), on_gpu_) : KeptForms{};
  }
  bool have_one_config(const std::string& weight, const std::string& other) const {
    const Config* const a = config(weight);
    const Config* const b = config(other);
    return a && b ? *a == *b : a == b;
  }
  /// Whether this is a weight of experts whose layer is one function (src/experts/fused.cpp).
  bool is_of_fused_experts(const std::string& fqn) const {
    constexpr std::string_view kExperts = ".moe.experts.";
    const size_t at = fqn.find(kExperts);
    if (at == std::string::npos) return false;
    const std::string part = fqn.substr(0, at + kExperts.size());
    return have_one_config(part + "w1", part + "w3");
  }

 private:
  at::ScalarType dtype_;  // of the model
  bool on_gpu_;
  std::unordered_map<std::string, Config> configs_;
};

// Adapters of experts are computed by src/experts/unfused.cpp alone.
bool adapts_experts(const RunConfig& config) {
  if (config.lora.rank == 0) return false;
  const auto shapes = lora_shapes(config.model, config.lora.options());
  return std::ranges::any_of(shapes,
                             [](const ParameterShape& one) { return one.shape.size() == 3; });
}

// ---- saved activations ------------------------------------------------------
// Adds up the kinds of one layer over all layers; a kind keeps its place in the list.
class SavedList {
 public:
  SavedList(Conversion conversion, int64_t tensor, bool adapts_experts)
      : conversion_(std::move(conversion)), tensor_(tensor), adapts_experts_(adapts_experts) {}

  void add(const std::string& what, double bytes) {
    for (SavedTensor& row : rows_) {
      if (row.what == what) {
        row.bytes += bytes;
        return;
      }
    }
    rows_.push_back({what, bytes});
  }

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
    add_input(what, tensor_ * elements, layer, readers);
  }
  bool gathers() const { return tensor_ > 1; }
  bool adapts_experts() const { return adapts_experts_; }

  bool are_fused_experts(const std::string& weight) const {
    return conversion_.is_of_fused_experts(weight);
  }
  /// Whether a fused layer of experts keeps codes of its input, as on a GPU with kernels of moe8.
  bool keeps_codes_of_input(const std::string& weight) const {
    return conversion_.is_on_gpu() && conversion_.forms(weight).of_input == 1;
  }
  double model_itemsize() const { return itemsize(conversion_.dtype()); }
  double out_itemsize(const std::string& weight) const {
    return itemsize(conversion_.out_dtype(weight));
  }
  std::vector<SavedTensor> take() { return std::move(rows_); }

 private:
  Conversion conversion_;
  int64_t tensor_;
  bool adapts_experts_;
  std::vector<SavedTensor> rows_;
};

// A layer that is not there: kept whatever the conversion.
constexpr const char* kOther = "";

// On a CPU LibTorch composes the norm: the input and the normalized input, both in float32, and the
// reciprocal root of each row.
void add_norm(SavedList& list, int64_t width, int64_t rows = 1) {
  list.add("norms", 2 * kFloat * double(width) + kFloat * double(rows));
}

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
  if (c.qk_norm == QkNorm::WIDTH) add_norm(list, width + kv, 2);
  list.add_gathered_input("attention: input", c.dim, layer + "attention.",
                          {{"wq.weight", "wk.weight", "wv.weight"}});
  list.add("attention: q, k, v", list.model_itemsize() * double(width + 2 * kv));
  list.add_input("attention: output", width, layer + "attention.", {{"wo.weight"}, {kOther}});
  list.add("attention: softmax sums", kFloat * double(c.n_heads));
}

// w1's and silu's output, w3's output, and the product of the last two, which w2 reads.
void add_hidden(SavedList& list, const std::string& what, int64_t elements, const std::string& part,
                const std::string& suffix) {
  const double w1 = list.out_itemsize(part + "w1" + suffix);
  const double w3 = list.out_itemsize(part + "w3" + suffix);
  list.add(what, (2 * w1 + w3) * double(elements));
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

void add_moe(SavedList& list, const TransformerConfig& c, const std::string& layer) {
  const std::string part = layer + "moe.", experts = part + "experts.";
  const double k = double(c.top_k);
  const bool shared = c.n_shared_experts > 0;
  const bool fused = list.are_fused_experts(experts + "w1") && !list.adapts_experts();
  std::vector<std::vector<std::string>> readers{{"router.gate.weight"}};
  const std::vector<std::string> of_shared{"shared_experts.w1.weight", "shared_experts.w3.weight"};
  if (shared && !list.gathers()) readers.push_back(of_shared);
  const bool as_codes = list.keeps_codes_of_input(experts + "w1");
  // The experts save it as it is, once for gate and up; or codes with a scale.
  if (fused) readers.push_back({as_codes ? "experts.w1" : kOther});
  if (fused && as_codes) list.add("router: input", kFloat);
  list.add_input("router: input", c.dim, part, readers);
  list.add("router: scores of all experts", kFloat * double(c.n_experts));
  list.add("router: scores of the chosen", kFloat * (c.route_norm ? 2 * k + 1 : k));
  list.add("router: indices", (kLong + 2 * kInt) * k);  // experts, and rows and slots by the other
  fused ? add_fused_experts(list, c, experts) : add_unfused_experts(list, c, experts);
  if (!shared) return;
  if (list.gathers()) list.add_gathered_input("shared experts: input", c.dim, part, {of_shared});
  add_hidden(list, "shared experts: hidden rows", c.hidden_dim * c.n_shared_experts,
             part + "shared_experts.", ".weight");
}

// Of each adapter its input, though others may keep it as well, and what A makes of it.
void add_adapters(SavedList& list, const RunConfig& config) {
  if (config.lora.rank == 0) return;
  const auto k = double(config.model.top_k);
  for (const ParameterShape& one : lora_shapes(config.model, config.lora.options())) {
    const bool is_of_experts = one.shape.size() == 3;
    // A [rank, in] reads an input, B [out, rank] what A made.
    list.add("adapters",
             (is_of_experts ? k : 1) * list.model_itemsize() * double(one.shape.back()));
  }
}

// ---- weights as codes ---------------------------------------------------------
struct CodeBytes {
  const std::vector<int64_t>& shape;
  size_t axis;

  double operator()(const HighPrecision&) const { return 0; }
  double operator()(const MxFormat& format) const {
    const double length = double(shape[axis]), rest = numel(shape) / length;
    const double last = double(shape.back());
    const bool packed = format.elem == ElemDtype::E2M1;  // two codes per byte along the last axis
    const double data = packed ? numel(shape) / last * ceil_div(last, 2) : numel(shape);
    return data + rest * ceil_div(length, double(kMxBlock));
  }
  double operator()(const Float8Format& format) const {
    const bool whole = format.granularity == ScalingGranularity::TENSORWISE;
    return numel(shape) + kFloat * (whole ? 1 : numel(shape) / double(shape[axis]));
  }
};

// ---- blocks ---------------------------------------------------------------------
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

// ---- weights and gradients of a step ----------------------------------------------
double gradients_of(const RunConfig& config, const std::vector<ParameterShape>& parameters,
                    const Conversion& conversion) {
  const bool in_products = config.training.sums_in_products() && config.lora.rank == 0;
  double bytes = 0;
  for (const ParameterShape& p : parameters) {
    const bool in_product = in_products && conversion.is_of_fused_experts(p.name);
    bytes += numel(p.shape) * gradient_bytes(config.training, in_product);
  }
  return bytes;
}

// Quantized forms of a converted weight, per element.
struct FormsOfStep {
  double waiting = 0;  // at most, from forward to backward
  double beside = 0;   // of them what a step needs beside the gradients
};

// A GPU lets go of them with the gradient of a single backward (FormsForOneBackward): they lie where
// the gradient will, and only what is larger than that comes beside it. The form that forward alone
// reads is gone by then, unless backward computes forward once more.
FormsOfStep forms_of_step(const TrainingConfig& t, const KeptForms& forms) {
  if (t.device != TrainingDevice::CUDA || t.accumulation > 1) {
    return {.waiting = forms.of_weight, .beside = forms.of_weight};
  }
  const bool recomputes = t.activation_checkpointing != Recompute::NONE;
  const double waiting = recomputes ? forms.of_weight : forms.of_weight - forms.of_forward;
  return {.waiting = waiting,
          .beside = std::max(0.0, waiting - gradient_bytes(t, /*in_product=*/false))};
}

// What backward computes again of a block, while it goes through that.
double recomputed_bytes(const RunConfig& config, const Conversion& conversion, int64_t number,
                        int64_t tensor) {
  const Recompute recompute = config.training.activation_checkpointing;
  if (recompute == Recompute::NONE) return 0;
  SavedList list(conversion, tensor, adapts_experts(config));
  const std::string layer = layer_name(number);
  if (recompute == Recompute::FULL) add_attention_half(list, config.model, layer);
  add_other_half(list, config.model, number, layer);
  double bytes = 0;
  for (const SavedTensor& row : list.take()) bytes += row.bytes;
  return bytes;
}

}  // namespace

std::vector<SavedTensor> saved_for_backward(const RunConfig& config, int64_t tensor) {
  const TransformerConfig& c = config.model;
  const Recompute recompute = config.training.activation_checkpointing;
  SavedList list(Conversion(plan_conversion(config), config.training), tensor,
                 adapts_experts(config));
  for (int64_t number = 0; number < c.n_layers; ++number) {
    const std::string layer = layer_name(number);
    if (recompute != Recompute::FULL) add_attention_half(list, c, layer);
    if (recompute == Recompute::NONE) add_other_half(list, c, number, layer);
    // The residual stream, and beside it what attention adds.
    const double inputs = recompute == Recompute::SELECTIVE ? 2 : 1;
    if (recompute != Recompute::NONE) {
      list.add("inputs of what is recomputed", inputs * list.model_itemsize() * double(c.dim));
    }
  }
  add_norm(list, c.dim);
  list.add_input("output projection: input", c.dim, "", {{"output.weight"}});
  list.add("loss: log-probabilities", kFloat * double(c.vocab_size));
  add_adapters(list, config);
  return list.take();
}

double code_bytes(const Config& config, const std::vector<int64_t>& shape) {
  const TrainingFormats formats = training_formats(config);
  const size_t in = shape.size() - 1, out = shape.size() - 2;
  return std::visit(CodeBytes{shape, in}, formats.out.right) +
         std::visit(CodeBytes{shape, out}, formats.grad_input.right);
}

ConversionReport plan_conversion(const RunConfig& config) {
  const std::string dtype(c10::getDtypeNames(dtype_of(config.training.weights)).first);
  std::vector<ParameterInfo> parameters;
  for (const ParameterShape& parameter : parameter_shapes(config.model)) {
    parameters.push_back({.fqn = parameter.name,
                          .shape = parameter.shape,
                          .owner = guess_owner(parameter.name, parameter.shape),
                          .dtype = dtype,
                          .has_known_use = true});
  }
  return resolve(parameters, {}, to_fqn_config(config.conversion()));
}

ParameterShape held_shape(const ParameterShape& whole, const ParallelConfig& parallel) {
  ParameterShape held = whole;
  const bool is_of_experts = held.name.find(".moe.experts.") != std::string::npos;
  if (is_of_experts) held.shape[0] /= parallel.expert;  // stacks of routed experts
  const TensorSplit split = tensor_split(held.name);
  if (split == TensorSplit::COLUMN_PARALLEL) held.shape[0] /= parallel.tensor;
  if (split == TensorSplit::ROW_PARALLEL) held.shape[1] /= parallel.tensor;
  return held;
}

MemoryPlan plan_memory(const RunConfig& config, const ParallelConfig& held) {
  const TrainingConfig& t = config.training;
  double elements = 0;
  for (const ParameterShape& whole : parameter_shapes(config.model)) {
    elements += numel(held_shape(whole, held).shape);
  }
  std::vector<ParameterShape> trained;
  std::set<std::string> names;
  double stepped = 0;
  for (const TrainedParameter& one : trained_parameters(config)) {
    names.insert(one.parameter.name);
    trained.push_back(held_shape(one.parameter, held));
    stepped += numel(trained.back().shape);
  }
  if (config.lora.rank > 0) elements += stepped;  // adapters, beside the model
  const at::ScalarType dtype = dtype_of(t.weights);
  const double b = itemsize(dtype);
  const bool masters = t.weights == Weights::MASTER;
  MemoryPlan plan;
  plan.weights = elements * b;
  plan.masters = masters ? stepped * kFloat : 0;
  plan.optimizer = moments_of(config, trained, masters ? kFloat : b);
  const ConversionReport report = plan_conversion(config);
  const Conversion conversion(report, t);
  plan.gradients = gradients_of(config, trained, conversion);
  for (const ConversionRow& row : report.converted()) {
    const std::vector<int64_t> shape = held_shape({row.fqn, row.shape}, held).shape;
    plan.codes += code_bytes(*row.config, shape);
    const FormsOfStep forms = forms_of_step(t, conversion.forms(row.fqn));
    // Those of frozen weights wait for no gradient that would let them go.
    const bool is_trained = names.contains(row.fqn);
    plan.weight_forms += (forms.beside + (is_trained ? 0 : forms.waiting)) * numel(shape);
    plan.waiting_forms += (is_trained ? forms.waiting : 0) * numel(shape);
  }
  for (const SavedTensor& saved : saved_for_backward(config, held.tensor)) {
    plan.saved_a_token += saved.bytes;
  }
  for (int64_t number = 0; number < config.model.n_layers; ++number) {
    plan.recomputed_a_token = std::max(plan.recomputed_a_token,
                                       recomputed_bytes(config, conversion, number, held.tensor));
  }
  plan.tokens = double(t.batch_size) * double(t.seq_len) / double(held.tensor);
  return plan;
}

}  // namespace moe8
