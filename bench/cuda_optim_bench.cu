// SPDX-License-Identifier: BSD-3-Clause
// Time of an optimizer step (norm of the gradients, clipping, AdamW, bf16 weights) over the
// parameters of the 300m and 4b models, against what its bytes cost at 4.3 TB/s; and a copy.
// Stand-alone, without Torch.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <vector>

#include "cuda/device_buffer.h"
#include "cuda/optim/adamw.h"
#include "cuda/optim/gradients.h"

namespace moe8::cuda {
namespace {

using testing::DeviceBuffer;
using testing::require;

constexpr double kBytesPerSecond = 4.3e12;  // what an H200 reads and writes
constexpr int kRounds = 11;

struct Model {
  const char* name;
  int64_t dim, layers, heads, kv_heads, head_dim, experts, hidden, vocab;
};

constexpr Model kModels[] = {{"300m", 768, 12, 12, 4, 64, 32, 320, 256},
                             {"4b", 2048, 12, 32, 4, 128, 64, 768, 256}};

std::vector<int64_t> parameters_of(const Model& m) {
  std::vector<int64_t> sizes{m.vocab * m.dim};
  const int64_t width = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
  for (int64_t layer = 0; layer < m.layers; ++layer) {
    sizes.insert(sizes.end(), {m.dim * width, m.dim * kv, m.dim * kv, m.dim * width, m.dim, m.dim,
                               m.dim * m.experts});
    for (int w = 0; w < 3; ++w) sizes.push_back(m.experts * m.dim * m.hidden);
  }
  sizes.insert(sizes.end(), {m.dim, m.vocab * m.dim});
  return sizes;
}

struct Case {
  const char* name;
  FloatType grad, weight, moment;
  bool copies;
  int bytes;  // an element, the norm's reading of the gradients included
};

constexpr auto B = FloatType::BF16, F = FloatType::F32;
constexpr Case kCases[] = {{"masters, float32 moments", B, F, F, true, 30},
                           {"masters, bf16 moments", B, F, B, true, 22},
                           {"masters, summed gradients", F, F, F, true, 34},
                           {"float32 weights", F, F, F, false, 32},
                           {"bf16 weights and moments", B, B, B, false, 16}};

double median_ms(const std::function<void()>& work) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin), cudaEventCreate(&end);
  std::vector<float> times;
  for (int round = 0; round < kRounds; ++round) {
    cudaEventRecord(begin);
    work();
    cudaEventRecord(end);
    require(cudaEventSynchronize(end), "time");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (round > 0) times.push_back(ms);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

void measure(const Model& model, const Case& c, uint8_t* memory, size_t memory_bytes) {
  const std::vector<int64_t> sizes = parameters_of(model);
  size_t used = 0;
  const auto take = [&](int64_t elements, FloatType type) {
    uint8_t* const p = memory + used;
    used += (static_cast<size_t>(elements) * (type == B ? 2 : 4) + 511) / 512 * 512;
    return p;
  };
  std::vector<AdamWTensor> tensors;
  std::vector<Gradient> gradients;
  int64_t total = 0;
  for (const int64_t n : sizes) {
    AdamWTensor t{take(n, c.grad),
                  take(n, c.weight),
                  c.copies ? reinterpret_cast<BFloat16*>(take(n, B)) : nullptr,
                  take(n, c.moment),
                  take(n, c.moment),
                  n,
                  0.1,
                  static_cast<int32_t>(tensors.size())};
    tensors.push_back(t);
    gradients.push_back({t.grad, c.grad, n});
    total += n;
  }
  if (used > memory_bytes) return;
  require(cudaMemset(memory, 0x11, used), "cudaMemset");
  const DeviceBuffer<AdamWClock> clocks(std::vector<AdamWClock>(tensors.size()));
  const DeviceBuffer<StepScalars> scalars(tensors.size());
  const DeviceBuffer<double> rate(std::vector<double>{1e-3});
  const DeviceBuffer<float> norm(1), sums(gradient_norm_sums(gradients));
  const AdamWStep step{AdamWRule::of(0.9, 0.95, 1e-8, 1.0),
                       c.grad,
                       c.weight,
                       c.moment,
                       clocks.get(),
                       scalars.get(),
                       rate.get(),
                       norm.get()};
  const auto read = [&] {
    require(launch_gradient_norm(gradients, sums.get(), norm.get(), nullptr), "norm");
  };
  const auto update = [&] { require(launch_adamw(step, tensors, nullptr), "adamw"); };
  const double norm_ms = median_ms(read), step_ms = median_ms(update);
  const double both_ms = median_ms([&] { read(), update(); });
  const size_t half = std::min<size_t>(used / 2, size_t{8} << 30);
  const double copy_ms = median_ms([&] {
    require(cudaMemcpyAsync(memory + half, memory, half, cudaMemcpyDeviceToDevice), "copy");
  });
  const double bytes = static_cast<double>(total) * c.bytes;
  const double floor_ms = bytes / kBytesPerSecond * 1e3;
  std::printf(
      "%-5s %-26s %6.2f G  norm %7.3f ms  adamw %7.3f ms  both %7.3f ms  %5.0f GB/s  "
      "%.2f x floor %7.3f ms  (memcpy %5.0f GB/s)\n",
      model.name, c.name, static_cast<double>(total) / 1e9, norm_ms, step_ms, both_ms,
      bytes / both_ms / 1e6, both_ms / floor_ms, floor_ms,
      2.0 * static_cast<double>(half) / copy_ms / 1e6);
}

}  // namespace
}  // namespace moe8::cuda

int main() {
  using namespace moe8::cuda;
  size_t free_bytes = 0, all = 0;
  if (cudaMemGetInfo(&free_bytes, &all) != cudaSuccess) {
    std::printf("no GPU\n");
    return 77;
  }
  const size_t bytes = free_bytes / 16 * 15;
  void* memory = nullptr;
  moe8::testing::require(cudaMalloc(&memory, bytes), "cudaMalloc");
  for (const Model& model : kModels) {
    for (const Case& c : kCases) measure(model, c, static_cast<uint8_t*>(memory), bytes);
  }
  cudaFree(memory);
}
