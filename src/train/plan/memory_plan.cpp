// SPDX-License-Identifier: BSD-3-Clause
// Sizes and sums of weights, gradients and quantized weights, and the parts of a step.
#include "train/plan/memory_plan.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <variant>

#include "autograd/training_formats.h"
#include "base/overloaded.h"
#include "base/plain_text.h"
#include "moe8/mx.h"
#include "moe8/tensor_parallel.h"
#include "nn/frozen_codes.h"
#include "train/config/trained_parameters.h"
#include "train/plan/saved_activations.h"
#include "train/update_rules.h"

namespace moe8 {
namespace {

using bytes_of::kBf16;
using bytes_of::kFloat;

double numel(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), 1.0, std::multiplies<>());
}

double ceil_div(double x, double y) {
  return std::ceil(x / y);
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

// Of each element of a parameter. With masters the first backward of a step leaves bf16, which the
// second one's come beside until both are added up in float32; those of a third come beside that.
// Where products add to float32 sums nothing comes beside.
struct GradientBytes {
  double at_most = 0;
  double earlier = 0;  // before the last backward
};

GradientBytes gradient_bytes(const TrainingConfig& t, bool in_product) {
  const bool is_first = t.accumulation == 1;
  if (t.weights != Weights::MASTER) {
    const double bytes = itemsize(dtype_of(t.weights));
    return {bytes, is_first ? 0 : bytes};
  }
  if (is_first) return {kBf16, 0};
  if (in_product) return {kFloat, kFloat};
  return t.accumulation == 2 ? GradientBytes{2 * kBf16, kBf16}
                             : GradientBytes{kFloat + kBf16, kFloat};
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

// ---- quantized weights of a step --------------------------------------------------
// Of a converted weight, per element.
struct FormsOfStep {
  double waiting = 0;  // from forward to backward
  double kept = 0;     // after it
};

// A GPU lets go of them with the gradient of a single backward (FormsForOneBackward), and already
// when forward is through with the form that it alone reads, unless backward will compute forward
// once more; then the other one is made there. Those of frozen weights wait for no gradient.
FormsOfStep forms_of_step(const TrainingConfig& t, const KeptForms& forms, const std::string& name,
                          bool is_trained) {
  const bool one_backward = t.device == TrainingDevice::CUDA && t.accumulation == 1;
  if (!one_backward || !is_trained) return {forms.of_weight, forms.of_weight};
  const Recompute recompute = t.activation_checkpointing;
  if (is_recomputed(name, recompute)) return {forms.of_forward, 0};
  return {recompute == Recompute::NONE ? forms.of_weight - forms.of_forward : forms.of_weight, 0};
}

// ---- temporary tensors of a backward -------------------------------------------------
// What the products behind the hidden gradient read of it. In FP8 codes along both axes are as large as
// the gradient itself; MX codes are values there, once along each axis.
bool has_values_along_both(const PlannedConversion& conversion, const std::string& weight) {
  const Config* const config = conversion.config(weight);
  return config && std::holds_alternative<MxFormat>(training_formats(*config).grad_input.left);
}

// On a GPU, of a rank's tokens: through experts the gradients of rows and of hidden rows, the hidden
// rows once more, and the gradient of W2; through a dense feed-forward the same; at the end the
// gradient of the projection and of its input.
double passing_through(const RunConfig& config, const PlannedConversion& conversion,
                       const ParallelConfig& held, size_t part, double tokens) {
  const TransformerConfig& c = config.model;
  if (config.training.device != TrainingDevice::CUDA || part == 0) return 0;
  const auto number = static_cast<int64_t>(part) - 1;
  const double width = itemsize(dtype_of(config.training.weights));
  const double d = double(c.dim);
  const auto of_hidden = [&](double rows, double hidden, double weights) {
    return width * (rows * (d + 4 * hidden) + weights * d * hidden);
  };
  if (number == c.n_layers) return width * (double(c.vocab_size) * d + tokens * d);
  if (number < c.n_dense_layers) {
    const double tensor = double(held.tensor);
    return of_hidden(tokens * tensor, double(c.dense_hidden_dim) / tensor, 1);
  }
  const double rows = tokens * double(c.top_k), hidden = double(c.hidden_dim);
  const std::string w1 = concat("layers.", number, ".moe.experts.w1");
  return of_hidden(rows, hidden, double(c.n_experts) / double(held.expert)) +
         (has_values_along_both(conversion, w1) ? width * rows * 2 * hidden : 0);
}

// ---- a plan, piece by piece ------------------------------------------------------------
PartMemory& part_of(MemoryPlan& plan, const RunConfig& config, const std::string& name) {
  return plan.step.parts[part_of_name(name, config.model)];
}

struct Trained {
  std::vector<ParameterShape> held;
  std::set<std::string> names;
  double elements = 0;
};

Trained plan_gradients(MemoryPlan& plan, const RunConfig& config,
                       const PlannedConversion& conversion, const ParallelConfig& held) {
  const TrainingConfig& t = config.training;
  const bool in_products = t.sums_in_products() && config.lora.rank == 0;
  Trained trained;
  for (const TrainedParameter& one : trained_parameters(config)) {
    const ParameterShape& p = trained.held.emplace_back(held_shape(one.parameter, held));
    const double elements = numel(p.shape);
    trained.names.insert(p.name);
    trained.elements += elements;
    const GradientBytes gradient =
        gradient_bytes(t, in_products && conversion.is_of_fused_experts(p.name));
    plan.gradients += elements * gradient.at_most;
    part_of(plan, config, p.name).gradients += elements * gradient.at_most;
    part_of(plan, config, p.name).earlier += elements * gradient.earlier;
  }
  return trained;
}

// A frozen weight that is kept as codes along its rows: the weight and its forms are there while its
// layer is computed.
bool is_planned_as_codes(const RunConfig& config, const Config& converted) {
  return config.lora.base == LoraBase::CODES && can_be_codes(converted);
}

double row_code_bytes(const Config& converted, const std::vector<int64_t>& shape) {
  return std::visit(CodeBytes{shape, shape.size() - 1}, training_formats(converted).out.right);
}

void plan_weights(MemoryPlan& plan, const RunConfig& config, const PlannedConversion& conversion,
                  const ParallelConfig& held, const Trained& trained) {
  const TrainingConfig& t = config.training;
  double elements = config.lora.rank > 0 ? trained.elements : 0;  // adapters, beside the model
  double as_codes = 0;                                            // of the elements
  for (const ParameterShape& whole : parameter_shapes(config.model)) {
    const std::vector<int64_t> shape = held_shape(whole, held).shape;
    elements += numel(shape);
    const Config* const converted = conversion.config(whole.name);
    if (!converted) continue;
    const FormsOfStep forms = forms_of_step(t, conversion.forms(whole.name), whole.name,
                                            trained.names.contains(whole.name));
    plan.codes += code_bytes(*converted, shape);
    if (is_planned_as_codes(config, *converted)) {
      as_codes += numel(shape);
      plan.weights += row_code_bytes(*converted, shape);
      part_of(plan, config, whole.name).recomputed +=
          numel(shape) * (conversion.itemsize() + conversion.forms(whole.name).of_weight);
      continue;
    }
    plan.weight_forms += forms.waiting * numel(shape);
    part_of(plan, config, whole.name).forms += forms.waiting * numel(shape);
    part_of(plan, config, whole.name).kept_forms += forms.kept * numel(shape);
  }
  const bool masters = t.weights == Weights::MASTER;
  plan.weights += (elements - as_codes) * conversion.itemsize();
  plan.masters = masters ? trained.elements * kFloat : 0;
  plan.optimizer = moments_of(config, trained.held, masters ? kFloat : conversion.itemsize());
  plan.step.before = as_codes > 0 ? elements * conversion.itemsize() : 0;
}

void plan_saved(MemoryPlan& plan, const RunConfig& config, const PlannedConversion& conversion,
                const ParallelConfig& held) {
  const TrainingConfig& t = config.training;
  plan.tokens = double(t.batch_size) * double(t.seq_len) / double(held.tensor);
  const std::vector<SavedByPart> saved = saved_by_part(config, conversion, held);
  for (size_t i = 0; i < saved.size(); ++i) {
    PartMemory& part = plan.step.parts[i];
    part.saved = saved[i].bytes() * plan.tokens;
    part.recomputed += saved[i].recomputed * plan.tokens;
    part.passing = passing_through(config, conversion, held, i, plan.tokens);
    plan.saved_a_token += saved[i].bytes();
    plan.recomputed_a_token = std::max(plan.recomputed_a_token, saved[i].recomputed);
  }
}

}  // namespace

double code_bytes(const Config& config, const std::vector<int64_t>& shape) {
  const TrainingFormats formats = training_formats(config);
  const size_t in = shape.size() - 1, out = shape.size() - 2;
  return std::visit(CodeBytes{shape, in}, formats.out.right) +
         std::visit(CodeBytes{shape, out}, formats.grad_input.right);
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
  const PlannedConversion conversion(plan_conversion(config), config.training);
  MemoryPlan plan;
  plan.step.parts.resize(parts_of_model(config.model));
  const Trained trained = plan_gradients(plan, config, conversion, held);
  plan_weights(plan, config, conversion, held, trained);
  plan_saved(plan, config, conversion, held);
  plan.step.fixed = plan.weights + plan.masters + plan.optimizer;
  if (plan.step.before > 0) plan.step.before += plan.masters + plan.optimizer;
  return plan;
}

}  // namespace moe8
