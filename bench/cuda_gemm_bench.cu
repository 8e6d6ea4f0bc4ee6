// SPDX-License-Identifier: BSD-3-Clause
// Times every grouped GEMM kernel of src/cuda/gemm/ on the shapes of bench/shapes.h with ragged
// groups, interleaved, with the error against float64 sums of the same codes on sampled outputs. No
// Torch.
//
//   cuda_gemm_bench [ROUNDS] [SHAPE...]
//   cuda_gemm_bench ROUNDS sums    gradients of experts' weights that are added up in float32
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "cuda/device_buffer.h"
#include "cuda/gemm/grouped_gemm.h"
#include "cuda/optim/gradients.h"
#include "formats/integers.h"
#include "shapes.h"

namespace {

using namespace moe8::cuda;

using moe8::FloatType;
using moe8::Gemm;
using moe8::round_up;
using moe8::testing::DeviceBuffer;
using moe8::testing::require;
using Shape = moe8::bench::GroupedShape;

__device__ uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

__device__ float normal_of(uint64_t seed) {
  const uint64_t bits = mix(seed * 0x9E3779B97F4A7C15ull + 1);
  const float u = (static_cast<float>(static_cast<uint32_t>(bits)) + 1.0f) * 2.3283064e-10f;
  const float v = static_cast<float>(bits >> 32) * 2.3283064e-10f;
  return sqrtf(-2.0f * logf(u)) * __cosf(6.2831853f * v);
}

// Normal values scaled so that the largest of a row nears the largest code, as quantizers leave
// them.
template <typename T>
__global__ void fill(T* x, int64_t count, uint64_t seed) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const float value = normal_of(seed + static_cast<uint64_t>(i)) * 90.0f;
    if constexpr (sizeof(T) == 1) {
      x[i] = __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
    } else {
      x[i] = __float2bfloat16(value);
    }
  }
}

__device__ double value_of(uint8_t code) {
  __nv_fp8_e4m3 x;
  x.__x = code;
  return static_cast<double>(static_cast<float>(x));
}
__device__ double value_of(__nv_bfloat16 x) {
  return static_cast<double>(__bfloat162float(x));
}

/// One dot product a block: element i of left and right lies at their base + i * step.
struct Sample {
  int64_t left, right, out;
  int64_t left_step, right_step;
  int length;
  float scale;
};

template <typename T>
__global__ void sample_error(const Sample* samples, const T* left, const T* right,
                             const __nv_bfloat16* out, double* error, double* norm) {
  const Sample s = samples[blockIdx.x];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < s.length; i += blockDim.x) {
    sum += value_of(left[s.left + i * s.left_step]) * value_of(right[s.right + i * s.right_step]);
  }
  __shared__ double partial[128];
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0;
  for (double x : partial) total += x;
  total *= static_cast<double>(s.scale);
  const double difference = static_cast<double>(__bfloat162float(out[s.out])) - total;
  error[blockIdx.x] = difference * difference;
  norm[blockIdx.x] = total * total;
}

/// End rows of groups between half and one and a half times the mean, multiples of nothing.
std::vector<int32_t> ragged(int64_t M, int64_t E) {
  std::mt19937 rng(static_cast<unsigned>(E * 7 + 1));
  std::vector<double> weights;
  double total = 0, sum = 0;
  for (int64_t e = 0; e < E; ++e) total += weights.emplace_back(0.5 + (rng() % 1000) / 1000.0);
  std::vector<int32_t> offs;
  for (double w : weights) {
    sum += w;
    offs.push_back(static_cast<int32_t>(static_cast<double>(M) * sum / total));
  }
  offs.back() = static_cast<int32_t>(M);
  return offs;
}

constexpr float kScale = 0.015625f;
constexpr int kSamples = 256;

/// One product with its operands on the device.
struct Product {
  GroupedGemmArgs args;
  std::vector<Sample> samples;
  std::unique_ptr<DeviceBuffer<int32_t>> offs, starts;
};

template <typename T>
Product make_product(const Shape& s, Gemm kind, const std::vector<int32_t>& offs, T* left, T* right,
                     const float* scales, void* out) {
  constexpr bool kCodes = sizeof(T) == 1;
  const bool weight = kind == Gemm::GRAD_WEIGHT;
  std::vector<int32_t> starts;
  int64_t padded = 0;
  for (int64_t e = 0; e < s.E; ++e) {
    starts.push_back(static_cast<int32_t>(padded));
    padded += round_up(offs[e] - (e > 0 ? offs[e - 1] : 0), kGroupPadding);
  }
  Product p;
  p.offs = std::make_unique<DeviceBuffer<int32_t>>(offs);
  p.starts = std::make_unique<DeviceBuffer<int32_t>>(starts);
  p.args = GroupedGemmArgs{.kind = kind,
                           .element = kCodes ? GemmElement::E4M3 : GemmElement::BF16,
                           .output = FloatType::BF16,
                           .M = s.M,
                           .N = s.N,
                           .K = s.K,
                           .E = s.E,
                           .left = left,
                           .right = right,
                           .offs = p.offs->get(),
                           .padded_starts = p.starts->get(),
                           .padded_tokens = padded,
                           .row_scale = scales,
                           .col_scale = scales,
                           .out = out,
                           .stream = nullptr};
  const int64_t rows = weight ? s.N : s.M;
  const int64_t cols = kind == Gemm::OUT ? s.N : s.K;
  const int64_t depth = kind == Gemm::OUT ? s.K : s.N;
  p.args.out_pitch = cols;
  p.args.left_pitch = weight ? (kCodes ? p.args.padded_tokens : s.N) : depth;
  p.args.right_pitch = weight ? (kCodes ? p.args.padded_tokens : s.K) : kCodes ? depth : s.K;

  std::mt19937_64 rng(5);
  for (int i = 0; i < kSamples; ++i) {
    const int64_t r = static_cast<int64_t>(rng() % static_cast<uint64_t>(rows));
    const int64_t c = static_cast<int64_t>(rng() % static_cast<uint64_t>(cols));
    Sample x{.scale = kCodes ? kScale * kScale : 1.0f};
    if (weight) {
      const auto e = static_cast<int64_t>(rng() % static_cast<uint64_t>(s.E));
      const int64_t begin = e > 0 ? offs[e - 1] : 0;
      x.length = static_cast<int>(offs[e] - begin);
      x.out = (e * rows + r) * cols + c;
      x.left = kCodes ? r * p.args.left_pitch + starts[e] : begin * s.N + r;
      x.right = kCodes ? c * p.args.right_pitch + starts[e] : begin * s.K + c;
      x.left_step = kCodes ? 1 : s.N;
      x.right_step = kCodes ? 1 : s.K;
    } else {
      const int64_t e = std::upper_bound(offs.begin(), offs.end(), r) - offs.begin();
      const bool across = !kCodes && kind == Gemm::GRAD_INPUT;  // W (E, N, K) as it lies
      x.length = static_cast<int>(depth);
      x.out = r * cols + c;
      x.left = r * depth;
      x.left_step = 1;
      x.right = across ? e * s.N * s.K + c : (e * cols + c) * depth;
      x.right_step = across ? s.K : 1;
    }
    p.samples.push_back(x);
  }
  return p;
}

template <typename T>
double error_of(const Product& p) {
  const DeviceBuffer<double> error(kSamples), norm(kSamples);
  const DeviceBuffer<Sample> samples(p.samples);
  sample_error<<<kSamples, 128>>>(
      samples.get(), static_cast<const T*>(p.args.left), static_cast<const T*>(p.args.right),
      static_cast<const __nv_bfloat16*>(p.args.out), error.get(), norm.get());
  const std::vector<double> e = error.host(), n = norm.host();
  double sum = 0, total = 0;
  for (int i = 0; i < kSamples; ++i) {
    sum += e[i];
    total += n[i];
  }
  return std::sqrt(sum / total);
}

struct Candidate {
  const GroupedGemmVariant* variant;
  double error;
  std::vector<float> times;
};

template <typename T>
void measure(const Shape& s, Gemm kind, const Product& p, int rounds, size_t out_bytes) {
  std::vector<Candidate> candidates;
  for (const auto& variant : grouped_gemm_variants()) {
    if (variant.refuses(p.args) != nullptr) continue;
    alarm(30);  // a kernel that hangs must not hold the machine
    require(cudaMemset(p.args.out, 0xFF, out_bytes), "cudaMemset");
    require(variant.launch(p.args), variant.name);
    candidates.push_back({&variant, error_of<T>(p), {}});
  }
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "cudaEventCreate");
  require(cudaEventCreate(&end), "cudaEventCreate");
  for (int round = 0; round < rounds; ++round) {
    for (Candidate& c : candidates) {
      alarm(30);
      require(cudaEventRecord(begin), "cudaEventRecord");
      c.variant->launch(p.args);
      require(cudaEventRecord(end), "cudaEventRecord");
      require(cudaEventSynchronize(end), c.variant->name);
      float ms = 0;
      require(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
      if (round > 0) c.times.push_back(ms);
    }
  }
  alarm(0);
  const auto* chosen = choose_grouped_gemm(p.args).chosen;
  for (Candidate& c : candidates) {
    std::sort(c.times.begin(), c.times.end());
    const double ms = c.times[c.times.size() / 2];
    const double flop =
        2.0 * static_cast<double>(s.M) * static_cast<double>(s.N) * static_cast<double>(s.K);
    std::printf("%-3s %-4s %-11s %-32s %8.3f ms %6.0f TFLOP/s (best %6.0f)  error %.1e%s\n", s.name,
                sizeof(T) == 1 ? "fp8" : "bf16", to_string(kind), c.variant->name, ms,
                flop / ms * 1e-9, flop / c.times.front() * 1e-9, c.error,
                c.variant == chosen ? "  <- chosen" : "");
  }
  std::fflush(stdout);
}

template <typename T>
void bench_shape(const Shape& s, int rounds) {
  const std::vector<int32_t> offs = ragged(s.M, s.E);
  const int64_t tokens = s.M + kGroupPadding * s.E;
  const int64_t wide = std::max(s.N, s.K);
  const DeviceBuffer<T> left(static_cast<size_t>(tokens * wide));
  const DeviceBuffer<T> right(static_cast<size_t>(std::max(tokens * s.K, s.E * s.N * s.K)));
  const DeviceBuffer<__nv_bfloat16> out(static_cast<size_t>(std::max(s.M * wide, s.E * s.N * s.K)));
  const DeviceBuffer<float> scales(
      std::vector<float>(static_cast<size_t>(std::max(s.M, s.E * wide)), kScale));
  for (auto kind : {Gemm::OUT, Gemm::GRAD_INPUT, Gemm::GRAD_WEIGHT}) {
    fill<<<2048, 256>>>(left.get(), static_cast<int64_t>(left.size()), 1);
    fill<<<2048, 256>>>(right.get(), static_cast<int64_t>(right.size()), 1ull << 40);
    const Product p = make_product(s, kind, offs, left.get(), right.get(), scales.get(), out.get());
    if (sizeof(T) == 1 && kind == Gemm::GRAD_WEIGHT) {
      // The columns between groups are zero in real copies.
      const std::vector<int32_t> starts = p.starts->host();
      for (size_t e = 0; e < starts.size(); ++e) {
        const int64_t end = starts[e] + offs[e] - (e > 0 ? offs[e - 1] : 0);
        const int64_t next = e + 1 < starts.size() ? starts[e + 1] : p.args.padded_tokens;
        for (auto [data, rows] : {std::pair{left.get(), s.N}, {right.get(), s.K}}) {
          require(cudaMemset2D(data + end, static_cast<size_t>(p.args.left_pitch), 0,
                               static_cast<size_t>(next - end), static_cast<size_t>(rows)),
                  "cudaMemset2D");
        }
      }
    }
    measure<T>(s, kind, p, rounds, out.size() * sizeof(__nv_bfloat16));
  }
}

// ---- sums of gradients ----------------------------------------------------------
/// The expert layers of configs/300m.toml and configs/4b_bench.toml.
constexpr Shape kSummedShapes[] = {{"300m w1", 65536, 320, 768, 32},
                                   {"300m w2", 65536, 768, 320, 32},
                                   {"4b w1", 131072, 768, 2048, 64},
                                   {"4b w2", 131072, 2048, 768, 64}};

struct Way {
  const char* name;
  std::function<void(int64_t)> run;  // into one of several copies, so that no cache holds it
  std::vector<float> times;
};

/// Medians of `rounds` turns of a few launches each, in turns.
void time_ways(std::vector<Way>& ways, int rounds) {
  constexpr int kLaunches = 8;
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "cudaEventCreate");
  require(cudaEventCreate(&end), "cudaEventCreate");
  for (int round = 0; round < rounds; ++round) {
    for (Way& way : ways) {
      alarm(30);
      require(cudaEventRecord(begin), "cudaEventRecord");
      for (int i = 0; i < kLaunches; ++i) way.run(i);
      require(cudaEventRecord(end), "cudaEventRecord");
      require(cudaEventSynchronize(end), way.name);
      float ms = 0;
      require(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
      if (round > 0) way.times.push_back(1000 * ms / kLaunches);
    }
  }
  alarm(0);
  for (Way& way : ways) {
    std::sort(way.times.begin(), way.times.end());
    std::printf("  %s %.1f us", way.name, way.times[way.times.size() / 2]);
  }
  std::printf("\n");
  std::fflush(stdout);
}

template <typename T>
void bench_sums(const Shape& s, int rounds) {
  constexpr int64_t kCopies = 4;
  const std::vector<int32_t> offs = ragged(s.M, s.E);
  const int64_t wide = std::max(s.N, s.K), elements = s.E * s.N * s.K;
  const auto tokens = static_cast<size_t>((s.M + kGroupPadding * s.E) * wide);
  const DeviceBuffer<T> left(tokens), right(tokens);
  const DeviceBuffer<float> sums(static_cast<size_t>(elements * kCopies));
  const DeviceBuffer<__nv_bfloat16> gradients(static_cast<size_t>(elements * kCopies));
  const DeviceBuffer<float> scales(std::vector<float>(static_cast<size_t>(s.E * wide), kScale));
  fill<<<2048, 256>>>(left.get(), static_cast<int64_t>(tokens), 1);
  fill<<<2048, 256>>>(right.get(), static_cast<int64_t>(tokens), 1ull << 40);
  require(cudaMemset(sums.get(), 0, sums.size() * sizeof(float)), "cudaMemset");
  const Product p =
      make_product(s, Gemm::GRAD_WEIGHT, offs, left.get(), right.get(), scales.get(), sums.get());
  const VariantChoice choice = choose_grouped_gemm(p.args);
  const auto multiply = [&](FloatType output, bool adds) {
    return [&, output, adds](int64_t i) {
      GroupedGemmArgs args = p.args;
      const int64_t first = i % kCopies * elements;
      args.output = output;
      args.adds = adds;
      args.out = output == FloatType::F32 ? static_cast<void*>(sums.get() + first)
                                          : static_cast<void*>(gradients.get() + first);
      require(launch_grouped_gemm(choice, args), choice.chosen->name);
    };
  };
  const auto to_bf16 = multiply(FloatType::BF16, false);
  const auto then_sum = [&](int64_t i) {
    to_bf16(i);
    float* const sum = sums.get() + i % kCopies * elements;
    const GradientSum one{
        sum, FloatType::F32, gradients.get() + i % kCopies * elements, FloatType::BF16,
        sum, elements};
    require(launch_gradient_sums({&one, 1}, nullptr), "launch_gradient_sums");
  };
  std::vector<Way> ways{{"bf16", to_bf16, {}},
                        {"float32", multiply(FloatType::F32, false), {}},
                        {"bf16, then the sum", then_sum, {}},
                        {"added", multiply(FloatType::F32, true), {}}};
  std::printf("%-7s %-4s %-28s", s.name, sizeof(T) == 1 ? "fp8" : "bf16", choice.chosen->name);
  time_ways(ways, rounds);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::max(2, std::atoi(argv[1])) : 12;
  cudaDeviceProp device;
  require(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  std::printf("%s, ragged groups, bf16 output, median of %d\n", device.name, rounds - 1);
  if (argc > 2 && std::strcmp(argv[2], "sums") == 0) {
    for (const Shape& s : kSummedShapes) {
      bench_sums<uint8_t>(s, rounds);
      bench_sums<__nv_bfloat16>(s, rounds);
    }
    return 0;
  }
  for (const Shape& s : moe8::bench::kGpuGroupedShapes) {
    bool wanted = argc <= 2;
    for (int i = 2; i < argc; ++i) wanted = wanted || std::strcmp(argv[i], s.name) == 0;
    if (!wanted) continue;
    bench_shape<uint8_t>(s, rounds);
    bench_shape<__nv_bfloat16>(s, rounds);
  }
  return 0;
}
