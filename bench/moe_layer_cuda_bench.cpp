// SPDX-License-Identifier: BSD-3-Clause
// Whole mixture-of-experts layers on one GPU, forward and backward: router, experts, combination, as
// a user of moe8/experts.h writes them. Per layer: times of the recipes beside one another, memory
// (peak, and saved for backward), and where a step's time goes, by kernel.
//
//   moe_layer_cuda_bench [--rounds N] [--json FILE]
// MOE8_BENCH_SHAPES=scout,dsv3 picks layers, MOE8_BENCH_RECIPES=bf16,fp8_rowwise recipes;
// MOE8_BENCH_LOADS=balanced,ragged,zipf how tokens are spread; MOE8_BENCH_KERNELS=1 prints kernels.
// compare_layers.py runs it beside other libraries, with MOE8_BENCH_EXPERTS=FILE: the experts of
// ragged and skewed layers, int64 [T, k].
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <utility>

#include "device/cuda_backend.h"
#include "harness.h"
#include "moe8/experts.h"
#include "moe8/moe8.h"
#include "moe8/routing.h"
#include "shapes.h"
#include "train/profile/profiler.h"
#include "train/profile/time_table.h"

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

at::Tensor experts_of_file(const char* file, const ExpertLayerShape& s) {
  const at::Tensor experts = at::empty({s.T, s.k}, at::kLong);
  std::ifstream bytes(file, std::ios::binary);
  bytes.read(static_cast<char*>(experts.mutable_data_ptr()),
             static_cast<std::streamsize>(experts.nbytes()));
  TORCH_CHECK(bytes && bytes.peek() == EOF, file, ": expected ", experts.nbytes(),
              " bytes, the experts of ", s.name);
  return experts.to(at::kCUDA);
}

// Experts of every slot, in shuffled order, with shares by the rules of grouped_mm_cuda_bench.cpp. An
// expert may come twice for a token: the layer does not mind.
at::Tensor chosen_experts(Load load, const ExpertLayerShape& s) {
  if (const char* file = std::getenv("MOE8_BENCH_EXPERTS")) return experts_of_file(file, s);
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

/// One of the ways that are compared.
struct Way {
  const char* recipe;  // "bf16": not converted
  const char* op;
  bool is_cached;  // a further microbatch: the weights' codes are those of the step before
  bool is_joined;  // gate and up in one weight
  SavedHidden hidden = SavedHidden::SOURCE;
};

constexpr Way kWays[] = {
    {"bf16", "layer", false, false},
    {"bf16", "layer, one weight for gate and up", false, true},
    {"fp8_rowwise", "layer", false, false},
    {"fp8_rowwise", "layer, cached weights", true, false},
    {"fp8_rowwise", "layer, hidden rows as codes", false, false, SavedHidden::FLOAT8},
    {"mxfp8_rceil", "layer", false, false},
    {"mxfp8_rceil", "layer, cached weights", true, false}};

struct LayerImpl : torch::nn::Module {
  ExpertLayerShape shape;
  at::Tensor x, grad_out, gate, w1, w3, w2;
  at::Tensor experts;  // undefined: the router's own choice
  ExpertsOptions options;

  LayerImpl(const ExpertLayerShape& s, Load load, const Way& way)
      : shape(s), options{.saved_hidden = way.hidden} {
    const auto bf16 = at::dtype(at::kBFloat16).device(at::kCUDA);
    const auto weight = [&](const char* name, at::IntArrayRef sizes) {
      const double std = 1 / std::sqrt(static_cast<double>(sizes.back()));
      return register_parameter(name, at::randn(sizes, bf16) * std);
    };
    x = at::randn({s.T, s.d}, bf16).requires_grad_();
    grad_out = at::randn_like(x).detach();
    gate = weight("gate", {s.E, s.d});
    w1 = weight("w1", {s.E, way.is_joined ? 2 * s.h : s.h, s.d});
    if (!way.is_joined) w3 = weight("w3", {s.E, s.h, s.d});
    w2 = weight("w2", {s.E, s.d, s.h});
    if (load != Load::LEARNED) experts = chosen_experts(load, s);
    if (std::string(way.recipe) == "bf16") return;
    quantize_(*this, {{"re:w[123]", recipe(way.recipe)}});
  }

  at::Tensor forward() const {
    const at::Tensor logits = at::linear(x, gate);
    if (!experts.defined()) {
      const Routing routing = route_tokens(logits, {.top_k = shape.k});
      return moe_experts(x, w1, w3, w2, routing.order, routing.scores, options);
    }
    const at::Tensor scores = at::softmax(logits, 1, at::kFloat).gather(1, experts);
    return moe_experts(x, w1, w3, w2, experts, scores, options);
  }
  void backward(const at::Tensor& out) const {
    std::vector<at::Tensor> inputs{x, gate, w1, w2};
    if (w3.defined()) inputs.push_back(w3);
    torch::autograd::grad({out}, inputs, {grad_out});
  }
  void step() const { backward(forward()); }
  double flops() const {
    const auto f = [](int64_t n) { return static_cast<double>(n); };
    return 18 * f(shape.T) * f(shape.k) * f(shape.d) * f(shape.h);
  }
};
TORCH_MODULE(Layer);

void wait() {
  c10::cuda::device_synchronize();
}

// ---- what is measured of it ---------------------------------------------------
// Without an optimizer that changes them, weights are quantized again in each step.
void prepare(const Layer& layer, const Way& way) {
  set_weight_cache(way.is_cached ? WeightCache::ON : WeightCache::AUTO);
  clear_weight_cache();
  if (way.is_cached) layer->step();
  wait();
}

struct Memory {
  double saved, peak;  // GiB above what was there before the step, weight codes counted
};

Memory memory_of(const Layer& layer, const Way& way) {
  namespace allocator = c10::cuda::CUDACachingAllocator;
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  prepare(layer, way);
  layer->step();  // what the first call alone allocates
  clear_weight_cache();
  wait();
  const auto bytes = [] { return allocator::getDeviceStats(0).allocated_bytes[0]; };
  const int64_t before = bytes().current;
  allocator::resetPeakStats(0);
  at::Tensor out = layer->forward();
  wait();
  const int64_t saved =
      bytes().current - before - static_cast<int64_t>(out.nbytes()) - weight_cache_use().bytes;
  layer->backward(std::exchange(out, {}));
  wait();
  const int64_t peak = bytes().peak - before;
  return {static_cast<double>(saved) / kGiB, static_cast<double>(peak) / kGiB};
}

// ---- kernels ------------------------------------------------------------------
void print_kernels(const Layer& layer, const Way& way) {
  constexpr int kSteps = 3;
  prepare(layer, way);
  layer->step();
  Profiler profiler(at::Device(at::kCUDA, 0), Profiler::Record::KERNELS);
  for (int i = 0; i < kSteps; ++i) {
    if (!way.is_cached) clear_weight_cache();
    layer->step();
  }
  const TimeTable table = time_table(profiler.stop(), kSteps);
  std::printf("kernels of %s, %s, %s:\n%s\n", layer->shape.name, way.recipe, way.op,
              to_text(table).c_str());
}

// ---- all ------------------------------------------------------------------------
// Layers of one shape and load, one for each way.
void add_rows(std::vector<Row>& rows, const ExpertLayerShape& shape, Load load) {
  const int baseline = static_cast<int>(rows.size());
  for (const Way& way : kWays) {
    if (!is_listed("MOE8_BENCH_RECIPES", way.recipe)) continue;
    const Layer layer(shape, load, way);
    if (load == Load::LEARNED && !way.is_cached) {
      const Memory memory = memory_of(layer, way);
      std::printf("%-10s %-12s saved for backward %.3f GiB, peak %.3f GiB   (%s)\n", shape.name,
                  way.recipe, memory.saved, memory.peak, way.op);
    }
    if (load == Load::LEARNED && std::getenv("MOE8_BENCH_KERNELS")) print_kernels(layer, way);
    rows.push_back({.op = way.op,
                    .shape = std::string(shape.name) + " " + to_string(load),
                    .recipe = way.recipe,
                    .flops = layer->flops(),
                    .run =
                        [layer] {
                          layer->step();
                          wait();
                        },
                    .baseline = static_cast<int>(rows.size()) == baseline ? -1 : baseline,
                    .prepare = [layer, way] { prepare(layer, way); }});
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
    for (Load load : kLoads) {
      if (!is_listed("MOE8_BENCH_LOADS", to_string(load))) continue;
      std::vector<Row> rows;  // one load at a time: the tensors of all would not fit
      add_rows(rows, shape, load);
      status |= run_table(std::string("expert layers on a GPU, ") + shape.name, rows, argc, argv);
      rows.clear();
      c10::cuda::CUDACachingAllocator::emptyCache();
    }
  }
  return status;
}

}  // namespace
}  // namespace moe8::bench

int main(int argc, char** argv) {
  return moe8::bench::run(argc, argv);
}
