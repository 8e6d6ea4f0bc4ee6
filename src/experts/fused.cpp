// SPDX-License-Identifier: BSD-3-Clause
#include "experts/fused.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/custom_class.h>

#include <array>
#include <utility>

#include "autograd/function_parts.h"
#include "autograd/weight_gradient.h"
#include "base/check.h"
#include "gemm/low_precision_gemm.h"
#include "moe8/float8.h"
#include "quantize/check_input.h"
#include "routing/rows.h"
#include "weights/backward_end.h"
#include "weights/usage.h"
#include "weights/weight_cache.h"

namespace moe8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kExpertsOnce =
    "moe8: moe_experts cannot be differentiated twice (create_graph=true). "
    "With ExpertsImplementation::UNFUSED and weights that are not converted it can.";

// What may need a gradient.
enum Input { kX, kGate, kUp, kDown, kBias13, kBias2, kScores, kInputs };

/// H between forward and backward.
class KeptHidden {
 public:
  KeptHidden() = default;
  KeptHidden(const at::Tensor& H, SavedHidden how) {
    if (how == SavedHidden::SOURCE) {
      source_ = H;
    } else {
      codes_ = quantize_float8(H, Float8Granularity::axiswise(1), ElemDtype::E4M3,
                               /*round_scales_to_power_of_2=*/true);
    }
  }

  /// The rows, which are kept no longer.
  at::Tensor take() {
    at::Tensor H = codes_ ? dequantize(*codes_) : std::move(source_);
    codes_.reset();
    return H;
  }

 private:
  at::Tensor source_;
  std::optional<Float8Tensor> codes_;
};

/// One call, from forward to backward.
struct Layer : torch::CustomClassHolder {
  Layer(ExpertsCall c, const ExpertsTensors& tensors)
      : call(std::move(c)),
        codes(tensors.codes),
        send_x_grad(tensors.send_x_grad),
        send_result(tensors.send_result) {}

  ExpertsCall call;
  std::optional<TokenCodes> codes;  // until forward has read them
  std::function<void(const at::Tensor& grad)> send_x_grad;
  std::function<at::Tensor(const RowsWriter& write)> send_result;  // until forward has called it
  const ExpertStages* stages = nullptr;
  std::array<int, kInputs> position{};  // among the inputs of the autograd function; -1: not there
  std::array<bool, kInputs> needs{};    // a gradient, as far as forward knows
  std::array<at::ScalarType, kInputs> dtypes{};
  std::array<WeightId, kInputs> weights{};
  std::array<std::weak_ptr<GradientSum>, kInputs> sums{};  // of the gradients of weights

  /// What forward made for backward. Not among the saved variables, which LibTorch holds until
  /// backward has ended: these go as soon as they are read, unless the graph is to be kept.
  struct Kept {
    KeptHidden H;
    std::vector<at::Tensor> tokens;   // instead of x
    std::optional<TokenCodes> codes;  // of x, where it has no values and nothing is kept instead
  };
  std::optional<Kept> kept;
  /// Backward reads x, or what it came as.
  bool kept_needs_x() const {
    return needs_gate_up() && (kept->tokens.empty() || call.is_observed);
  }

  bool has(Input input) const { return position[input] >= 0; }
  bool needs_gate_up() const { return needs[kGate] || needs[kUp]; }
  /// dA, or what follows from it.
  bool needs_hidden_grad() const {
    return needs[kX] || needs_gate_up() || needs[kBias13] || needs[kScores];
  }
  bool has_separate_gate_up() const { return has(kUp); }
  /// Whether products of W13 have to be shown to observers weight by weight.
  bool shows_parts() const {
    return has_separate_gate_up() && weights[kGate] != WeightId{} && numerics_observed();
  }

  /// The operands of the six products while they do not exist yet.
  Operand rows_to_come(int64_t columns, at::ScalarType dtype) const {
    return Operand::future({call.rows(), columns}, dtype, call.device);
  }

  GemmProblem out13(const Operand& X, const Operand& W) const {
    return problem(Gemm::OUT, call.gate_up, X, W, call.hidden_dtype, joined_weight());
  }
  GemmProblem grad_input13(const Operand& dH, const Operand& W) const {
    return problem(Gemm::GRAD_INPUT, call.gate_up, dH, W, call.x_dtype, joined_weight());
  }
  /// Of the weight `input`: kGate, or kUp where it is one of its own.
  GemmProblem grad_weight13(const Operand& dH, const Operand& X, Input input) const {
    return problem(Gemm::GRAD_WEIGHT, call.gate_up, dH, X, dtypes[input], weights[input]);
  }
  GemmProblem out2(const Operand& A, const Operand& W) const {
    return problem(Gemm::OUT, call.down, A, W, call.row_dtype, weights[kDown]);
  }
  GemmProblem grad_input2(const Operand& G, const Operand& W) const {
    return problem(Gemm::GRAD_INPUT, call.down, G, W, call.hidden_dtype, weights[kDown]);
  }
  GemmProblem grad_weight2(const Operand& G, const Operand& A) const {
    return problem(Gemm::GRAD_WEIGHT, call.down, G, A, dtypes[kDown], weights[kDown]);
  }

 private:
  // A product of two weights at once is shown to observers by its parts.
  WeightId joined_weight() const { return has_separate_gate_up() ? WeightId{} : weights[kGate]; }

  GemmProblem problem(Gemm gemm, const TrainingFormats& formats, const Operand& left,
                      const Operand& right, at::ScalarType dtype, const WeightId& weight) const {
    const GemmFormats& of = gemm == Gemm::OUT          ? formats.out
                            : gemm == Gemm::GRAD_INPUT ? formats.grad_input
                                                       : formats.grad_weight;
    return {.gemm = gemm,
            .left = left,
            .right = right,
            .groups = call.groups,
            .formats = of,
            .out_dtype = dtype,
            .kernel_preference = formats.kernel_preference,
            .weight = weight,
            .weight_from_row_codes = call.column_codes == ColumnCodes::FROM_ROW_CODES &&
                                     formats.out.right == formats.grad_input.right};
  }
};
using LayerPtr = c10::intrusive_ptr<Layer>;

// ---- observers ----------------------------------------------------------------
// Each of two weights that were multiplied as one gets its part of the product.
void show_out_parts(const Layer& layer, const Operand& X, at::TensorList parts,
                    const at::Tensor& H) {
  if (!layer.shows_parts() || !X.has_source()) return;
  const int64_t h = layer.call.hidden;
  for (const Input input : {kGate, kUp}) {
    GemmProblem part = layer.out13(X, parts[input - kGate]);
    part.weight = layer.weights[input];
    show_to_observers(part, H.narrow(1, (input - kGate) * h, h));
  }
}

// dX is the sum of both: the whole is shown as the product of the two, known by their tags, or of either.
void show_grad_input(const Layer& layer, GemmProblem problem, const at::Tensor& dX) {
  if (!layer.shows_parts()) return;
  if (!problem.left.has_source() || !problem.right.has_source()) return;
  const WeightId &gate = layer.weights[kGate], &up = layer.weights[kUp];
  if (!gate.tags.empty() && !up.tags.empty()) {
    problem.weight = {.tags = gate.tags};
    problem.weight.tags.insert(problem.weight.tags.end(), up.tags.begin(), up.tags.end());
    show_to_observers(problem, dX);
    return;
  }
  for (const WeightId& weight : {gate, up}) {
    problem.weight = weight;
    show_to_observers(problem, dX);
  }
}

// ---- the bias of the second product ---------------------------------------------
// C [T, E] float32: what token t's output has of b2[e], the sum of its scores for e.
at::Tensor bias_shares(const ExpertsCall& call, const at::Tensor& scores) {
  const at::Tensor& experts = call.order.experts;
  const at::Tensor every = at::arange(call.order.n_experts(), experts.options());
  at::Tensor shares =
      at::zeros({experts.size(0), every.size(0)}, experts.options().dtype(at::kFloat));
  for (int64_t j = 0; j < call.order.top_k(); ++j) {
    const at::Tensor is_chosen = experts.narrow(1, j, 1).eq(every);
    const at::Tensor score =
        scores.defined() ? scores.narrow(1, j, 1) : at::ones({}, shares.options());
    shares.add_(at::where(is_chosen, score, 0));
  }
  return shares;
}

// [T, k]: <dO_t, b2[e]>
at::Tensor bias_scores_grad(const ExpertsCall& call, const at::Tensor& grad_out,
                            const at::Tensor& bias2) {
  const at::NoTF32Guard float32_stays_float32;
  const at::Tensor of_all = at::matmul(grad_out.to(at::kFloat), bias2.t());
  const at::Tensor experts = call.order.experts.to(at::kLong);
  const at::Tensor chosen = of_all.gather(1, experts.clamp(0, call.order.n_experts() - 1));
  return chosen.masked_fill(slots_in_groups(call.order).logical_not(), 0);
}

// ---- the function ---------------------------------------------------------------
struct FusedExperts : torch::autograd::Function<FusedExperts> {
  static at::Tensor forward(AutogradContext* ctx, const at::TensorList& inputs,
                            const LayerPtr& layer);
  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs);
};

// Of the inputs, an undefined tensor for what is not there.
at::Tensor input_of(const Layer& layer, const at::TensorList& inputs, Input which) {
  return layer.has(which) ? inputs[layer.position[which]] : at::Tensor();
}

// W13 is one weight, or w1 and w3 joined.
variable_list parts_of_w13(const at::Tensor& w1, const at::Tensor& w3) {
  return w3.defined() ? variable_list{w1, w3} : variable_list{w1};
}

// What of the inputs is kept for backward, by their place in the saved variables.
void save(AutogradContext* ctx, const Layer& layer, const at::TensorList& inputs) {
  variable_list saved(kInputs);
  const auto keep = [&](Input which) { saved[which] = input_of(layer, inputs, which); };
  const bool needs_hidden_grad = layer.needs_hidden_grad();
  if (layer.kept_needs_x() && !layer.kept->codes) keep(kX);
  if (layer.needs[kX]) keep(kGate), keep(kUp);
  if (needs_hidden_grad) keep(kDown);
  if (needs_hidden_grad || layer.needs[kDown]) keep(kBias13);
  if (needs_hidden_grad || layer.needs[kDown] || layer.needs[kBias2]) keep(kScores);
  if (layer.needs[kScores]) keep(kBias2);
  ctx->save_for_backward(std::move(saved));
}

// After its product in forward. Backward reads another form.
void drop_if_for_step(const CachedOperand& weight, const FormKey& key) {
  if (weight.is_for_step) weight.operand.drop(key);
}

at::Tensor FusedExperts::forward(AutogradContext* ctx, const at::TensorList& inputs,
                                 const LayerPtr& layer) {
  const PlainOps guard;
  const ExpertsCall& call = layer->call;
  const ExpertStages& stages = *layer->stages;
  const variable_list gate_up =
      parts_of_w13(input_of(*layer, inputs, kGate), input_of(*layer, inputs, kUp));
  const CachedOperand w13 = weights_for_forward(gate_up, layer->needs[kX]);
  const CachedOperand w2 =
      weight_for_forward(input_of(*layer, inputs, kDown), layer->needs_hidden_grad());
  // Said before the products, so that their pass over a weight makes these as well.
  if (layer->needs[kX] && w13.is_kept) {
    const Operand dH = layer->rows_to_come(2 * call.hidden, call.hidden_dtype);
    w13.operand.expect(right_key(layer->grad_input13(dH, w13.operand)));
  }
  if (layer->needs_hidden_grad() && w2.is_kept) {
    const Operand G = layer->rows_to_come(call.dim, call.x_dtype);
    w2.operand.expect(right_key(layer->grad_input2(G, w2.operand)));
  }

  layer->kept.emplace();
  const auto gate_up_product = [&]() -> at::Tensor {
    const FormKey key =
        left_key(layer->out13(layer->rows_to_come(call.dim, call.x_dtype), w13.operand));
    const Tokens x{input_of(*layer, inputs, kX), std::exchange(layer->codes, std::nullopt)};
    GatheredTokens tokens = stages.gather_tokens(call, x, {key}, layer->needs_gate_up());
    layer->kept->tokens = std::move(tokens.instead);
    if (layer->kept_needs_x()) layer->kept->codes = x.codes;
    const GemmProblem product = layer->out13(tokens.X, w13.operand);
    const at::Tensor H = low_precision_gemm(product);
    drop_if_for_step(w13, right_key(product));
    show_out_parts(*layer, tokens.X, gate_up, H);
    return H;
  };
  ActivationInputs hidden{.H = gate_up_product(),
                          .bias = input_of(*layer, inputs, kBias13),
                          .scores = input_of(*layer, inputs, kScores)};
  if (layer->needs_hidden_grad() || layer->needs[kDown]) {
    layer->kept->H = KeptHidden(hidden.H, call.saved_hidden);
  }
  const auto down_product = [&]() -> at::Tensor {
    const FormKey key =
        left_key(layer->out2(layer->rows_to_come(call.hidden, call.hidden_dtype), w2.operand));
    const Operand A = stages.activate(call, hidden, {key});
    hidden.H.reset();
    const GemmProblem product = layer->out2(A, w2.operand);
    const at::Tensor Y = low_precision_gemm(product);
    drop_if_for_step(w2, right_key(product));
    return Y;
  };
  const at::Tensor Y = down_product(), bias2 = input_of(*layer, inputs, kBias2);
  const at::Tensor scores = call.placement == ScorePlacement::OUTPUT ? hidden.scores : at::Tensor();
  const auto send_result = std::exchange(layer->send_result, nullptr);
  const at::Tensor out = send_result ? send_result([&](int64_t first, const at::Tensor& rows) {
    stages.combine_into(call, Y, scores, bias2, first, rows);
  })
                                     : stages.combine(call, Y, scores, bias2);
  save(ctx, *layer, inputs);
  ctx->saved_data["layer"] = c10::IValue::make_capsule(layer);
  return out;
}

/// The backward of one call.
class Backward {
 public:
  Backward(AutogradContext* ctx, Layer& layer, at::Tensor grad_out)
      : layer_(layer),
        call_(layer.call),
        stages_(*layer.stages),
        saved_(ctx->get_saved_variables()),
        kept_(take_kept(layer)),
        grad_out_(std::move(grad_out)),
        scores_(saved_[kScores]),
        grads_(kInputs) {
    for (int i = 0; i < kInputs; ++i) {
      needs_[i] = layer.position[i] >= 0 && ctx->needs_input_grad(layer.position[i]);
    }
  }

  /// By Input; undefined where no gradient is wanted.
  variable_list run() {
    if (needs_[kBias2]) grads_[kBias2] = bias2_grad();
    if (needs_dA() || needs_[kDown]) backward_of_down();
    if (needs_[kScores] && saved_[kBias2].defined() && weighs_outputs()) {
      grads_[kScores].add_(bias_scores_grad(call_, grad_out_, saved_[kBias2]));
    }
    if (dH_) backward_of_gate_up();
    return std::move(grads_);
  }

 private:
  static Layer::Kept take_kept(Layer& layer) {
    MOE8_CHECK(layer.kept, "moe_experts", "backward", "expected a graph that was not freed, got a ",
               "second backward. Ask the first one to keep it (retain_graph)");
    Layer::Kept kept = *layer.kept;
    if (!torch::autograd::get_current_graph_task_keep_graph()) layer.kept.reset();
    return kept;
  }

  bool needs_gate_up() const { return needs_[kGate] || needs_[kUp]; }
  bool needs_dH() const { return needs_[kX] || needs_gate_up(); }
  bool needs_dA() const { return needs_dH() || needs_[kBias13] || needs_[kScores]; }
  bool weighs_outputs() const {
    return scores_.defined() && call_.placement == ScorePlacement::OUTPUT;
  }

  at::Tensor bias2_grad() const {
    const at::NoTF32Guard float32_stays_float32;
    const at::Tensor shares = bias_shares(call_, weighs_outputs() ? scores_ : at::Tensor());
    return at::matmul(shares.t(), grad_out_.to(at::kFloat));
  }

  // From dO to the activation's gradients, and the gradient of W2. What has been read goes at once:
  // here a step needs the most memory.
  void backward_of_down() {
    const Operand G_to_come = layer_.rows_to_come(call_.dim, call_.x_dtype);
    const Operand A_to_come = layer_.rows_to_come(call_.hidden, call_.hidden_dtype);
    std::optional<Operand> w2;
    std::vector<FormKey> G_keys;
    if (needs_dA()) {
      w2 = weight_for_backward(saved_[kDown]);
      G_keys.push_back(left_key(layer_.grad_input2(G_to_come, *w2)));
    }
    const GemmProblem of_weight = layer_.grad_weight2(G_to_come, A_to_come);
    if (needs_[kDown]) G_keys.push_back(left_key(of_weight));
    const Operand G = stages_.gather_grads(call_, grad_out_, G_keys);

    ActivationWants wants{.scores = needs_[kScores], .bias = needs_[kBias13]};
    if (needs_dH()) wants.dH = dH_keys();
    if (needs_[kDown]) wants.A.push_back(right_key(of_weight));
    at::Tensor dA;
    if (w2) {
      dA = low_precision_gemm(layer_.grad_input2(G, *w2));
      w2.reset();
      G.drop(G_keys.front());
    }
    ActivationGrads act =
        stages_.activate_backward(call_, {kept_.H.take(), saved_[kBias13], scores_}, dA, wants);
    dA.reset();
    grads_[kScores] = std::move(act.scores);
    grads_[kBias13] = std::move(act.bias);
    dH_ = std::move(act.dH);
    if (!needs_[kDown]) return;
    grads_[kDown] = weight_gradient(layer_.grad_weight2(G, *act.A), layer_.sums[kDown]);
    if (saved_[kDown].defined()) note_weight_gradient(saved_[kDown]);
  }

  // The forms of dH that the products after it will read.
  std::vector<FormKey> dH_keys() {
    std::vector<FormKey> keys;
    const Operand dH = layer_.rows_to_come(2 * call_.hidden, call_.hidden_dtype);
    if (needs_[kX]) {
      w13_ = weights_for_backward(parts_of_w13(saved_[kGate], saved_[kUp]));
      keys.push_back(left_key(layer_.grad_input13(dH, *w13_)));
    }
    if (needs_gate_up()) keys.push_back(left_key(weight_problem_to_come(kGate)));
    return keys;
  }
  GemmProblem weight_problem_to_come(Input input) const {
    const int64_t columns = layer_.has_separate_gate_up() ? call_.hidden : 2 * call_.hidden;
    return layer_.grad_weight13(layer_.rows_to_come(columns, call_.hidden_dtype),
                                layer_.rows_to_come(call_.dim, call_.x_dtype), input);
  }

  // The weights' products first: they have the fewest tiles, and the product after them fills the
  // multiprocessors that their last, partial wave leaves idle. Where the gradient of x has to travel
  // it comes first.
  void backward_of_gate_up() {
    const bool sends = needs_[kX] && layer_.send_x_grad;
    if (sends) {
      grads_[kX] = stages_.combine(call_, grad_rows(/*is_last=*/false), {}, {});
      layer_.send_x_grad(grads_[kX]);
    }
    if (needs_gate_up()) backward_of_gate_up_weights();
    if (needs_[kX] && !sends) {
      grads_[kX] = stages_.combine(call_, grad_rows(/*is_last=*/true), {}, {});
    }
  }

  void backward_of_gate_up_weights() {
    const GemmProblem to_come = weight_problem_to_come(kGate);
    const SavedTokens saved{{saved_[kX], std::move(kept_.codes)}, std::move(kept_.tokens)};
    const Operand X = stages_.gather_saved(call_, saved, {right_key(to_come)});
    for (const Input input : {kGate, kUp}) {
      if (needs_[input]) grads_[input] = gate_up_grad(input, X);
    }
    if (saved_[kGate].defined()) {
      note_weight_gradients(parts_of_w13(saved_[kGate], saved_[kUp]));
    }
    dH_->drop(left_key(to_come));
  }

  // dX. `is_last`: of the products that read dH.
  at::Tensor grad_rows(bool is_last) {
    GemmProblem for_input = layer_.grad_input13(*dH_, *w13_);
    for_input.follows_unrelated = is_last && needs_gate_up();
    const at::Tensor dX = low_precision_gemm(for_input);
    show_grad_input(layer_, for_input, dX);
    dH_->drop(left_key(for_input));
    if (is_last) dH_.reset();
    return dX;
  }

  at::Tensor gate_up_grad(Input input, const Operand& X) const {
    const FormKey key = left_key(weight_problem_to_come(input));
    const int64_t h = call_.hidden;
    const Operand left = layer_.has_separate_gate_up()
                             ? dH_->columns((input - kGate) * h, h, key, call_.groups)
                             : *dH_;
    return weight_gradient(layer_.grad_weight13(left, X, input), layer_.sums[input]);
  }

  const Layer& layer_;
  const ExpertsCall& call_;
  const ExpertStages& stages_;
  const variable_list saved_;
  Layer::Kept kept_;
  const at::Tensor grad_out_;
  const at::Tensor scores_;
  std::array<bool, kInputs> needs_{};
  std::optional<Operand> w13_, dH_;
  variable_list grads_;
};

variable_list FusedExperts::backward(AutogradContext* ctx, variable_list grad_outputs) {
  const auto layer =
      c10::static_intrusive_pointer_cast<Layer>(ctx->saved_data["layer"].toCapsule());
  if (any_unjudged()) judge_after_this_backward();
  variable_list grads;
  for (int i = 0; i < kInputs; ++i) {
    if (layer->position[i] >= 0) grads.emplace_back();
  }
  if (grad_outputs[0].defined()) {
    check_dense("backward", "gradient of the output", grad_outputs[0]);
    const PlainOps guard;
    const at::Tensor grad_out = written_out(grad_outputs[0]).contiguous();
    const variable_list by_input = Backward(ctx, *layer, grad_out).run();
    for (int i = 0; i < kInputs; ++i) {
      if (layer->position[i] >= 0) grads[layer->position[i]] = by_input[i];
    }
  }
  if (at::GradMode::is_enabled()) forbid_double_backward(grads, kExpertsOnce);
  grads.emplace_back();  // of the layer
  return grads;
}

bool is_low_precision(const TrainingFormats& formats) {
  const GemmFormats high{};
  return formats.out != high || formats.grad_input != high || formats.grad_weight != high;
}

}  // namespace

at::Tensor fused_experts(ExpertsCall call, const ExpertsTensors& tensors) {
  const std::array<at::Tensor, kInputs> all{
      tensors.x, tensors.w1, tensors.w3, tensors.w2, tensors.bias13, tensors.bias2, tensors.scores};
  call.order.counts = at::Tensor();  // nobody asks for them any more
  const bool is_gate_up_low = is_low_precision(call.gate_up);
  const bool is_down_low = is_low_precision(call.down);
  call.is_observed = numerics_observed() && (is_gate_up_low || is_down_low);
  auto layer = c10::make_intrusive<Layer>(std::move(call), tensors);
  layer->stages = &choose_expert_stages(layer->call);
  variable_list inputs;
  for (int i = 0; i < kInputs; ++i) {
    const at::Tensor& tensor = all[i];
    layer->position[i] = tensor.defined() ? static_cast<int>(inputs.size()) : -1;
    if (!tensor.defined()) continue;
    inputs.push_back(tensor);
    layer->needs[i] = at::GradMode::is_enabled() && tensor.requires_grad();
    layer->dtypes[i] = tensor.scalar_type();
  }
  for (const Input weight : {kGate, kUp, kDown}) {
    if (!layer->has(weight)) continue;
    const bool is_low = weight == kDown ? is_down_low : is_gate_up_low;
    if (layer->call.is_observed && is_low) layer->weights[weight] = weight_id(all[weight]);
    note_use(all[weight]);
    if (layer->needs[weight]) layer->sums[weight] = gradient_sum_of(all[weight]);
  }
  return FusedExperts::apply(at::TensorList(inputs), layer);
}

}  // namespace moe8
