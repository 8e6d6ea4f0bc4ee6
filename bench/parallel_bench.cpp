// SPDX-License-Identifier: BSD-3-Clause
// What ranks send each other beside plain NCCL of the same bytes, and a layer of experts over all
// ranks beside the same layer on one GPU. A process per GPU:
//   torchrun --no-python --nproc-per-node 2 build/cuda/bench/parallel_bench --rounds 7
// MOE8_BENCH_SHAPES and MOE8_BENCH_RECIPES name what is measured, MOE8_BENCH_TABLES is a list of
// "bytes", "legs", "layer"; MOE8_BENCH_KERNELS prints the kernels of rank 0.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <utility>
#include <vector>

#include "dist/c10d_names.h"
#include "harness.h"
#include "moe8/expert_parallel.h"
#include "moe8/memory.h"
#include "moe8/quantize_model.h"
#include "shapes.h"
#include "train/profile/profiler.h"
#include "train/profile/time_table.h"

namespace moe8::bench {
namespace {

void wait() {
  c10::cuda::device_synchronize();
}

at::TensorOptions on_gpu(at::ScalarType dtype) {
  return at::dtype(dtype).device(at::kCUDA);
}

// Ranks begin together. As each does the same, what one of them takes is what all take.
Row row_of(const Group& group, std::string op, std::string shape, std::string recipe, int64_t calls,
           std::function<void()> one_call) {
  return {.op = std::move(op),
          .shape = std::move(shape),
          .recipe = std::move(recipe),
          .run =
              [calls, one_call = std::move(one_call)] {
                for (int64_t i = 0; i < calls; ++i) one_call();
                wait();
              },
          .calls = calls,
          .prepare =
              [group] {
                wait();
                barrier(group);
              }};
}

// ---- bytes --------------------------------------------------------------------
/// An all-to-all as NCCL has it: equal parts of bytes.
struct PlainBytes {
  PlainBytes(Group g, int64_t bytes)
      : group(std::move(g)),
        in(at::empty({bytes}, on_gpu(at::kByte)).random_()),
        out(at::empty_like(in)) {}

  void send() {
    std::vector<int64_t> equal;
    all_to_all_single(*group.process_group(), out, in, equal, equal)->wait();
  }

  Group group;
  at::Tensor in, out;
};

/// What each rank may send as equal parts, where each has other bytes: about their mean.
int64_t in_equal_parts(const Group& group, int64_t bytes) {
  const at::Tensor sum = at::full({1}, bytes, on_gpu(at::kLong));
  all_reduce_(group, sum);
  const int64_t size = group.size();
  return sum.item<int64_t>() / size / size * size;
}

// Of which part leaves a rank.
double bytes_out(const Group& group, int64_t bytes) {
  const auto size = static_cast<double>(group.size());
  return static_cast<double>(bytes) * (size - 1) / size;
}

std::vector<Row> rows_of_bytes(const Group& group) {
  std::vector<Row> rows;
  for (const int64_t mib : {1, 16, 64, 256}) {
    const int64_t bytes = mib << 20;
    const std::string shape = std::to_string(mib) + " MiB";
    const auto plain = std::make_shared<PlainBytes>(group, bytes);
    const int nccl = static_cast<int>(rows.size());
    rows.push_back(row_of(group, "NCCL all-to-all", shape, "-", 20, [plain] { plain->send(); }));
    const at::Tensor x = plain->in.view({-1, 4096});
    const std::vector<int64_t> equal(static_cast<size_t>(group.size()), x.size(0) / group.size());
    rows.push_back(row_of(group, "all_to_all", shape, "-", 20,
                          [group, x, equal] { all_to_all(group, x, equal, equal); }));
    rows.back().baseline = nccl;
    rows.push_back(row_of(group, "all_gather", shape, "-", 20,
                          [group, own = x.narrow(0, 0, equal[0])] { all_gather(group, own); }));
    rows.push_back(row_of(group, "reduce_scatter", shape, "-", 20,
                          [group, values = plain->in.view(at::kBFloat16).zero_()] {
                            reduce_scatter(group, values);
                          }));
    for (size_t i = static_cast<size_t>(nccl); i < rows.size(); ++i) {
      rows[i].bytes = bytes_out(group, bytes);
    }
  }
  return rows;
}

// ---- a layer ------------------------------------------------------------------
/// Experts of one rank, or all of them, with tokens of this rank.
struct LayerImpl : torch::nn::Module {
  ExpertLayerShape shape;
  Group group;  // of one: all experts are here
  at::Tensor x, grad_out, gate, w1, w3, w2;

  LayerImpl(const ExpertLayerShape& s, const Group& g, const std::string& recipe_name)
      : shape(s), group(g) {
    const int64_t own = s.E / g.size();
    const auto weight = [&](const char* name, at::IntArrayRef sizes) {
      const double std = 1 / std::sqrt(static_cast<double>(sizes.back()));
      return register_parameter(name, at::randn(sizes, on_gpu(at::kBFloat16)) * std);
    };
    gate = weight("gate", {s.E, s.d});
    x = at::randn({s.T, s.d}, on_gpu(at::kBFloat16)).requires_grad_();
    grad_out = at::randn_like(x).detach();
    w1 = weight("w1", {own, s.h, s.d});
    w3 = weight("w3", {own, s.h, s.d});
    w2 = weight("w2", {own, s.d, s.h});
    if (recipe_name != "bf16") quantize_(*this, {{"re:w[123]", recipe(recipe_name)}});
  }

  Routing route() const { return route_tokens(at::linear(x, gate), {.top_k = shape.k}); }
  at::Tensor forward() const {
    const Routing r = route();
    if (group.size() == 1) return moe_experts(x, w1, w3, w2, r.order, r.scores);
    const TokenExchange exchange(group, r.experts, shape.E);
    return moe_experts_parallel(exchange, x, w1, w3, w2, r.scores);
  }
  void step() const {
    clear_weight_cache();  // as after an optimizer's step
    torch::autograd::grad({forward()}, {x, gate, w1, w3, w2}, {grad_out});
  }
  double flops() const {
    const auto f = [](int64_t n) { return static_cast<double>(n); };
    return 18 * f(shape.T) * f(shape.k) * f(shape.d) * f(shape.h);
  }
};
TORCH_MODULE(Layer);

void print_peak(const Layer& layer, const std::string& recipe_name) {
  namespace allocator = c10::cuda::CUDACachingAllocator;
  const c10::DeviceIndex device = layer->x.device().index();
  layer->step();  // what the first call alone allocates
  clear_weight_cache();
  wait();
  const int64_t before = allocator::getDeviceStats(device).allocated_bytes[0].current;
  allocator::resetPeakStats(device);
  layer->step();
  wait();
  const int64_t peak = allocator::getDeviceStats(device).allocated_bytes[0].peak - before;
  std::printf("%-10s %-12s on %lld ranks: peak %.3f GiB above weights and input\n",
              layer->shape.name, recipe_name.c_str(), static_cast<long long>(layer->group.size()),
              static_cast<double>(peak) / (1 << 30));
}

void print_kernels(const Layer& layer, const std::string& recipe_name) {
  constexpr int kSteps = 3;
  Profiler profiler(layer->x.device(), Profiler::Record::KERNELS);
  for (int i = 0; i < kSteps; ++i) layer->step();
  const TimeTable table = time_table(profiler.stop(), kSteps);
  std::printf("kernels of %s, %s, %lld ranks:\n%s\n", layer->shape.name, recipe_name.c_str(),
              static_cast<long long>(layer->group.size()), to_text(table).c_str());
}

std::vector<Row> rows_of_layer(const Group& group, const ExpertLayerShape& shape) {
  std::vector<Row> rows;
  for (const char* name : {"bf16", "fp8_rowwise", "mxfp8_rceil"}) {
    if (!is_listed("MOE8_BENCH_RECIPES", name)) continue;
    int alone = -1;
    for (const Group& over : {Group(), group}) {
      const Layer layer(shape, over, name);
      print_peak(layer, name);
      if (std::getenv("MOE8_BENCH_KERNELS")) print_kernels(layer, name);
      const std::string op =
          over.size() == 1 ? "layer, one GPU" : "layer, EP " + std::to_string(over.size());
      rows.push_back(row_of(group, op, shape.name, name, 4, [layer] { layer->step(); }));
      rows.back().flops = layer->flops();
      rows.back().baseline = alone;
      if (alone < 0) alone = static_cast<int>(rows.size()) - 1;
    }
  }
  return rows;
}

// ---- legs ---------------------------------------------------------------------
/// Rows for each rank, and from each, as tokens travel: once to each rank that has experts of them.
struct Splits {
  Splits(const Group& group, const at::Tensor& experts, int64_t n_experts) {
    const at::Tensor rank = experts.floor_divide(n_experts / group.size());
    std::vector<at::Tensor> counts;
    for (int64_t r = 0; r < group.size(); ++r) {
      counts.push_back(rank.eq(r).any(1).sum());
      to.push_back(counts.back().item<int64_t>());
    }
    const std::vector<int64_t> ones(to.size(), 1);
    const at::Tensor heard = all_to_all(group, at::stack(counts), ones, ones).cpu();
    from.assign(heard.const_data_ptr<int64_t>(), heard.const_data_ptr<int64_t>() + heard.numel());
  }
  int64_t sent() const { return std::accumulate(to.begin(), to.end(), int64_t{0}); }

  std::vector<int64_t> to, from;
};

// Dispatch and combine by themselves; what they send, without what is computed around it; and as many
// bytes by NCCL in equal parts.
std::vector<Row> rows_of_legs(const Group& group, const ExpertLayerShape& shape) {
  std::vector<Row> rows;
  const at::NoGradGuard no_grad;
  const Layer layer(shape, group, "bf16");
  const Routing routing = layer->route();
  const TokenExchange exchange(group, routing.experts, shape.E);
  const Config fp8 = recipe("fp8_rowwise");
  const at::Tensor x = layer->x.detach(), scores = routing.scores.detach();
  const Splits splits(group, routing.experts, shape.E);
  // Rows of each of `widths` bytes travel to the experts' ranks.
  const auto beside_nccl = [&](const std::string& op, const char* recipe_name,
                               const std::vector<int64_t>& widths, std::function<void()> call) {
    const int64_t width = std::accumulate(widths.begin(), widths.end(), int64_t{0});
    const int64_t bytes = splits.sent() * width;
    std::vector<at::Tensor> sent;
    sent.reserve(widths.size());
    for (const int64_t each : widths) {
      sent.push_back(at::empty({splits.sent(), each}, on_gpu(at::kByte)).random_());
    }
    const auto plain = std::make_shared<PlainBytes>(group, in_equal_parts(group, bytes));
    const auto exchanges = [group, splits, sent] {
      std::vector<Pending> coming;
      coming.reserve(sent.size());
      for (const at::Tensor& part : sent) {
        coming.push_back(begin_all_to_all(group, part, splits.to, splits.from));
      }
      for (Pending& one : coming) one.wait();
    };
    const int nccl = static_cast<int>(rows.size());
    rows.push_back(row_of(group, "NCCL, the bytes of a " + op, shape.name, recipe_name, 10,
                          [plain] { plain->send(); }));
    rows.push_back(row_of(group, "exchanges of a " + op, shape.name, recipe_name, 10, exchanges));
    rows.push_back(row_of(group, op, shape.name, recipe_name, 10, std::move(call)));
    for (size_t i = static_cast<size_t>(nccl); i < rows.size(); ++i) {
      rows[i].bytes = bytes_out(group, bytes);
      if (static_cast<int>(i) > nccl) rows[i].baseline = nccl;
    }
  };
  const int64_t beside = 8 * shape.k;
  beside_nccl("dispatch", "bf16", {beside, 2 * shape.d},
              [exchange, x, scores] { exchange.dispatch(x, scores); });
  beside_nccl("dispatch", "fp8_rowwise", {4 + beside, shape.d},
              [exchange, x, scores, fp8] { exchange.dispatch(x, scores, fp8); });
  const at::Tensor received = exchange.dispatch(x, scores).x;
  beside_nccl("combine", "bf16", {2 * shape.d},
              [exchange, received] { exchange.combine(received); });
  return rows;
}

// ---- all ----------------------------------------------------------------------
int run(int argc, char** argv) {
  const Parallel parallel(
      {.layout = {.expert = launch_from_environment().world}, .device = at::kCUDA});
  const Group& group = parallel.expert();
  if (group.size() == 1) {
    std::cerr << "parallel_bench: one process has nobody to send to; start it with torchrun\n";
    return 77;
  }
  if (group.rank() > 0 && !std::freopen("/dev/null", "w", stdout)) return 1;
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // what is measured stays, whatever comes after it
  torch::manual_seed(1 + static_cast<uint64_t>(group.rank()));
  int status = 0;
  if (is_listed("MOE8_BENCH_TABLES", "bytes")) {
    status |= run_table("bytes between GPUs", rows_of_bytes(group), argc, argv);
  }
  for (const ExpertLayerShape& shape : kGpuExpertLayerShapes) {
    if (!is_listed("MOE8_BENCH_SHAPES", shape.name) || shape.E % group.size() != 0) continue;
    for (const auto& [table, rows_of] :
         {std::pair{"legs", &rows_of_legs}, {"layer", &rows_of_layer}}) {
      if (!is_listed("MOE8_BENCH_TABLES", table)) continue;
      status |=
          run_table(std::string(table) + " of " + shape.name, rows_of(group, shape), argc, argv);
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
