// SPDX-License-Identifier: BSD-3-Clause
// The same passes by LibTorch's operations, for devices without kernels of moe8: the formulas and
// the random bits of src/kernels/adamw.h, with LibTorch's roundings.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>

#include "optim/host_engine.h"

namespace moe8 {
namespace {

constexpr int64_t kLow = 0xFFFFFFFF;

// 32-bit arithmetic in int64; products stay below 2^64 and wrap as unsigned ones do.
at::Tensor scrambled(at::Tensor x) {
  x = (x ^ x.__rshift__(16)) * int64_t{0x85EBCA6B} & kLow;
  x = (x ^ x.__rshift__(13)) * int64_t{0xC2B2AE35} & kLow;
  return x ^ x.__rshift__(16);
}

at::Tensor random_bits(const at::Tensor& like, uint32_t key) {
  const at::Tensor i = at::arange(like.numel(), like.options().dtype(at::kLong));
  return scrambled((i * int64_t{0x9E3779B9} + int64_t{key}) & kLow).view(like.sizes());
}

void store_moment(const at::Tensor& moment, const at::Tensor& value, const at::Tensor& random) {
  if (moment.scalar_type() == at::kFloat) {
    moment.copy_(value);
    return;
  }
  // Dropping the low half of the bits leaves a number that bf16 holds.
  const at::Tensor bits = (value.view(at::kInt) + random.to(at::kInt)) & -0x10000;
  moment.copy_(at::where(value.isnan(), value, bits.view(at::kFloat)));
}

void step_one(const AdamWRule& r, const StepScalars& s, const AdamWItem& x) {
  const at::Tensor g = x.grad.to(at::kFloat) * s.clip;
  const at::Tensor first = x.first.to(at::kFloat) * r.first_decay + g * r.first_share;
  const at::Tensor second = x.second.to(at::kFloat) * r.second_decay + g * r.second_share * g;
  const at::Tensor root = second.sqrt() * s.inverse_root + r.eps;
  x.weight.copy_(x.weight.to(at::kFloat) * s.decay - first / root * s.step_size);
  at::Tensor random;
  if (x.first.scalar_type() != at::kFloat) random = random_bits(x.first, s.key);
  store_moment(x.first, first, random.defined() ? random & 0xFFFF : random);
  store_moment(x.second, second, random.defined() ? random.__rshift__(16) : random);
  if (x.copy.defined()) x.copy.copy_(x.weight);
}

class CompositeOptimEngine : public HostOptimEngine {
 public:
  using HostOptimEngine::HostOptimEngine;

  at::Tensor norm(const std::vector<at::Tensor>& grads) override {
    std::vector<at::Tensor> squares;
    squares.reserve(grads.size());
    for (const at::Tensor& grad : grads) {
      squares.push_back(grad.to(at::kFloat).square().sum(at::kDouble));
    }
    return at::stack(squares).sum().sqrt().to(at::kFloat);
  }

  at::Tensor squares(const std::vector<at::Tensor>& grads) override {
    std::vector<at::Tensor> sums;
    for (const at::Tensor& grad : grads) {
      const int64_t rest = (kNormChunk - grad.numel() % kNormChunk) % kNormChunk;
      const at::Tensor runs =
          at::constant_pad_nd(grad.flatten().to(at::kFloat).square(), {0, rest});
      sums.push_back(runs.view({-1, kNormChunk}).sum(1, /*keepdim=*/false, at::kDouble));
    }
    return at::cat(sums).to(at::kFloat);
  }
  at::Tensor norm_of(const at::Tensor& squares) override {
    return squares.sum(at::kDouble).sqrt().to(at::kFloat);
  }

  void add(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b,
           const std::vector<at::Tensor>& out) override {
    for (size_t i = 0; i < a.size(); ++i) out[i].copy_(a[i].to(at::kFloat) + b[i]);
  }

  void adamw(const AdamWRule& rule, const std::vector<AdamWItem>& items,
             const at::Tensor& norm) override {
    const float value = norm.defined() ? norm.item<float>() : 0;
    for (const AdamWItem& item : items) {
      const StepScalars scalars = begin(item, rule, norm.defined() ? &value : nullptr);
      if (scalars.go != 0) step_one(rule, scalars, item);
    }
  }
};

}  // namespace

std::unique_ptr<OptimEngine> make_composite_optim_engine(size_t parameters) {
  return std::make_unique<CompositeOptimEngine>(parameters);
}

}  // namespace moe8
