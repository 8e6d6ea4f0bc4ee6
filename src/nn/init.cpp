// SPDX-License-Identifier: BSD-3-Clause
// Parameters without weights, and random initial ones.
#include "nn/init.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Dispatch.h>
#include <ATen/core/PhiloxRNGEngine.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <mutex>

#include "device/parallel.h"

namespace moe8 {
namespace {

thread_local bool without_init = false;
thread_local std::optional<at::ScalarType> room_for_weights;

// Everything below is made of IEEE operations, which no compiler may fuse (-ffp-contract=off): the
// standard library's log and erf differ from machine to machine in their last bits.

constexpr double kCutoff = 3.0;
constexpr double kBelowCutoff = 0.0013498980316300945;  // of a normal distribution

// The natural logarithm of a normal number, to about 12 digits.
double log_of(double x) {
  auto bits = std::bit_cast<uint64_t>(x);
  constexpr uint64_t kFraction = (uint64_t{1} << 52) - 1, kOne = uint64_t{1023} << 52;
  auto exponent = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1023);
  double m = std::bit_cast<double>((bits & kFraction) | kOne);  // in [1, 2)
  if (m > 1.4142135623730951) m *= 0.5, exponent += 1;
  const double s = (m - 1) / (m + 1), s2 = s * s;  // log m = 2 atanh s
  double sum = 1.0 / 15;
  for (const double odd : {13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0}) sum = sum * s2 + 1 / odd;
  return 2 * s * sum + exponent * 0.6931471805599453;
}

// The number below which a standard normal one is with probability p, 0 < p < 1, to about 7 digits:
// Wichura's algorithm AS 241, PPND7.
double normal_quantile(double p) {
  const double q = p - 0.5;
  if (std::abs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * (((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179) /
           (((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1);
  }
  double r = std::sqrt(-log_of(q < 0 ? p : 1 - p));
  double value = 0;
  if (r <= 5) {
    r -= 1.6;
    value = (((0.17023821103 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777) /
            ((0.12021132975 * r + 0.73700164250) * r + 1);
  } else {
    r -= 5;
    value = (((0.017337203997 * r + 0.42868294337) * r + 3.0812263860) * r + 6.6579051150) /
            ((0.012258202635 * r + 0.24197894225) * r + 1);
  }
  return q < 0 ? -value : value;
}

// Elements [4 block, 4 block + 4) from a Philox counter of their own: who computes which block does
// not matter. `value` makes a number of a probability. The first of `data` is element `first`.
template <typename T, typename Value>
void fill(T* data, int64_t first, int64_t count, uint64_t key, Value value) {
  constexpr int64_t kBlock = 4, kBlocksOfATask = 4096;
  const int64_t first_block = first / kBlock, last = first + count;
  const int64_t blocks = (last + kBlock - 1) / kBlock - first_block;
  parallel_ranges(blocks, kBlocksOfATask, [&](int64_t begin, int64_t end) {
    for (int64_t b = first_block + begin; b < first_block + end; ++b) {
      at::Philox4_32 random(key, static_cast<uint64_t>(b));
      for (int64_t i = b * kBlock; i < std::min((b + 1) * kBlock, last); ++i) {
        const double p = (static_cast<double>(random()) + 0.5) * 0x1p-32;
        if (i >= first) data[i - first] = static_cast<T>(static_cast<float>(value(p)));
      }
    }
  });
}

template <typename Value>
void fill(at::Tensor& parameter, at::Generator& generator, int64_t first, Value value) {
  if (without_init) return;
  const torch::NoGradGuard no_grad;
  uint64_t key = 0;
  {
    const std::lock_guard lock(generator.mutex());
    key = at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
  }
  const bool is_plain = parameter.is_cpu() && parameter.is_contiguous();
  at::Tensor values = is_plain ? parameter.detach()
                               : at::empty(parameter.sizes(), at::dtype(parameter.scalar_type()));
  // NOLINTNEXTLINE(bugprone-lambda-function-name): the macro's own __func__
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, values.scalar_type(), "init", [&] {
    fill(values.mutable_data_ptr<scalar_t>(), first, values.numel(), key, value);
  });
  if (!is_plain) parameter.copy_(values);
}

}  // namespace

WithoutInit::WithoutInit() {
  without_init = true;
}
WithoutInit::~WithoutInit() {
  without_init = false;
}

RoomForWeights::RoomForWeights(at::ScalarType dtype) : before_(room_for_weights) {
  room_for_weights = dtype;
}
RoomForWeights::~RoomForWeights() {
  room_for_weights = before_;
}

at::Tensor new_parameter(at::IntArrayRef sizes, double value) {
  return room_for_weights ? at::empty(sizes, at::dtype(*room_for_weights))
                          : at::full(sizes, value, at::dtype(at::kFloat));
}

namespace {

// LibTorch's constructor fills weights with random numbers, one after the other: where others follow
// it makes one, and room for all takes its place.
torch::nn::Linear make_linear(int64_t in, int64_t out, bool bias) {
  if (!room_for_weights) return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(bias));
  torch::nn::Linear linear(torch::nn::LinearOptions(1, 1).bias(bias));
  linear->options.in_features(in).out_features(out);
  linear->weight.set_data(new_parameter({out, in}, 0));
  if (bias) linear->bias.set_data(new_parameter({out}, 0));
  return linear;
}

}  // namespace

torch::nn::Linear linear_without_bias(int64_t in, int64_t out) {
  return make_linear(in, out, /*bias=*/false);
}

torch::nn::Linear linear_with_bias(int64_t in, int64_t out) {
  return make_linear(in, out, /*bias=*/true);
}

torch::nn::Embedding embedding(int64_t count, int64_t dim) {
  if (!room_for_weights) return torch::nn::Embedding(count, dim);
  torch::nn::Embedding made(1, 1);
  made->options.num_embeddings(count).embedding_dim(dim);
  made->weight.set_data(new_parameter({count, dim}, 0));
  return made;
}

void zero_biases_(std::initializer_list<torch::nn::Linear*> linears) {
  for (torch::nn::Linear* linear : linears) {
    if ((*linear)->bias.defined()) (*linear)->bias.zero_();
  }
}

void trunc_normal_(at::Tensor& parameter, at::Generator& generator, double std, int64_t first) {
  fill(parameter, generator, first, [std](double p) {
    const double within = kBelowCutoff + p * (1 - 2 * kBelowCutoff);
    return std * std::clamp(normal_quantile(within), -kCutoff, kCutoff);
  });
}

void trunc_normal_rows_(at::Tensor& parameter, at::Generator& generator, double std,
                        const Group& group) {
  trunc_normal_(parameter, generator, std, group.rank() * parameter.numel());
}

void trunc_normal_columns_(at::Tensor& parameter, at::Generator& generator, double std,
                           const Group& group) {
  if (group.size() == 1) return trunc_normal_(parameter, generator, std);
  const torch::NoGradGuard no_grad;
  const int64_t columns = parameter.size(1);
  at::Tensor whole =
      at::empty({parameter.size(0), group.size() * columns}, at::dtype(parameter.scalar_type()));
  trunc_normal_(whole, generator, std);
  parameter.copy_(whole.narrow(1, group.rank() * columns, columns));
}

void normal_(at::Tensor& parameter, at::Generator& generator, double std) {
  fill(parameter, generator, 0, [std](double p) { return std * normal_quantile(p); });
}

}  // namespace moe8
