// SPDX-License-Identifier: BSD-3-Clause
// Which tensors a step reads and writes; engines (optim/engine.h) and Muon (optim/muon.h) compute.
#include "moe8/optimizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "device/implementation.h"
#include "optim/engine.h"
#include "optim/muon.h"
#include "weights/gradient_sums.h"

namespace moe8 {
namespace {

constexpr const char* kOptimizer = "optimizer";
constexpr int64_t kSumsAtOnce = int64_t{1} << 28;  // elements whose gradients are held twice

using Tensors = std::vector<at::Tensor>;

void check(const OptimizedParameter& parameter, const c10::Device& device) {
  const at::Tensor& x = parameter.tensor;
  MOE8_CHECK(x.defined(), kOptimizer, parameter.name, "expected a tensor, got none");
  MOE8_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, kOptimizer,
             parameter.name, "expected float32 or bfloat16, got ", x.scalar_type());
  MOE8_CHECK(x.is_contiguous(), kOptimizer, parameter.name,
             "expected a contiguous tensor, got strides ", x.strides());
  MOE8_CHECK(x.device() == device, kOptimizer, parameter.name, "expected all parameters on ",
             device, ", got ", x.device());
  MOE8_CHECK(parameter.rule != UpdateRule::MUON || x.dim() >= 2, kOptimizer, parameter.name,
             "expected a matrix or a stack of them for Muon, got ", x.sizes());
}

// As kernels read it.
at::Tensor plain(const at::Tensor& grad, const std::string& name) {
  MOE8_CHECK(grad.layout() == at::kStrided, kOptimizer, name, "expected a dense gradient, got ",
             grad.layout());
  return grad.contiguous();
}

// Powers are multiplied step by step, as begin_step() does.
AdamWClock clock_at(int64_t steps, const AdamWRule& rule, uint64_t key_offset) {
  AdamWClock clock;
  clock.key_offset = key_offset;
  for (; clock.steps < steps; ++clock.steps) {
    clock.beta1_power *= rule.beta1;
    clock.beta2_power *= rule.beta2;
  }
  return clock;
}

}  // namespace

std::unique_ptr<OptimEngine> make_optim_engine(const c10::Device& device, size_t parameters) {
  switch (implementation_on(device)) {
    case Implementation::CPU_KERNELS:
      return make_cpu_optim_engine(parameters);
    case Implementation::CUDA_KERNELS:
      return make_cuda_optim_engine(device, parameters);
    case Implementation::OPERATIONS:
      break;
  }
  return make_composite_optim_engine(parameters);
}

struct Optimizer::State {
  std::vector<OptimizedParameter> parameters;
  OptimizerOptions options;
  AdamWRule rule;
  Tensors stepped;
  Tensors first, second;  // undefined until the first gradient; Muon has the first alone
  at::Tensor norm;        // of clip_gradients(), for the next step
  std::unique_ptr<OptimEngine> engine;
  std::vector<SummedWeight> summed;  // with sums_in_products: of what has masters

  size_t number(size_t i) const;  // of the clock
  std::vector<AdamWClock> new_clocks() const;
  bool has_master(size_t i) const { return !stepped[i].is_same(parameters[i].tensor); }
  bool is_muon(size_t i) const { return parameters[i].rule == UpdateRule::MUON; }
  at::Tensor make_moment(size_t i) const;
  void take_gradients();
  void add_up(const std::vector<size_t>& which);
  void step_adamw();
  void step_muon();
};

size_t Optimizer::State::number(size_t i) const {
  return parameters[i].number < 0 ? i : static_cast<size_t>(parameters[i].number);
}

std::vector<AdamWClock> Optimizer::State::new_clocks() const {
  size_t count = 0;
  for (size_t i = 0; i < parameters.size(); ++i) count = std::max(count, number(i) + 1);
  std::vector<AdamWClock> clocks(count);
  for (size_t i = 0; i < parameters.size(); ++i) {
    clocks[number(i)].key_offset = rounding_offset(parameters[i].first_element);
  }
  return clocks;
}

at::Tensor Optimizer::State::make_moment(size_t i) const {
  at::ScalarType dtype = stepped[i].scalar_type();
  if (options.moments == MomentDtype::FLOAT32) dtype = at::kFloat;
  if (options.moments == MomentDtype::BF16) dtype = at::kBFloat16;
  return at::zeros(stepped[i].sizes(), stepped[i].options().dtype(dtype).requires_grad(false));
}

// The gradients of parameters with masters become those of the masters.
void Optimizer::State::take_gradients() {
  for (SummedWeight& sum : summed) {
    if (sum.take_newer()) norm.reset();
  }
  std::vector<size_t> second_ones;
  int64_t elements = 0;
  for (size_t i = 0; i < stepped.size(); ++i) {
    if (!has_master(i) || !parameters[i].tensor.grad().defined()) continue;
    norm.reset();
    if (!stepped[i].grad().defined()) {
      stepped[i].mutable_grad() = std::move(parameters[i].tensor.mutable_grad());
      parameters[i].tensor.mutable_grad().reset();
      continue;
    }
    second_ones.push_back(i);
    elements += stepped[i].numel();
    if (elements < kSumsAtOnce) continue;
    add_up(second_ones);
    second_ones.clear();
    elements = 0;
  }
  if (!second_ones.empty()) add_up(second_ones);
}

void Optimizer::State::add_up(const std::vector<size_t>& which) {
  Tensors sums, grads, results;
  for (const size_t i : which) {
    sums.push_back(plain(stepped[i].grad(), parameters[i].name));
    grads.push_back(plain(parameters[i].tensor.grad(), parameters[i].name));
    const bool in_place = sums.back().scalar_type() == at::kFloat;
    results.push_back(in_place
                          ? sums.back()
                          : at::empty_like(sums.back(), sums.back().options().dtype(at::kFloat)));
  }
  engine->add(sums, grads, results);
  for (size_t at = 0; at < which.size(); ++at) {
    stepped[which[at]].mutable_grad() = results[at];
    parameters[which[at]].tensor.mutable_grad().reset();
  }
}

void Optimizer::State::step_adamw() {
  std::vector<AdamWItem> items;
  for (size_t i = 0; i < stepped.size(); ++i) {
    if (is_muon(i) || !stepped[i].grad().defined()) continue;
    if (!first[i].defined()) first[i] = make_moment(i);
    if (!second[i].defined()) second[i] = make_moment(i);
    items.push_back({number(i), plain(stepped[i].grad(), parameters[i].name), stepped[i],
                     has_master(i) ? parameters[i].tensor : at::Tensor(), first[i], second[i],
                     parameters[i].weight_decay});
  }
  if (!items.empty()) engine->adamw(rule, items, norm);
}

void Optimizer::State::step_muon() {
  std::vector<MuonItem> items;
  for (size_t i = 0; i < stepped.size(); ++i) {
    if (!is_muon(i) || !stepped[i].grad().defined()) continue;
    if (!first[i].defined()) first[i] = make_moment(i);
    items.push_back({plain(stepped[i].grad(), parameters[i].name), stepped[i],
                     has_master(i) ? parameters[i].tensor : at::Tensor(), first[i],
                     parameters[i].weight_decay});
  }
  muon_step(*engine, {static_cast<float>(options.momentum), rule.max_norm}, items, norm);
}

Optimizer::Optimizer(std::vector<OptimizedParameter> parameters, const OptimizerOptions& options)
    : state_(std::make_unique<State>()) {
  const at::NoGradGuard no_grad;
  MOE8_CHECK(!parameters.empty(), kOptimizer, "parameters", "expected at least one, got none");
  State& s = *state_;
  s.options = options;
  const double largest =
      options.max_grad_norm > 0 ? options.max_grad_norm : std::numeric_limits<double>::infinity();
  s.rule = AdamWRule::of(options.beta1, options.beta2, options.eps, largest);
  for (const OptimizedParameter& parameter : parameters) {
    const at::Tensor& x = parameter.tensor;
    check(parameter, parameters.front().tensor.device());
    const bool has_master = options.masters && x.scalar_type() == at::kBFloat16;
    s.stepped.push_back(
        has_master ? x.detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true) : x);
  }
  s.parameters = std::move(parameters);
  for (size_t i = 0; options.sums_in_products && i < s.stepped.size(); ++i) {
    if (s.has_master(i)) s.summed.emplace_back(s.parameters[i].tensor, s.stepped[i]);
  }
  s.first.resize(s.stepped.size());
  s.second.resize(s.stepped.size());
  const std::vector<AdamWClock> clocks = s.new_clocks();
  s.engine = make_optim_engine(s.stepped.front().device(), clocks.size());
  s.engine->set_clocks(clocks);
}

Optimizer::~Optimizer() = default;
Optimizer::Optimizer(Optimizer&&) noexcept = default;
Optimizer& Optimizer::operator=(Optimizer&&) noexcept = default;

void Optimizer::accumulate() {
  const at::NoGradGuard no_grad;
  state_->take_gradients();
}

at::Tensor Optimizer::clip_gradients() {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  s.take_gradients();
  Tensors grads;
  for (size_t i = 0; i < s.stepped.size(); ++i) {
    const at::Tensor& grad = s.stepped[i].grad();
    if (grad.defined()) grads.push_back(plain(grad, s.parameters[i].name));
  }
  s.norm = grads.empty()
               ? at::zeros({}, s.stepped.front().options().dtype(at::kFloat).requires_grad(false))
               : s.engine->norm(grads);
  return s.norm;
}

void Optimizer::clip_gradients(const at::Tensor& norm) {
  const at::NoGradGuard no_grad;
  state_->take_gradients();
  state_->norm = norm;
}

void Optimizer::set_learning_rate(double learning_rate) {
  const at::NoGradGuard no_grad;
  state_->engine->set_learning_rate(learning_rate);
}

void Optimizer::step() {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  s.take_gradients();
  s.step_adamw();
  s.step_muon();
  for (size_t i = 0; i < s.stepped.size(); ++i) {
    if (!s.stepped[i].grad().defined()) continue;
    s.stepped[i].mutable_grad().reset();
    s.parameters[i].tensor.unsafeGetTensorImpl()->bump_version();
    if (s.has_master(i)) s.stepped[i].unsafeGetTensorImpl()->bump_version();
  }
  s.norm.reset();
}

std::vector<std::pair<std::string, at::Tensor>> Optimizer::state() const {
  const State& s = *state_;
  const std::vector<AdamWClock> clocks = s.engine->clocks();
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (size_t i = 0; i < s.stepped.size(); ++i) {
    const std::string& name = s.parameters[i].name;
    if (s.has_master(i)) tensors.emplace_back("master." + name, s.stepped[i]);
    if (!s.first[i].defined()) continue;
    if (s.is_muon(i)) {
      tensors.emplace_back("momentum." + name, s.first[i]);
      continue;
    }
    tensors.emplace_back("exp_avg." + name, s.first[i]);
    tensors.emplace_back("exp_avg_sq." + name, s.second[i]);
    tensors.emplace_back("steps." + name, at::scalar_tensor(clocks[s.number(i)].steps, at::kLong));
  }
  return tensors;
}

void Optimizer::restore(
    const std::function<at::Tensor(const std::string& name, const at::Tensor& like)>& read) {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  std::vector<AdamWClock> clocks = s.new_clocks();
  const at::Tensor count = at::scalar_tensor(0, at::kLong);
  for (size_t i = 0; i < s.stepped.size(); ++i) {
    const std::string& name = s.parameters[i].name;
    const auto need = [&](const char* what, const at::Tensor& like) {
      const at::Tensor tensor = read(what + name, like);
      MOE8_CHECK(tensor.defined(), kOptimizer, what + name, "expected in the state, got none");
      return tensor;
    };
    if (s.has_master(i)) s.stepped[i].copy_(need("master.", s.stepped[i]));
    const at::Tensor like = s.make_moment(i);
    const at::Tensor first = read((s.is_muon(i) ? "momentum." : "exp_avg.") + name, like);
    s.first[i] = s.second[i] = at::Tensor();
    if (!first.defined()) continue;  // never had a gradient
    s.first[i] = like.copy_(first);
    if (s.is_muon(i)) continue;
    s.second[i] = s.make_moment(i).copy_(need("exp_avg_sq.", like));
    AdamWClock& clock = clocks[s.number(i)];
    clock = clock_at(need("steps.", count).item<int64_t>(), s.rule, clock.key_offset);
  }
  s.engine->set_clocks(clocks);
}

const std::vector<at::Tensor>& Optimizer::stepped() const {
  return state_->stepped;
}

}  // namespace moe8
