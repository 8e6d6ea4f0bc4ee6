// SPDX-License-Identifier: BSD-3-Clause
// Sizes and sums. Which formats a config means is asked of src/autograd/training_formats.h.
#include "train/memory_plan.h"

#include <cmath>
#include <functional>
#include <numeric>

#include "autograd/training_formats.h"
#include "convert/resolve.h"
#include "moe8/mx.h"

namespace moe8 {
namespace {

constexpr double kFloat = 4, kBf16 = 2, kLong = 8;  // bytes
constexpr double kMoments = 2;                      // of AdamW

double numel(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), 1.0, std::multiplies<>());
}

double ceil_div(double x, double y) {
  return std::ceil(x / y);
}

double itemsize(Weights weights) {
  return weights == Weights::FLOAT32 ? kFloat : kBf16;
}

// ---- saved activations ------------------------------------------------------
// Adds up the kinds of one layer over all layers; a kind keeps its place in the list.
class SavedList {
 public:
  void add(const std::string& what, double bytes) {
    for (SavedTensor& row : rows_) {
      if (row.what == what) {
        row.bytes += bytes;
        return;
      }
    }
    rows_.push_back({what, bytes});
  }
  std::vector<SavedTensor> take() { return std::move(rows_); }

 private:
  std::vector<SavedTensor> rows_;
};

// On a CPU LibTorch composes the norm: the input and the normalized input, both in float32, and the
// reciprocal root of each row.
void add_norm(SavedList& list, const TransformerConfig& c) {
  list.add("norms", 2 * kFloat * double(c.dim) + kFloat);
}

void add_attention(SavedList& list, const TransformerConfig& c, double b) {
  const double width = double(c.n_heads * c.head_width());
  list.add("attention: input", b * double(c.dim));
  list.add("attention: q, k, v", b * (width + 2 * double(c.n_kv_heads * c.head_width())));
  list.add("attention: output", b * width);
  list.add("attention: softmax sums", kFloat * double(c.n_heads));
}

// w1's and silu's output, w3's output, and the product that w2 reads.
double gated(double hidden, double b) {
  return 4 * b * hidden;
}

void add_moe(SavedList& list, const TransformerConfig& c, double b) {
  const double k = double(c.top_k);
  list.add("router: input", b * double(c.dim));
  list.add("router: scores of all experts", kFloat * double(c.n_experts));
  list.add("router: scores of the chosen", kFloat * (c.route_norm ? 2 * k + 1 : k));
  list.add("router: indices", 3 * kLong * k);
  list.add("experts: input and output rows", 2 * b * k * double(c.dim));
  list.add("experts: hidden rows", k * gated(double(c.hidden_dim), b));
  if (c.n_shared_experts > 0) {
    list.add("shared experts: hidden rows", gated(double(c.hidden_dim * c.n_shared_experts), b));
  }
}

// ---- quantized weights ------------------------------------------------------
struct CodeBytes {
  const std::vector<int64_t>& shape;
  size_t axis;

  double operator()(const HighPrecision&) const { return 0; }
  double operator()(const MxFormat& format) const {
    const double length = double(shape[axis]), rest = numel(shape) / length;
    const double last = double(shape.back());
    const bool packed = format.elem == ElemDtype::E2M1;  // two codes a byte along the last axis
    const double data = packed ? numel(shape) / last * ceil_div(last, 2) : numel(shape);
    return data + rest * ceil_div(length, double(kMxBlock));
  }
  double operator()(const Float8Format& format) const {
    const bool whole = format.granularity == ScalingGranularity::TENSORWISE;
    return numel(shape) + kFloat * (whole ? 1 : numel(shape) / double(shape[axis]));
  }
};

}  // namespace

std::vector<SavedTensor> saved_for_backward(const TransformerConfig& c, int64_t itemsize) {
  const double b = double(itemsize);
  SavedList list;
  for (int64_t layer = 0; layer < c.n_layers; ++layer) {
    add_norm(list, c);
    add_attention(list, c, b);
    add_norm(list, c);
    if (layer < c.n_dense_layers) {
      list.add("feed-forward: input", b * double(c.dim));
      list.add("feed-forward: hidden", gated(double(c.dense_hidden_dim), b));
    } else {
      add_moe(list, c, b);
    }
  }
  add_norm(list, c);
  list.add("output projection: input", b * double(c.dim));
  list.add("loss: log-probabilities", kFloat * double(c.vocab_size));
  return list.take();
}

double code_bytes(const Config& config, const std::vector<int64_t>& shape) {
  const TrainingFormats formats = training_formats(config);
  const size_t in = shape.size() - 1, out = shape.size() - 2;
  return std::visit(CodeBytes{shape, in}, formats.out.right) +
         std::visit(CodeBytes{shape, out}, formats.grad_input.right);
}

ConversionReport plan_conversion(const RunConfig& config) {
  const std::string dtype = config.training.weights == Weights::FLOAT32 ? "float32" : "bfloat16";
  std::vector<ParameterInfo> parameters;
  for (const ParameterShape& parameter : parameter_shapes(config.model)) {
    parameters.push_back({.fqn = parameter.name,
                          .shape = parameter.shape,
                          .owner = guess_owner(parameter.name, parameter.shape),
                          .dtype = dtype});
  }
  return resolve(parameters, {}, to_fqn_config(config.conversion()));
}

MemoryPlan plan_memory(const RunConfig& config) {
  const TrainingConfig& t = config.training;
  const double parameters = double(count_parameters(config.model).total);
  const double b = itemsize(t.weights);
  const bool masters = t.weights == Weights::MASTER;
  const double stepped = masters ? kFloat : b;
  MemoryPlan plan;
  plan.weights = parameters * b;
  plan.masters = masters ? parameters * kFloat : 0;
  plan.optimizer = parameters * kMoments * stepped;
  // A backward writes gradients of the weights' dtype; with masters they are then added up in
  // float32, and the next backward of the same step comes on top of that sum.
  plan.gradients = parameters * (masters && t.accumulation > 1 ? stepped + b : stepped);
  for (const ConversionRow& row : plan_conversion(config).converted()) {
    plan.codes += code_bytes(*row.config, row.shape);
  }
  for (const SavedTensor& saved : saved_for_backward(config.model, static_cast<int64_t>(b))) {
    plan.saved_a_token += saved.bytes;
  }
  plan.tokens = double(t.batch_size) * double(t.seq_len);
  return plan;
}

}  // namespace moe8
