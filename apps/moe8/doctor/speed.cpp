// SPDX-License-Identifier: BSD-3-Clause
#include "doctor/speed.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

#include "moe8/float8.h"
#include "moe8/linear.h"
#include "moe8/mx.h"

namespace moe8 {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kGemmSize = 512;  // 0.27 GFLOP: milliseconds on anything
constexpr int64_t kRows = 4096;     // with kCols 16 MiB of bf16: the activations of a small layer
constexpr int64_t kCols = 2048;
constexpr int64_t kCopyBytes = int64_t{128} << 20;  // past most caches
constexpr double kSecondsEach = 0.25;               // six of these

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The best of the runs that fit into kSecondsEach: other work of the machine only slows.
template <typename F>
double best_seconds(F f) {
  f();  // first touch, thread pool, kernel choice
  double best = std::numeric_limits<double>::infinity();
  const Clock::time_point begin = Clock::now();
  do {
    const Clock::time_point start = Clock::now();
    f();
    best = std::min(best, seconds_since(start));
  } while (seconds_since(begin) < kSecondsEach);
  return best;
}

double gemm_gflops(at::ScalarType dtype) {
  const at::Tensor a = at::randn({kGemmSize, kGemmSize}, at::kFloat).to(dtype);
  at::Tensor out = at::empty_like(a);
  const double flops = 2.0 * kGemmSize * kGemmSize * kGemmSize;
  return flops / best_seconds([&] { at::mm_out(out, a, a); }) * 1e-9;
}

// One thread, as memcpy is; every byte is read once and written once.
double memcpy_gbytes() {
  const std::vector<char> from(kCopyBytes, 1);
  std::vector<char> to(kCopyBytes);
  const double seconds = best_seconds([&] { std::memcpy(to.data(), from.data(), from.size()); });
  return kCopyBytes / seconds * 1e-9;
}

template <typename F>
MeasuredSpeed quantizer(const char* what, const at::Tensor& x, F quantize) {
  const double bytes = static_cast<double>(x.nbytes());
  return {what, bytes / best_seconds([&] { quantize(x); }) * 1e-9, "GB/s read"};
}

// Work on a GPU is queued: many products, then one value of the last, which waits for all of them.
template <typename F>
double gpu_tflops(double flops, F product) {
  constexpr int kQueued = 16;
  const double seconds = best_seconds([&] {
    at::Tensor last;
    for (int i = 0; i < kQueued; ++i) last = product();
    last.view(-1)[0].item();
  });
  return kQueued * flops / seconds * 1e-12;
}

}  // namespace

std::vector<MeasuredSpeed> measure_gpu(const at::Device& gpu) {
  constexpr int64_t kTokens = 8192, kFeatures = 4096;  // large enough to fill any GPU
  const at::NoGradGuard no_grad;
  const auto bf16 = at::TensorOptions().device(gpu).dtype(at::kBFloat16);
  const at::Tensor x = at::randn({kTokens, kFeatures}, bf16);
  const at::Tensor weight = at::randn({kFeatures, kFeatures}, bf16);
  const double flops = 2.0 * kTokens * kFeatures * kFeatures;
  const std::string where = gpu.str() + " ";
  std::vector<MeasuredSpeed> speeds{{where + "bf16 product",
                                     gpu_tflops(flops, [&] { return at::mm(x, weight.t()); }),
                                     "TFLOP/s"}};
  for (const char* name : {"rowwise", "mxfp8_cublas_rceil"}) {
    const Config config = recipe(name);
    speeds.push_back(
        {where + name + " linear",
         gpu_tflops(flops, [&] { return quantize_then_linear(x, weight, {}, config); }),
         "TFLOP/s"});
  }
  return speeds;
}

Speeds measure_speeds() {
  Speeds speeds;
  speeds.bf16_gflops = gemm_gflops(at::kBFloat16);
  speeds.float32_gflops = gemm_gflops(at::kFloat);
  const at::Tensor x = at::randn({kRows, kCols}, at::kFloat).to(at::kBFloat16);
  speeds.rows = {
      {"bf16 product", speeds.bf16_gflops, "GFLOP/s"},
      {"float32 product", speeds.float32_gflops, "GFLOP/s"},
      {"memcpy", memcpy_gbytes(), "GB/s copied"},
      quantizer("MXFP8 along rows", x,
                [](const at::Tensor& t) {
                  return quantize_mx(t, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 1);
                }),
      quantizer("MXFP8 along columns", x,
                [](const at::Tensor& t) {
                  return quantize_mx(t, ElemDtype::E4M3, ScaleCalculationMode::RCEIL, 0);
                }),
      quantizer("FP8 per row", x,
                [](const at::Tensor& t) {
                  return quantize_float8(t, Float8Granularity::axiswise(1), ElemDtype::E4M3, true);
                }),
  };
  return speeds;
}

}  // namespace moe8
