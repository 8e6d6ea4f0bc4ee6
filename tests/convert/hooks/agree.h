// SPDX-License-Identifier: BSD-3-Clause
// Ways in which people write a product (styles), against the public function of moe8/linear.h or
// moe8/grouped_mm.h with the same config: result and gradients, bit for bit.
#pragma once

#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "convert/aten_hooks.h"
#include "moe8/grouped_mm.h"
#include "moe8/linear.h"
#include "testing/compare.h"
#include "testing/fill.h"
#include "weights/tags.h"

namespace moe8::testing {

using Weights = std::vector<at::Tensor>;
/// Of an input and weights.
using Product = std::function<at::Tensor(const at::Tensor& x, const Weights& weights)>;

inline at::Tensor normal(at::IntArrayRef shape, at::ScalarType dtype = at::kBFloat16,
                         uint64_t seed = 1) {
  return wide_normal(shape, dtype, seed, 1);
}

/// The config of a product of its own whose result has the dtype of its operands.
inline Config with_dtype(Config config, at::ScalarType dtype) {
  std::visit(
      [&](auto& c) {
        if constexpr (requires { c.out_dtype; }) c.out_dtype = dtype;
      },
      config);
  return config;
}

/// The function that a product of x [..., K] with one matrix B [K, N] stands for: one group.
inline at::Tensor one_group(const at::Tensor& x, const at::Tensor& B, const Config& config) {
  const at::Tensor A = x.reshape({-1, B.size(0)});
  const at::Tensor y = quantize_then_scaled_grouped_mm(A, B.unsqueeze(0), offs_of({A.size(0)}),
                                                       with_dtype(config, x.scalar_type()));
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = B.size(1);
  return y.view(sizes);
}

/// The function that a batched product of x [E, T, K] with B [E, K, N] stands for: equal groups.
inline at::Tensor equal_groups(const at::Tensor& x, const at::Tensor& B, const Config& config) {
  const std::vector<int64_t> rows(B.size(0), x.size(1));
  return quantize_then_scaled_grouped_mm(x.reshape({-1, x.size(2)}), B, offs_of(rows),
                                         with_dtype(config, x.scalar_type()))
      .view({x.size(0), x.size(1), B.size(2)});
}

/// Result of the product, then the gradients of x and of the weights, which are leaves made of the
/// values given, converted when there is a config.
inline std::vector<at::Tensor> results_of(const Product& product, const at::Tensor& x_value,
                                          const Weights& values,
                                          const std::optional<Config>& config) {
  const at::Tensor x = x_value.detach().clone().requires_grad_();
  Weights weights;
  for (const at::Tensor& value : values) {
    weights.push_back(value.detach().clone().requires_grad_());
    if (config) set_tag(weights.back(), *config);
  }
  const at::Tensor y = product(x, weights);
  y.backward(normal(y.sizes(), y.scalar_type(), 99));
  std::vector<at::Tensor> results{y.detach(), x.grad()};
  for (const at::Tensor& weight : weights) results.push_back(weight.grad());
  return results;
}

inline void expect_equal(const std::vector<at::Tensor>& expected,
                         const std::vector<at::Tensor>& got) {
  ASSERT_EQ(expected.size(), got.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(expected[i].defined() && got[i].defined()) << "result " << i;
    EXPECT_TRUE(same_bits(expected[i].contiguous(), got[i].contiguous())) << "result " << i;
  }
}

/// The style, with converted weights, gives what `function` gives with plain ones; its result is
/// contiguous as LibTorch's is; and without gradients and in InferenceMode it is the same.
inline void expect_agreement(const std::string& name, const Product& style, const Product& function,
                             const at::Tensor& x, const Weights& values, const Config& config) {
  SCOPED_TRACE(name + ", " + to_string(config) + ", " + c10::toString(x.scalar_type()));
  install_aten_hooks();
  const std::vector<at::Tensor> got = results_of(style, x, values, config);
  expect_equal(results_of(function, x, values, std::nullopt), got);
  EXPECT_FALSE(at::equal(results_of(style, x, values, std::nullopt)[0], got[0]))
      << "the same in high precision: the comparison shows nothing";

  Weights weights;
  for (const at::Tensor& value : values) {
    weights.push_back(value.detach().clone());
    set_tag(weights.back(), config);
  }
  {
    const at::NoGradGuard no_grad;
    EXPECT_TRUE(same_bits(got[0], style(x, weights))) << "no_grad";
  }
  const c10::InferenceMode inference;
  EXPECT_TRUE(same_bits(got[0], style(x, weights))) << "InferenceMode";
}

inline const std::vector<Config>& grouped_configs() {
  static const std::vector<Config> configs{recipe("mxfp8_rceil"), recipe("fp8_rowwise")};
  return configs;
}
inline const std::vector<Config>& linear_configs() {
  static const std::vector<Config> configs{recipe("mxfp8_emulated"), recipe("tensorwise"),
                                           recipe("rowwise")};
  return configs;
}
inline const std::vector<at::ScalarType>& dtypes() {
  static const std::vector<at::ScalarType> list{at::kBFloat16, at::kFloat};
  return list;
}

inline std::string grad_fn_of(const at::Tensor& tensor) {
  const auto& grad_fn = tensor.grad_fn();
  return grad_fn ? grad_fn->name() : "(none)";
}

}  // namespace moe8::testing
