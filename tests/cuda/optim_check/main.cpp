// SPDX-License-Identifier: BSD-3-Clause
// Compares the kernels of src/cuda/optim/ with src/reference/adamw.cpp and muon.cpp, byte for byte: hard sizes and
// addresses, then random ones. A program of its own, without Torch: `optim_check [RANDOM_LISTS]`.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>

#include "cuda/comparison.h"
#include "cuda/optim/adamw.h"
#include "cuda/optim/gradients.h"
#include "cuda/optim/muon.h"
#include "reference/adamw.h"
#include "reference/muon.h"

namespace moe8::cuda {
namespace {

size_t bytes_of(FloatType type) {
  return type == FloatType::BF16 ? 2 : 4;
}

Bytes random_numbers(FloatType type, int64_t count, bool positive, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  Bytes bytes(static_cast<size_t>(count) * bytes_of(type));
  for (int64_t i = 0; i < count; ++i) {
    const float x =
        i % 31 == 5 ? 0.0f : normal(rng) * std::exp2(static_cast<float>(rng() % 60) - 40.0f);
    const float value = positive ? std::abs(x) : x;
    if (type == FloatType::F32) {
      std::memcpy(&bytes[static_cast<size_t>(4 * i)], &value, 4);
    } else {
      const BFloat16 rounded = from_float<BFloat16>(value);
      std::memcpy(&bytes[static_cast<size_t>(2 * i)], &rounded, 2);
    }
  }
  return bytes;
}

// Bytes on the host and on the device, `shift` elements behind an aligned address there.
struct Array {
  Array(FloatType type_, int64_t n, int64_t shift, bool positive, std::mt19937& rng)
      : type(type_),
        offset(static_cast<size_t>(shift) * bytes_of(type)),
        host(random_numbers(type, n + shift, positive, rng)),
        device(host) {}

  void* on_host() { return host.data() + offset; }
  void* on_device() const { return device.as<uint8_t>() + offset; }
  void expect_equal_on_device(const std::string& what) const { expect_equal(what, device, host); }

  FloatType type;
  size_t offset;
  Bytes host;
  DeviceBytes device;
};

struct Types {
  FloatType grad, weight, moment;
};

struct Tensor {
  Tensor(const Types& t, int64_t n, int64_t shift, std::mt19937& rng)
      : elements(n),
        grad(t.grad, n, shift, false, rng),
        weight(t.weight, n, shift, false, rng),
        copy(FloatType::BF16, n, shift, false, rng),
        first(t.moment, n, shift, false, rng),
        second(t.moment, n, shift, true, rng) {}

  int64_t elements;
  Array grad, weight, copy, first, second;
};

std::string name_of(const Types& t) {
  const auto name = [](FloatType type) { return type == FloatType::BF16 ? "bf16" : "float32"; };
  return std::string("adamw grad ") + name(t.grad) + " weight " + name(t.weight) + " moments " +
         name(t.moment);
}

// Steps a list of tensors twice, here and there.
void check_steps(const Types& types, const std::vector<int64_t>& sizes, float norm, bool clips,
                 std::mt19937& rng) {
  const AdamWRule rule =
      AdamWRule::of(0.9, 0.999, 1e-8, clips ? 1.0 : std::numeric_limits<double>::infinity());
  const bool copies = types.weight == FloatType::F32 && types.grad == FloatType::BF16;
  std::vector<std::unique_ptr<Tensor>> tensors;
  std::vector<AdamWTensor> list;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int64_t shift = i % 5 == 3 ? 1 : 0;
    Tensor& t = *tensors.emplace_back(std::make_unique<Tensor>(types, sizes[i], shift, rng));
    const double decay = i % 2 == 0 ? 0.1 : 0.0;
    list.push_back({t.grad.on_device(), t.weight.on_device(),
                    copies ? static_cast<BFloat16*>(t.copy.on_device()) : nullptr,
                    t.first.on_device(), t.second.on_device(), t.elements, decay,
                    static_cast<int32_t>(i)});
  }
  std::vector<AdamWClock> clocks(sizes.size());
  const testing::DeviceBuffer<AdamWClock> device_clocks(clocks);
  const testing::DeviceBuffer<StepScalars> scalars(sizes.size());
  const double rate = 1e-3;
  const testing::DeviceBuffer<double> device_rate(std::vector<double>{rate});
  const testing::DeviceBuffer<float> device_norm(std::vector<float>{norm});
  const AdamWStep step{
      rule,          types.grad,        types.weight,     types.moment, device_clocks.get(),
      scalars.get(), device_rate.get(), device_norm.get()};
  for (int time = 0; time < 2; ++time) {
    require(launch_adamw(step, list, nullptr), "launch_adamw");
    require(cudaDeviceSynchronize(), "adamw");
    for (size_t i = 0; i < sizes.size(); ++i) {
      Tensor& t = *tensors[i];
      const StepScalars s =
          begin_step(clocks[i], rule, rate, list[i].weight_decay, &norm, static_cast<uint32_t>(i));
      reference::adamw(
          {rule, s, types.grad, types.weight, types.moment, t.grad.on_host(), t.weight.on_host(),
           copies ? static_cast<BFloat16*>(t.copy.on_host()) : nullptr, t.first.on_host(),
           t.second.on_host()},
          0, t.elements);
    }
  }
  for (const auto& t : tensors) {
    const std::string what = name_of(types) + " of " + std::to_string(t->elements);
    t->weight.expect_equal_on_device(what + ": weight");
    t->copy.expect_equal_on_device(what + ": copy");
    t->first.expect_equal_on_device(what + ": first moment");
    t->second.expect_equal_on_device(what + ": second moment");
  }
  expect(std::memcmp(device_clocks.host().data(), clocks.data(),
                     clocks.size() * sizeof(AdamWClock)) == 0,
         name_of(types) + ": clocks");
}

// Both passes of Muon over a list of tensors, without its products between them.
void check_muon(const Types& types, const std::vector<int64_t>& sizes, const float* norm,
                std::mt19937& rng) {
  const MuonRule rule{0.95f, 1.0f};
  const bool copies = types.weight == FloatType::F32;
  const double rate = 2e-2, decay = 0.1, scale = 3.5;
  std::vector<std::unique_ptr<Tensor>> tensors;
  std::vector<std::unique_ptr<Array>> directions;
  std::vector<MuonMomentum> momenta;
  std::vector<MuonWeight> weights;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int64_t shift = i % 5 == 3 ? 1 : 0;
    Tensor& t = *tensors.emplace_back(std::make_unique<Tensor>(types, sizes[i], shift, rng));
    Array& d = *directions.emplace_back(
        std::make_unique<Array>(FloatType::BF16, sizes[i], shift, false, rng));
    auto* const direction = static_cast<BFloat16*>(d.on_device());
    momenta.push_back({t.grad.on_device(), t.first.on_device(), direction, sizes[i]});
    weights.push_back({direction, t.weight.on_device(),
                       copies ? static_cast<BFloat16*>(t.copy.on_device()) : nullptr, sizes[i],
                       decay, scale});
    auto* const on_host = static_cast<BFloat16*>(d.on_host());
    reference::muon_directions(
        {rule, norm, types.grad, types.moment, t.grad.on_host(), t.first.on_host(), on_host},
        sizes[i]);
    reference::muon_weights(
        {muon_scalars(rate, decay, scale), norm, types.weight, on_host, t.weight.on_host(),
         copies ? static_cast<BFloat16*>(t.copy.on_host()) : nullptr},
        sizes[i]);
  }
  const testing::DeviceBuffer<double> device_rate(std::vector<double>{rate});
  const testing::DeviceBuffer<float> device_norm(std::vector<float>{norm ? *norm : 0.0f});
  const float* const norm_there = norm ? device_norm.get() : nullptr;
  require(launch_muon_directions({rule, types.grad, types.moment, norm_there}, momenta, nullptr),
          "launch_muon_directions");
  require(launch_muon_weights({types.weight, device_rate.get(), norm_there}, weights, nullptr),
          "launch_muon_weights");
  require(cudaDeviceSynchronize(), "muon");
  for (size_t i = 0; i < sizes.size(); ++i) {
    const std::string what = "muon of " + std::to_string(sizes[i]);
    directions[i]->expect_equal_on_device(what + ": direction");
    tensors[i]->first.expect_equal_on_device(what + ": momentum");
    tensors[i]->weight.expect_equal_on_device(what + ": weight");
    tensors[i]->copy.expect_equal_on_device(what + ": copy");
  }
}

void check_norm(const std::vector<int64_t>& sizes, bool broken, std::mt19937& rng) {
  std::vector<std::unique_ptr<Array>> arrays;
  std::vector<Gradient> list;
  std::vector<float> sums;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const FloatType type = i % 3 == 1 ? FloatType::F32 : FloatType::BF16;
    const int64_t shift = i % 4 == 2 ? 1 : 0;
    Array& x = *arrays.emplace_back(std::make_unique<Array>(type, sizes[i], shift, false, rng));
    if (broken && i + 1 == sizes.size() && sizes[i] > 0) {
      std::fill_n(static_cast<uint8_t*>(x.on_host()), bytes_of(type), uint8_t{0x7F});
      std::fill_n(static_cast<uint8_t*>(x.on_host()) + bytes_of(type) - 2, 1, uint8_t{0x80});
      require(cudaMemcpy(x.on_device(), x.on_host(), bytes_of(type), cudaMemcpyHostToDevice),
              "copy");
    }
    list.push_back({x.on_device(), type, sizes[i]});
    for (int64_t at = 0; at < sizes[i]; at += kNormChunk) {
      sums.push_back(reference::sum_of_squares(
          static_cast<uint8_t*>(x.on_host()) + static_cast<size_t>(at) * bytes_of(type), type,
          std::min(kNormChunk, sizes[i] - at)));
    }
  }
  const float expected = reference::norm_of(sums.data(), static_cast<int64_t>(sums.size()));
  expect(gradient_norm_sums(list) == static_cast<int64_t>(sums.size()), "number of sums");
  const testing::DeviceBuffer<float> device_sums(sums.size() + 1), norm(1);
  require(launch_gradient_norm(list, device_sums.get(), norm.get(), nullptr), "norm");
  require(cudaDeviceSynchronize(), "norm");
  const float got = norm.host()[0];
  expect(got == expected || (std::isnan(got) && std::isnan(expected)),
         "norm: expected " + std::to_string(expected) + ", got " + std::to_string(got));
  ++compared;
}

void check_sums(const std::vector<int64_t>& sizes, std::mt19937& rng) {
  std::vector<std::unique_ptr<Array>> arrays;
  std::vector<GradientSum> list;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const FloatType a_type = i % 2 == 0 ? FloatType::F32 : FloatType::BF16;
    const int64_t shift = i % 4 == 2 ? 1 : 0;
    const auto make = [&](FloatType type) -> Array& {
      return *arrays.emplace_back(std::make_unique<Array>(type, sizes[i], shift, false, rng));
    };
    Array &a = make(a_type), &b = make(FloatType::BF16);
    Array& out = a_type == FloatType::F32 ? a : make(FloatType::F32);
    list.push_back({a.on_device(), a_type, b.on_device(), FloatType::BF16,
                    static_cast<float*>(out.on_device()), sizes[i]});
    const auto value = [](Array& x, int64_t at) {
      return x.type == FloatType::F32 ? static_cast<float*>(x.on_host())[at]
                                      : to_float(static_cast<BFloat16*>(x.on_host())[at]);
    };
    for (int64_t at = 0; at < sizes[i]; ++at) {
      static_cast<float*>(out.on_host())[at] = value(a, at) + value(b, at);
    }
  }
  require(launch_gradient_sums(list, nullptr), "sums");
  require(cudaDeviceSynchronize(), "sums");
  for (const auto& x : arrays) x->expect_equal_on_device("sums of gradients");
}

void check_list(const std::vector<int64_t>& sizes, std::mt19937& rng) {
  constexpr auto B = FloatType::BF16, F = FloatType::F32;
  for (const Types& types :
       {Types{B, F, F}, {B, F, B}, {F, F, F}, {F, F, B}, {B, B, F}, {B, B, B}}) {
    check_steps(types, sizes, 0.25f, false, rng);
    check_steps(types, sizes, 3.5f, true, rng);
    check_steps(types, sizes, std::numeric_limits<float>::infinity(), true, rng);
    check_steps(types, sizes, std::nanf(""), false, rng);
    check_muon(types, sizes, nullptr, rng);
    for (const float norm : {0.25f, 3.5f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
      check_muon(types, sizes, &norm, rng);
    }
  }
  check_norm(sizes, false, rng);
  check_norm(sizes, true, rng);
  check_sums(sizes, rng);
}

void check_all(int random_lists) {
  std::mt19937 rng(1);
  check_list({1, 7, 8, 9, 2047, 2048, 2049, 16383, 16384, 16385, 40000, 0, 100000}, rng);
  check_list(std::vector<int64_t>(100, 333), rng);  // several launches
  check_list({0}, rng);
  for (int i = 0; i < random_lists; ++i) {
    std::vector<int64_t> sizes(1 + rng() % 60);
    for (int64_t& size : sizes)
      size = int64_t{1} << (rng() % 16), size += static_cast<int64_t>(rng() % 9);
    check_list(sizes, rng);
  }
  AdamWStep step{};
  step.grad_type = FloatType::F32, step.weight_type = FloatType::BF16;
  expect(!launch_adamw(step, {}, nullptr).ok(), "float32 gradients of bf16 weights are refused");
}

}  // namespace
}  // namespace moe8::cuda

int main(int argc, char** argv) {
  return moe8::cuda::run_checks(argc, argv, 4, "bytes", "lists", moe8::cuda::check_all);
}
