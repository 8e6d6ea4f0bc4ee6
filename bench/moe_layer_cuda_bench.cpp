// SPDX-License-Identifier: BSD-3-Clause
// Whole mixture-of-experts layers on one GPU, forward and backward: router, experts, combination, as
// a user of moe8/experts.h writes them. Per layer: times of the recipes beside one another, memory
// (peak, and saved for backward), and where a step's time goes, by kernel.
//
//   moe_layer_cuda_bench [--rounds N] [--json FILE]
// MOE8_BENCH_SHAPES=scout,dsv3 picks layers, MOE8_BENCH_RECIPES=bf16,fp8_rowwise recipes;
// MOE8_BENCH_LOADS=balanced,ragged,zipf how tokens are spread; MOE8_BENCH_KERNELS=1 prints kernels.
// compare_layers.py runs it beside other libraries.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/autograd/profiler_kineto.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>

#include "device/cuda_backend.h"
#include "harness.h"
#include "moe8/experts.h"
#include "moe8/moe8.h"
#include "moe8/routing.h"
#include "shapes.h"

namespace moe8::bench {
namespace {

// ---- layers -----------------------------------------------------------------
enum class Load { LEARNED, RAGGED, ZIPF };
constexpr Load kLoads[] = {Load::LEARNED, Load::RAGGED, Load::ZIPF};

const char* to_string(Load load) {
  switch (load) {
    case Load::LEARNED:
      return "balanced";
    case Load::RAGGED:
      return "ragged";
    case Load::ZIPF:
      return "zipf";
  }
  return "invalid";
}

// Experts of every slot, in shuffled order, with shares by the rules of grouped_mm_cuda_bench.cpp. An
// expert may come twice for a token: the layer does not mind.
at::Tensor chosen_experts(Load load, const ExpertLayerShape& s) {
  const int64_t slots = s.T * s.k;
  at::Tensor weights = at::ones({s.E}, at::kDouble);
  for (int64_t e = 0; e < s.E; ++e) {
    const auto rule = static_cast<double>((e * 619 + 7) % 1000) / 1000.0;
    if (load == Load::RAGGED) weights[e] = 0.5 + rule;
    if (load == Load::ZIPF) weights[(5 * e + 3) % s.E] = 1.0 / static_cast<double>(e + 1);
  }
  const at::Tensor ends = (weights.cumsum(0) / weights.sum() * slots).floor();
  const at::Tensor sorted = at::searchsorted(ends, at::arange(slots, at::kDouble), false, true);
  const at::Tensor experts = sorted.clamp_max(s.E - 1).index_select(0, at::randperm(slots));
  return experts.view({s.T, s.k}).to(at::kCUDA);
}

// A layer without any conversion: its recipe is an argument of a step.
struct Layer {
  ExpertLayerShape shape;
  at::Tensor x, gate, w1, w3, w2, grad_out;
  at::Tensor experts;  // undefined: the router's own choice

  Layer(const ExpertLayerShape& s, Load load) : shape(s) {
    const auto weight = [](at::IntArrayRef sizes) {
      const double std = 1 / std::sqrt(static_cast<double>(sizes.back()));
      return (at::randn(sizes, at::dtype(at::kBFloat16).device(at::kCUDA)) * std).requires_grad_();
    };
    x = at::randn({s.T, s.d}, at::dtype(at::kBFloat16).device(at::kCUDA)).requires_grad_();
    grad_out = at::randn_like(x);
    gate = weight({s.E, s.d});
    w1 = weight({s.E, s.h, s.d});
    w3 = weight({s.E, s.h, s.d});
    w2 = weight({s.E, s.d, s.h});
    if (load != Load::LEARNED) experts = chosen_experts(load, s);
  }

  at::Tensor forward(const std::optional<Config>& config) const {
    const at::Tensor logits = at::linear(x, gate);
    ExpertsOptions options;
    options.config = config;
    if (!experts.defined()) {
      const Routing routing = route_tokens(logits, {.top_k = shape.k});
      return moe_experts(x, w1, w3, w2, routing.order, routing.scores, options);
    }
    const at::Tensor scores = at::softmax(logits, 1, at::kFloat).gather(1, experts);
    return moe_experts(x, w1, w3, w2, experts, scores, options);
  }
  void step(const std::optional<Config>& config) const {
    torch::autograd::grad({forward(config)}, {x, gate, w1, w3, w2}, {grad_out});
  }
  double flops() const {
    const auto f = [](int64_t n) { return static_cast<double>(n); };
    return 18 * f(shape.T) * f(shape.k) * f(shape.d) * f(shape.h);
  }
};

void wait() {
  c10::cuda::device_synchronize();
}

// ---- what is measured of it ---------------------------------------------------
struct Way {
  const char* recipe;  // "bf16": none
  const char* op;
  bool is_cached;
  std::optional<Config> config() const {
    return std::string(recipe) == "bf16" ? std::nullopt : std::optional(moe8::recipe(recipe));
  }
};

bool is_listed(const char* variable, const std::string& name) {
  const char* names = std::getenv(variable);
  return !names || ("," + std::string(names) + ",").find("," + name + ",") != std::string::npos;
}

std::vector<Way> ways() {
  std::vector<Way> all = {{"bf16", "layer", false},
                          {"fp8_rowwise", "layer", false},
                          {"fp8_rowwise", "layer, cached weights", true},
                          {"mxfp8_rceil", "layer", false},
                          {"mxfp8_rceil", "layer, cached weights", true}};
  std::erase_if(all, [](const Way& way) { return !is_listed("MOE8_BENCH_RECIPES", way.recipe); });
  return all;
}

// A step after an optimizer's: the weights are quantized once, for forward and backward. Or a further
// microbatch: the weights are as the step before left them.
void prepare(const Layer& layer, const Way& way) {
  set_weight_cache(WeightCache::ON);
  clear_weight_cache();
  if (way.is_cached) layer.step(way.config());
  wait();
}

struct Memory {
  double saved, peak;  // GiB above what was there before the step, weight codes counted
};

Memory memory_of(const Layer& layer, const Way& way) {
  namespace allocator = c10::cuda::CUDACachingAllocator;
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  clear_weight_cache();
  wait();
  const auto bytes = [] { return allocator::getDeviceStats(0).allocated_bytes[0]; };
  const int64_t before = bytes().current;
  allocator::resetPeakStats(0);
  const at::Tensor out = layer.forward(way.config());
  wait();
  const int64_t saved =
      bytes().current - before - static_cast<int64_t>(out.nbytes()) - weight_cache_use().bytes;
  torch::autograd::grad({out}, {layer.x, layer.gate, layer.w1, layer.w3, layer.w2},
                        {layer.grad_out});
  wait();
  const int64_t peak = bytes().peak - before;
  return {static_cast<double>(saved) / kGiB, static_cast<double>(peak) / kGiB};
}

// ---- kernels ------------------------------------------------------------------
// "void moe8::cuda::(anonymous namespace)::f<...>(...)" -> "f".
std::string short_name(std::string name) {
  const std::string nowhere = "(anonymous namespace)::";
  for (size_t at; (at = name.find(nowhere)) != std::string::npos;) name.erase(at, nowhere.size());
  if (name.rfind("void ", 0) == 0) name.erase(0, 5);
  name = name.substr(0, name.find_first_of("<("));
  const size_t colons = name.rfind("::");
  return colons == std::string::npos ? name : name.substr(colons + 2);
}

void print_kernels(const Layer& layer, const Way& way) {
  namespace profiler = torch::autograd::profiler;
  using torch::profiler::impl::ActivityType;
  constexpr int kSteps = 3;
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  const std::set<ActivityType> activities = {ActivityType::CUDA};
  prepare(layer, way);
  layer.step(way.config());
  wait();
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  for (int i = 0; i < kSteps; ++i) {
    if (!way.is_cached) clear_weight_cache();
    layer.step(way.config());
  }
  wait();
  const auto result = profiler::disableProfiler();
  struct Sum {
    double ms = 0;
    int calls = 0;
  };
  std::map<std::string, Sum> sums;
  double total = 0;
  for (const profiler::KinetoEvent& event : result->events()) {
    if (event.deviceType() != c10::DeviceType::CUDA) continue;
    const double ms = static_cast<double>(event.durationNs()) * 1e-6 / kSteps;
    Sum& sum = sums[short_name(event.name())];
    sum.ms += ms;
    ++sum.calls;
    total += ms;
  }
  std::vector<std::pair<std::string, Sum>> sorted(sums.begin(), sums.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });
  std::printf("kernels of %s, %s, %s: %.3f ms\n", layer.shape.name, way.recipe, way.op, total);
  for (const auto& [name, sum] : sorted) {
    if (sum.ms < 0.002 * total) continue;
    std::printf("  %9.3f ms %5.1f %%  %4d x  %s\n", sum.ms, 100 * sum.ms / total,
                sum.calls / kSteps, name.c_str());
  }
}

// ---- all ------------------------------------------------------------------------
void add_rows(std::vector<Row>& rows, const std::shared_ptr<Layer>& layer, Load load) {
  const int baseline = static_cast<int>(rows.size());
  for (const Way& way : ways()) {
    rows.push_back({.op = way.op,
                    .shape = std::string(layer->shape.name) + " " + to_string(load),
                    .recipe = way.recipe,
                    .flops = layer->flops(),
                    .run =
                        [layer, config = way.config()] {
                          layer->step(config);
                          wait();
                        },
                    .baseline = static_cast<int>(rows.size()) == baseline ? -1 : baseline,
                    .prepare = [layer, way] { prepare(*layer, way); }});
  }
}

int run(int argc, char** argv) {
  if (const auto failure = load_cuda_backend()) {
    std::cerr << "moe_layer_cuda_bench: " << *failure << "\n";
    return 77;
  }
  int status = 0;
  for (const ExpertLayerShape& shape : kGpuExpertLayerShapes) {
    if (!is_listed("MOE8_BENCH_SHAPES", shape.name)) continue;
    std::vector<Row> rows;  // one layer at a time: the tensors of all would not fit
    for (Load load : kLoads) {
      if (!is_listed("MOE8_BENCH_LOADS", to_string(load))) continue;
      const auto layer = std::make_shared<Layer>(shape, load);
      add_rows(rows, layer, load);
      if (load != Load::LEARNED) continue;
      for (const Way& way : ways()) {
        if (way.is_cached) continue;
        prepare(*layer, way);
        layer->step(way.config());  // what the first call alone allocates
        const Memory memory = memory_of(*layer, way);
        std::printf("%-10s %-12s saved for backward %.3f GiB, peak %.3f GiB\n", shape.name,
                    way.recipe, memory.saved, memory.peak);
      }
      if (!std::getenv("MOE8_BENCH_KERNELS")) continue;
      for (const Way& way : ways()) print_kernels(*layer, way);
    }
    status |= run_table(std::string("expert layers on a GPU, ") + shape.name, rows, argc, argv);
    rows.clear();
    c10::cuda::CUDACachingAllocator::emptyCache();
  }
  return status;
}

}  // namespace
}  // namespace moe8::bench

int main(int argc, char** argv) {
  return moe8::bench::run(argc, argv);
}
