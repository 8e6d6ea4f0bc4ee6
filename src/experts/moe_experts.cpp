// SPDX-License-Identifier: BSD-3-Clause
// moe_experts: checks of the arguments, which configs hold, and the list of implementations.
#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/promote_types.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <utility>
#include <variant>

#include "base/check.h"
#include "base/log.h"
#include "base/plain_text.h"
#include "device/implementation.h"
#include "experts/implementations.h"
#include "moe8/experts.h"
#include "quantize/check_input.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

// ---- autocast -----------------------------------------------------------------
// The tensors of a call as they came, or as autocast wants them.
struct Arguments {
  at::Tensor x, w1, w3, w2, b1, b3, b2;

  void cast(at::ScalarType dtype, at::DeviceType device) {
    for (at::Tensor* t : {&x, &w1, &w3, &w2, &b1, &b3, &b2}) {
      if (t->defined()) *t = at::autocast::cached_cast(dtype, *t, device);
    }
  }
};

// ---- checks ---------------------------------------------------------------------
void check_weight(const char* argument, const at::Tensor& w, at::IntArrayRef sizes,
                  const char* meaning, const at::Device& device) {
  check_dtype(kMoeExperts, argument, w);
  MOE8_CHECK(w.sizes() == sizes && w.device() == device, kMoeExperts, argument, "expected ", sizes,
             " on ", device, ", ", meaning, ", got ", describe(w),
             ". Weights stored as (E, in, out) are passed as W.transpose(-2, -1)");
}

void check_bias(const char* argument, const at::Tensor& b, int64_t E, int64_t width,
                const at::Device& device) {
  if (!b.defined()) return;
  check_dense(kMoeExperts, argument, b);
  MOE8_CHECK(b.dim() == 2 && b.size(0) == E && b.size(1) == width && b.device() == device &&
                 at::isFloatingType(b.scalar_type()),
             kMoeExperts, argument, "expected floating-point [", E, ", ", width,
             "], a row for each expert, on ", device, ", got ", describe(b));
}

void check_tensors(const Arguments& a) {
  check_dtype(kMoeExperts, "x", a.x);
  check_device_supported(kMoeExperts, "x", a.x);
  MOE8_CHECK(a.x.dim() == 2, kMoeExperts, "x", "expected [T, d], got ", describe(a.x),
             ". Flatten what comes before the last axis");
  const int64_t d = a.x.size(1);
  check_dtype(kMoeExperts, "w1", a.w1);
  const bool is_joined = !a.w3.defined();
  MOE8_CHECK(a.w1.dim() == 3 && a.w1.size(0) >= 1 && a.w1.size(2) == d &&
                 a.w1.device() == a.x.device() && (!is_joined || a.w1.size(1) % 2 == 0),
             kMoeExperts, "w1", "expected [E, ", is_joined ? "2h" : "h", ", ", d, "] on ",
             a.x.device(), " to fit x of ", a.x.sizes(), ", got ", describe(a.w1),
             ". Weights stored as (E, in, out) are passed as W.transpose(-2, -1)");
  const int64_t E = a.w1.size(0), h = is_joined ? a.w1.size(1) / 2 : a.w1.size(1);
  if (!is_joined) check_weight("w3", a.w3, {E, h, d}, "as w1", a.x.device());
  check_weight("w2", a.w2, {E, d, h}, "to fit w1", a.x.device());
  check_bias("options.b1", a.b1, E, a.w1.size(1), a.x.device());
  MOE8_CHECK(!is_joined || !a.b3.defined(), kMoeExperts, "options.b3",
             "expected no tensor where w3 is undefined, got ", describe(a.b3),
             ". b1 holds both, as w1 does");
  check_bias("options.b3", a.b3, E, h, a.x.device());
  check_bias("options.b2", a.b2, E, d, a.x.device());
}

// `is_whole`: each slot must have a row, as expert_order() makes them.
void check_order(const ExpertOrder& order, const Arguments& a, bool is_whole) {
  const int64_t T = a.x.size(0), E = a.w1.size(0);
  MOE8_CHECK(order.experts.defined() && order.slot_of_row.defined() &&
                 order.row_of_slot.defined() && order.offs.defined(),
             kMoeExperts, "order", "expected what expert_order() made, got undefined tensors");
  MOE8_CHECK(
      order.experts.dim() == 2 && order.tokens() == T && order.experts.device() == a.x.device(),
      kMoeExperts, "experts", "expected [", T, ", k] on ", a.x.device(), " to fit x of ",
      a.x.sizes(), ", got ", describe(order.experts));
  MOE8_CHECK(order.n_experts() == E && (!is_whole || order.rows() == order.experts.numel()),
             kMoeExperts, "order", "expected that of ", E, " experts, as w1 has them, and ",
             order.experts.numel(), " rows, got ", order.n_experts(), " and ", order.rows());
}

void check_scores(const at::Tensor& scores, const ExpertOrder& order) {
  if (!scores.defined()) return;
  check_dense(kMoeExperts, "scores", scores);
  MOE8_CHECK(scores.sizes() == order.experts.sizes() && scores.device() == order.experts.device() &&
                 at::isFloatingType(scores.scalar_type()),
             kMoeExperts, "scores", "expected floating-point ", order.experts.sizes(), " on ",
             order.experts.device(), " as experts, got ", describe(scores));
}

void check_adapter(const char* argument, const ExpertAdapter& adapter, const at::Tensor& w,
                   bool is_joined) {
  const auto& [a, b] = adapter;
  if (!a.defined() && !b.defined()) return;
  MOE8_CHECK(!is_joined, kMoeExperts, argument, "expected none where w1 is gate and up");
  const bool fits = a.defined() && b.defined() && a.dim() == 3 && b.dim() == 3 &&
                    a.size(0) == w.size(0) && b.size(0) == w.size(0) && a.size(2) == w.size(2) &&
                    b.size(1) == w.size(1) && a.size(1) == b.size(2) && a.size(1) >= 1 &&
                    a.device() == w.device() && b.device() == w.device();
  MOE8_CHECK(fits, kMoeExperts, argument, "expected a [", w.size(0), ", r, ", w.size(2),
             "] and b [", w.size(0), ", ", w.size(1), ", r] on ", w.device(), ", got ", describe(a),
             " and ", describe(b));
}

void check_adapters(const ExpertsOptions& o, const Arguments& a) {
  const bool is_joined = !a.w3.defined();
  check_adapter("options.adapter1", o.adapter1, a.w1, is_joined);
  check_adapter("options.adapter3", o.adapter3, is_joined ? a.w1 : a.w3, is_joined);
  check_adapter("options.adapter2", o.adapter2, a.w2, is_joined);
}

template <typename Enum>
void check_enumerator(const char* field, Enum value, Enum last) {
  MOE8_CHECK(static_cast<int>(value) >= 0 && value <= last, kMoeExperts, field,
             "expected an enumerator, got ", static_cast<int>(value));
}

void check_options(const ExpertsOptions& o) {
  check_enumerator("options.gate_up", o.gate_up, GateUpLayout::INTERLEAVED);
  check_enumerator("options.activation", o.activation, Activation::CLAMPED_SWIGLU);
  check_enumerator("options.scores", o.scores, ScorePlacement::INPUT);
  check_enumerator("options.column_codes", o.column_codes, ColumnCodes::FROM_ROW_CODES);
  check_enumerator("options.saved_hidden", o.saved_hidden, SavedHidden::FLOAT8);
  check_enumerator("options.implementation", o.implementation, ExpertsImplementation::UNFUSED);
  MOE8_CHECK(std::isfinite(o.alpha), kMoeExperts, "options.alpha", "expected a finite number, got ",
             o.alpha);
  MOE8_CHECK(std::isfinite(o.limit) && o.limit > 0, kMoeExperts, "options.limit",
             "expected a finite number above 0, got ", o.limit);
  if (!o.config) return;
  MOE8_CHECK(is_grouped(*o.config), kMoeExperts, "options.config",
             "expected an FP8GroupedMMConfig or MXFP8GroupedMMConfig, got ", to_string(*o.config));
  validate(*o.config);
}

// ---- configs ----------------------------------------------------------------------
std::optional<Config> config_for(const char* argument, const at::Tensor& w, const at::Tensor& x,
                                 const ExpertsOptions& options) {
  if (options.config) return options.config;
  if (const std::optional<Tagged> tagged = find_tag(w)) return *tagged->config;
  MOE8_CHECK(w.scalar_type() == x.scalar_type(), kMoeExperts, argument, "expected ",
             x.scalar_type(), " as x, got ", describe(w),
             ". Only converted weights may have another dtype");
  return std::nullopt;
}

TrainingFormats formats_for(const std::optional<Config>& config) {
  return config ? training_formats(*config) : TrainingFormats{};
}

// b13 [E, 2h] float32, or undefined.
at::Tensor joined_bias(const Arguments& a) {
  if (!a.w3.defined()) return a.b1.defined() ? a.b1.to(at::kFloat) : at::Tensor();
  if (!a.b1.defined() && !a.b3.defined()) return {};
  const auto half = [&](const at::Tensor& b) {
    if (b.defined()) return b.to(at::kFloat);
    return at::zeros({a.w1.size(0), a.w1.size(1)}, a.x.options().dtype(at::kFloat));
  };
  return at::cat({half(a.b1), half(a.b3)}, 1);
}

ColumnCodes chosen_column_codes(ColumnCodes asked, const at::Device& device) {
  if (asked != ColumnCodes::AUTO) return asked;
  const bool has_kernels = device.is_cuda() && !kernels_refusal(device);
  return has_kernels ? ColumnCodes::FROM_ROW_CODES : ColumnCodes::FROM_VALUES;
}

ExpertsRequest request_of(const Arguments& a, const ExpertOrder& order, const at::Tensor& scores,
                          const ExpertsOptions& o) {
  const std::optional<Config> gate = config_for("w1", a.w1, a.x, o);
  const std::optional<Config> up = a.w3.defined() ? config_for("w3", a.w3, a.x, o) : gate;
  const std::optional<Config> down = config_for("w2", a.w2, a.x, o);
  const at::ScalarType dtype = a.x.scalar_type();
  const auto out_dtype = [&](const std::optional<Config>& config, at::ScalarType input) {
    return config ? out_dtype_of(*config, input) : dtype;
  };
  const at::ScalarType hidden_dtype =
      at::promote_types(out_dtype(gate, dtype), out_dtype(up, dtype));
  ExpertsCall call{.order = order,
                   .groups = TokenGroups(order.offs),
                   .device = a.x.device(),
                   .dim = a.x.size(1),
                   .hidden = a.w2.size(2),
                   .layout = a.w3.defined() ? GateUpLayout::HALVES : o.gate_up,
                   .activation = o.activation,
                   .alpha = o.alpha,
                   .limit = o.limit,
                   .placement = o.scores,
                   .column_codes = chosen_column_codes(o.column_codes, a.x.device()),
                   .saved_hidden = o.saved_hidden,
                   .gate_up = formats_for(gate),
                   .down = formats_for(down),
                   .x_dtype = dtype,
                   .hidden_dtype = hidden_dtype,
                   .row_dtype = out_dtype(down, hidden_dtype)};
  ExpertsTensors tensors{.x = a.x,
                         .w1 = a.w1,
                         .w3 = a.w3,
                         .w2 = a.w2,
                         .bias13 = joined_bias(a),
                         .bias2 = a.b2.defined() ? a.b2.to(at::kFloat) : a.b2,
                         .scores = scores.defined() ? scores.to(at::kFloat) : scores};
  return {std::move(call), std::move(tensors), o.column_codes, o.config.has_value(), gate, up, down,
          o.adapter1,      o.adapter3,         o.adapter2,     o.adapter_scale};
}

// ---- what FUSED refuses ---------------------------------------------------------------
// Why the weight's products are left to the hooks, or LibTorch.
std::optional<std::string> weight_refusal(const char* argument, const at::Tensor& w,
                                          bool has_own_config) {
  if (!w.defined() || has_own_config) return std::nullopt;
  if (const std::optional<Lost> lost = find_lost(w)) return concat(argument, ": ", lost->why);
  const std::optional<Tagged> tagged = find_tag(w);
  if (!tagged) return std::nullopt;
  const bool contracts_rows = tagged->axes[2] || w.size(2) <= 1;
  const bool is_batch = !tagged->axes[0] || w.size(0) <= 1;
  if (contracts_rows && is_batch) return std::nullopt;
  return concat(argument, " was made of converted weights in a way that leaves no whole rows");
}

bool is_tensorwise(const OperandFormat& format) {
  const auto* f = std::get_if<Float8Format>(&format);
  return f && f->granularity == ScalingGranularity::TENSORWISE;
}

bool is_tensorwise(const GemmFormats& f) {
  return is_tensorwise(f.left) || is_tensorwise(f.right);
}

bool is_tensorwise(const TrainingFormats& f) {
  return is_tensorwise(f.out) || is_tensorwise(f.grad_input) || is_tensorwise(f.grad_weight);
}

}  // namespace

std::optional<std::string> fused_refusal(const ExpertsRequest& r) {
  const ExpertsTensors& t = r.tensors;
  for (const auto& [argument, w] : {std::pair{"w1", t.w1}, {"w3", t.w3}, {"w2", t.w2}}) {
    if (auto refusal = weight_refusal(argument, w, r.has_own_config)) return refusal;
  }
  for (const ExpertAdapter& adapter : {r.adapter1, r.adapter3, r.adapter2}) {
    if (adapter.a.defined()) return "weights of low rank stand beside its own";
  }
  if (r.gate != r.up) return "w1 and w3 have different configs";
  if (t.w3.defined() && t.w1.scalar_type() != t.w3.scalar_type()) {
    return "w1 and w3 have different dtypes";
  }
  if (is_tensorwise(r.call.gate_up) || is_tensorwise(r.call.down)) {
    return "gate and up would share the one scale of a whole tensor";
  }
  std::string reasons;
  for (const ExpertStages* stages : expert_stages()) {
    const std::optional<std::string> refusal = stages->refusal(r.call);
    if (!refusal) return std::nullopt;
    reasons += concat(reasons.empty() ? "" : "; ", "stages '", stages->name(), "': ", *refusal);
  }
  return reasons;
}

at::Tensor run_fused(const ExpertsRequest& request) {
  return fused_experts(request.call, request.tensors);
}

const std::vector<ExpertsImplementationEntry>& experts_implementations() {
  static const std::vector<ExpertsImplementationEntry> list = {
      {"fused", ExpertsImplementation::FUSED, &fused_refusal, &run_fused},
      {"unfused", ExpertsImplementation::UNFUSED, &unfused_refusal, &run_unfused},
  };
  return list;
}

namespace {

// The values of codes, to autograd x itself.
struct ValuesOfCodes : torch::autograd::Function<ValuesOfCodes> {
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor&,
                            const at::Tensor& values) {
    return values;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list grads) {
    return {grads[0], {}};
  }
};

// Operations of LibTorch know no codes.
ExpertsRequest with_values(ExpertsRequest request) {
  ExpertsTensors& t = request.tensors;
  if (t.codes) t.x = ValuesOfCodes::apply(t.x, t.codes->values());
  t.codes.reset();
  return request;
}

at::Tensor run_first(const ExpertsRequest& request, ExpertsImplementation wanted) {
  std::string refusals;
  for (const ExpertsImplementationEntry& entry : experts_implementations()) {
    if (wanted != ExpertsImplementation::AUTO && wanted != entry.which) continue;
    const std::optional<std::string> refusal = entry.refusal(request);
    if (!refusal) {
      if (logs_dispatch()) {
        log_dispatch(concat(request.call.describe(), "\n  -> ", entry.name, refusals));
      }
      const bool takes_codes = entry.which == ExpertsImplementation::FUSED;
      return entry.run(takes_codes ? request : with_values(request));
    }
    refusals += concat("\n  not ", entry.name, ": ", *refusal);
  }
  fail(kMoeExperts, "options",
       concat("expected a call that can be computed, got ", request.call.describe(), refusals));
}

void check_call(const Arguments& a, const ExpertOrder& order, bool is_whole,
                const at::Tensor& scores, const ExpertsOptions& options) {
  check_options(options);
  check_tensors(a);
  check_order(order, a, is_whole);
  check_scores(scores, order);
  check_adapters(options, a);
}

}  // namespace

at::Tensor moe_experts_of(const ArrivedTokens& tokens, const at::Tensor& w1, const at::Tensor& w3,
                          const at::Tensor& w2, const ExpertsOptions& options) {
  const Arguments a{tokens.x, w1, w3, w2, options.b1, options.b3, options.b2};
  check_call(a, tokens.order, /*is_whole=*/false, tokens.scores, options);
  ExpertsRequest request = request_of(a, tokens.order, tokens.scores, options);
  request.tensors.codes = tokens.codes;
  request.tensors.send_x_grad = tokens.send_x_grad;
  request.tensors.send_result = tokens.send_result;
  return run_first(request, options.implementation);
}

at::Tensor moe_experts(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w3,
                       const at::Tensor& w2, const ExpertOrder& order, const at::Tensor& scores,
                       const ExpertsOptions& options) {
  Arguments a{x, w1, w3, w2, options.b1, options.b3, options.b2};
  std::optional<c10::impl::ExcludeDispatchKeyGuard> no_autocast;
  const bool has_autocast = x.defined() && (x.is_cpu() || x.is_cuda());
  if (has_autocast && at::autocast::is_autocast_enabled(x.device().type())) {
    const at::DeviceType device = x.device().type();
    no_autocast.emplace(at::autocast::get_autocast_dispatch_key_from_device_type(device));
    a.cast(at::autocast::get_autocast_dtype(device), device);
  }
  check_call(a, order, /*is_whole=*/true, scores, options);
  return run_first(request_of(a, order, scores, options), options.implementation);
}

at::Tensor moe_experts(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w3,
                       const at::Tensor& w2, const at::Tensor& experts, const at::Tensor& scores,
                       const ExpertsOptions& options) {
  check_dtype(kMoeExperts, "w1", w1);
  MOE8_CHECK(w1.dim() == 3 && w1.size(0) >= 1, kMoeExperts, "w1", "expected [E, h, d], got ",
             describe(w1));
  return moe_experts(x, w1, w3, w2, expert_order(experts, w1.size(0)), scores, options);
}

}  // namespace moe8
