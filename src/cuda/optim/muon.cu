// SPDX-License-Identifier: BSD-3-Clause
// Each element is read once and written once. Cost floor: those bytes, 12 a parameter before the
// products with bf16 gradients and float32 momentum, 12 after them with float32 masters.
#include "cuda/launch.cuh"
#include "cuda/optim/muon.h"
#include "cuda/optim/tensor_table.cuh"

namespace moe8::cuda {
namespace {

// ---- configuration
constexpr int64_t kRun = 16384;  // elements of a block

struct MomentumEntry {
  const void* grad;
  void* momentum;
  BFloat16* direction;
  int64_t elements;
  int32_t first_block;
  bool aligned;
};

struct WeightEntry {
  const BFloat16* direction;
  void* weight;
  BFloat16* copy;
  int64_t elements;
  double weight_decay, scale;
  int32_t first_block;
  bool aligned;
};

template <typename Step, typename Entry>
struct Params {
  Step step;
  TensorTable<Entry> table;
};
using MomentumParams = Params<MuonMomentumStep, MomentumEntry>;
using WeightParams = Params<MuonWeightStep, WeightEntry>;
static_assert(sizeof(MomentumParams) <= 4096 && sizeof(WeightParams) <= 4096);

// ---- device helpers
__device__ bool is_step(const float* norm) {
  return norm == nullptr || magnitude_bits(*norm) < 0x7F800000u;
}

// ---- kernels
template <typename G, typename M>
__global__ void __launch_bounds__(kTableThreads)
    find_directions(const __grid_constant__ MomentumParams p) {
  follow_stream();
  const MuonMomentumStep& step = p.step;
  const int block = static_cast<int>(blockIdx.x);
  const MomentumEntry& e = p.table.entry_of(block);
  const bool go = is_step(step.norm);
  const float clip = step.norm == nullptr ? 1.0f : clip_factor(*step.norm, step.rule.max_norm);
  const int64_t begin = (block - e.first_block) * kRun;
  const int64_t end = min(begin + kRun, e.elements);
  for (int64_t at = begin + threadIdx.x * 8; at < end; at += kTableStep) {
    const int64_t left = e.elements - at;
    Packet<BFloat16> direction{};
    if (go) {
      const Packet<G> grad = load_some<G>(e.grad, at, left, e.aligned);
      const Packet<M> old = load_some<M>(e.momentum, at, left, e.aligned);
      Packet<M> momentum;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const MuonElement next = muon_direction(old.get(i), grad.get(i), clip, step.rule);
        put(momentum, i, from_float<M>(next.momentum));
        put(direction, i, from_float<BFloat16>(next.direction));
      }
      store_some(e.momentum, momentum, at, left, e.aligned);
    }
    store_some(e.direction, direction, at, left, e.aligned);
  }
}

template <typename W>
__global__ void __launch_bounds__(kTableThreads)
    step_weights(const __grid_constant__ WeightParams p) {
  follow_stream();
  if (!is_step(p.step.norm)) return;
  const int block = static_cast<int>(blockIdx.x);
  const WeightEntry& e = p.table.entry_of(block);
  const MuonScalars scalars = muon_scalars(*p.step.learning_rate, e.weight_decay, e.scale);
  const int64_t begin = (block - e.first_block) * kRun;
  const int64_t end = min(begin + kRun, e.elements);
  for (int64_t at = begin + threadIdx.x * 8; at < end; at += kTableStep) {
    const int64_t left = e.elements - at;
    const Packet<BFloat16> direction = load_some<BFloat16>(e.direction, at, left, e.aligned);
    const Packet<W> old = load_some<W>(e.weight, at, left, e.aligned);
    Packet<W> weight;
    Packet<BFloat16> copy;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float next = muon_weight(old.get(i), direction.get(i), scalars);
      put(weight, i, from_float<W>(next));
      put(copy, i, from_float<BFloat16>(next));
    }
    store_some(e.weight, weight, at, left, e.aligned);
    if (e.copy != nullptr) store_some(e.copy, copy, at, left, e.aligned);
  }
}

// ---- launch
template <typename P>
LaunchStatus launch(P& p, void (*kernel)(P), cudaStream_t stream) {
  const int blocks = p.table.blocks;
  const LaunchStatus status =
      blocks == 0 ? LaunchStatus{} : launch_early(kernel, blocks, kTableThreads, 0, stream, p);
  p.table.count = p.table.blocks = 0;
  return status;
}

template <typename G>
auto choose(FloatType momentum_type) {
  return momentum_type == FloatType::BF16 ? find_directions<G, BFloat16>
                                          : find_directions<G, float>;
}

}  // namespace

LaunchStatus launch_muon_directions(const MuonMomentumStep& step,
                                    std::span<const MuonMomentum> tensors, cudaStream_t stream) {
  const auto kernel = step.grad_type == FloatType::BF16 ? choose<BFloat16>(step.momentum_type)
                                                        : choose<float>(step.momentum_type);
  MomentumParams p{.step = step, .table = {}};
  for (const MuonMomentum& t : tensors) {
    const bool aligned =
        starts_aligned(t.grad) && starts_aligned(t.momentum) && starts_aligned(t.direction);
    p.table.add({t.grad, t.momentum, t.direction, t.elements, 0, aligned}, kRun);
    if (!p.table.is_full()) continue;
    const LaunchStatus status = launch(p, kernel, stream);
    if (!status.ok()) return status;
  }
  return launch(p, kernel, stream);
}

LaunchStatus launch_muon_weights(const MuonWeightStep& step, std::span<const MuonWeight> tensors,
                                 cudaStream_t stream) {
  const auto kernel =
      step.weight_type == FloatType::BF16 ? step_weights<BFloat16> : step_weights<float>;
  WeightParams p{.step = step, .table = {}};
  for (const MuonWeight& t : tensors) {
    const bool aligned =
        starts_aligned(t.direction) && starts_aligned(t.weight) && starts_aligned(t.copy);
    p.table.add({t.direction, t.weight, t.copy, t.elements, t.weight_decay, t.scale, 0, aligned},
                kRun);
    if (!p.table.is_full()) continue;
    const LaunchStatus status = launch(p, kernel, stream);
    if (!status.ok()) return status;
  }
  return launch(p, kernel, stream);
}

}  // namespace moe8::cuda
