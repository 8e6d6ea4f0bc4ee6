// SPDX-License-Identifier: BSD-3-Clause
// One kernel of a thread per tensor computes what a step needs once, one of many blocks goes over
// the elements: each is read once and written once. Cost floor: those bytes, 28 a parameter with
// bf16 gradients, float32 masters and float32 moments.
#include "cuda/launch.cuh"
#include "cuda/optim/adamw.h"
#include "cuda/optim/tensor_table.cuh"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int64_t kRun = 16384;  // elements of a block

struct Entry {
  const void* grad;
  void* weight;
  BFloat16* copy;
  void* first;
  void* second;
  int64_t elements;
  double weight_decay;
  int32_t index;
  int32_t first_block;
  bool aligned;
};

struct Params {
  AdamWStep step;
  TensorTable<Entry> table;
};
static_assert(sizeof(Params) <= 4096);

// ---- device helpers
template <typename G, typename W, typename M>
__device__ void step_elements(const AdamWRule& rule, const StepScalars& s, const Entry& e,
                              int64_t at) {
  const int64_t left = e.elements - at;
  const Packet<G> grad = load_some<G>(e.grad, at, left, e.aligned);
  const Packet<W> old_weight = load_some<W>(e.weight, at, left, e.aligned);
  const Packet<M> old_first = load_some<M>(e.first, at, left, e.aligned);
  const Packet<M> old_second = load_some<M>(e.second, at, left, e.aligned);
  Packet<W> weight;
  Packet<M> first, second;
  Packet<BFloat16> copy;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const AdamWElement next =
        adamw({old_weight.get(i), old_first.get(i), old_second.get(i)}, grad.get(i), rule, s);
    const uint32_t random = sizeof(M) == 2 ? rounding_bits(s.key, at + i) : 0u;
    put(weight, i, from_float<W>(next.weight));
    put(first, i, stored_moment<M>(next.first, random & 0xFFFFu));
    put(second, i, stored_moment<M>(next.second, random >> 16));
    put(copy, i, from_float<BFloat16>(next.weight));
  }
  store_some(e.weight, weight, at, left, e.aligned);
  store_some(e.first, first, at, left, e.aligned);
  store_some(e.second, second, at, left, e.aligned);
  if (e.copy != nullptr) store_some(e.copy, copy, at, left, e.aligned);
}

// ---- kernels
__global__ void __launch_bounds__(kTableThreads) begin_steps(const __grid_constant__ Params p) {
  follow_stream();
  if (threadIdx.x >= p.table.count) return;
  const Entry& e = p.table.entries[threadIdx.x];
  AdamWClock clock = p.step.clocks[e.index];
  p.step.scalars[e.index] = begin_step(clock, p.step.rule, *p.step.learning_rate, e.weight_decay,
                                       p.step.norm, static_cast<uint32_t>(e.index));
  p.step.clocks[e.index] = clock;
}

template <typename G, typename W, typename M>
__global__ void __launch_bounds__(kTableThreads) step_tensors(const __grid_constant__ Params p) {
  follow_stream();
  const int block = static_cast<int>(blockIdx.x);
  const Entry& e = p.table.entry_of(block);
  const StepScalars s = p.step.scalars[e.index];
  if (s.go == 0) return;
  const int64_t begin = (block - e.first_block) * kRun;
  const int64_t end = min(begin + kRun, e.elements);
  for (int64_t at = begin + threadIdx.x * 8; at < end; at += kTableStep) {
    step_elements<G, W, M>(p.step.rule, s, e, at);
  }
}

// ---- launch
using Kernel = void (*)(Params);

template <typename G, typename W>
Kernel choose(const AdamWStep& s) {
  return s.moment_type == FloatType::BF16 ? step_tensors<G, W, BFloat16>
                                          : step_tensors<G, W, float>;
}

Kernel choose(const AdamWStep& s) {
  const bool bf16_grad = s.grad_type == FloatType::BF16;
  if (s.weight_type == FloatType::F32) {
    return bf16_grad ? choose<BFloat16, float>(s) : choose<float, float>(s);
  }
  return bf16_grad ? choose<BFloat16, BFloat16>(s) : nullptr;
}

LaunchStatus launch(const Params& p, Kernel kernel, cudaStream_t stream) {
  const LaunchStatus begun = launch_early(begin_steps, 1, kTableThreads, 0, stream, p);
  if (!begun.ok() || p.table.blocks == 0) return begun;
  return launch_early(kernel, p.table.blocks, kTableThreads, 0, stream, p);
}

bool is_aligned(const AdamWTensor& t) {
  return starts_aligned(t.grad) && starts_aligned(t.weight) && starts_aligned(t.copy) &&
         starts_aligned(t.first) && starts_aligned(t.second);
}

}  // namespace

LaunchStatus launch_adamw(const AdamWStep& step, std::span<const AdamWTensor> tensors,
                          cudaStream_t stream) {
  const Kernel kernel = choose(step);
  if (kernel == nullptr) return refused("float32 gradients of bf16 weights");
  Params p{.step = step, .table = {}};
  for (const AdamWTensor& t : tensors) {
    p.table.add({t.grad, t.weight, t.copy, t.first, t.second, t.elements, t.weight_decay, t.index,
                 0, is_aligned(t)},
                kRun);
    if (!p.table.is_full()) continue;
    const LaunchStatus status = launch(p, kernel, stream);
    if (!status.ok()) return status;
    p.table.count = p.table.blocks = 0;
  }
  return p.table.count == 0 ? LaunchStatus{} : launch(p, kernel, stream);
}

}  // namespace moe8::cuda
