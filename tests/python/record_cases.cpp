// SPDX-License-Identifier: BSD-3-Clause
// Results of the C++ operations on fixed inputs, into a safetensors file that python/tests compare
// with, bit for bit: test_python_cases FILE. Names are OPERATION/CASE/TENSOR.
#include <ATen/TensorOperators.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>

#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "moe8/experts.h"
#include "moe8/float8.h"
#include "moe8/grouped_mm.h"
#include "moe8/linear.h"
#include "moe8/mx.h"
#include "moe8/safetensors.h"

namespace {

std::vector<std::pair<std::string, at::Tensor>> results;

void keep(const std::string& name, const at::Tensor& x) {
  results.emplace_back(name, x.detach().contiguous());
}

// Normal numbers over many magnitudes, so that scales differ.
at::Tensor numbers(at::IntArrayRef sizes, at::ScalarType dtype) {
  return (at::randn(sizes) * at::randn(sizes).exp()).to(dtype);
}

at::Tensor input(const std::string& name, const at::Tensor& x) {
  keep(name, x);
  return x.detach().clone().requires_grad_(true);
}

at::Tensor offs_of(const std::string& name, const std::vector<int>& ends) {
  const at::Tensor offs = at::tensor(ends, at::kInt);
  keep(name, offs);
  return offs;
}

void record_quantizers() {
  const at::Tensor offs = offs_of("quantize/all/offs", {5, 5, 70, 96});
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    const std::string of = dtype == at::kFloat ? "f32" : "bf16";
    const at::Tensor x = numbers({100, 72}, dtype);
    keep("quantize/" + of + "/x", x);
    for (const int elem : {0, 1, 2, 3, 4}) {
      for (const int mode : {0, 1, 2, 3}) {
        const auto e = static_cast<moe8::ElemDtype>(elem);
        const auto m = static_cast<moe8::ScaleCalculationMode>(mode);
        const std::string name = "mx/" + of + "-" + std::string(moe8::to_string(e)) + "-" +
                                 std::string(moe8::to_string(m)) + "/";
        const moe8::MXTensor rows = moe8::quantize_mx(x, e, m, 1);
        const moe8::MXTensor groups = moe8::quantize_mx(x, e, m, 0, offs);
        keep(name + "data", rows.data.view(at::kByte));
        keep(name + "scale", rows.scale.view(at::kByte));
        keep(name + "group_data", groups.data.view(at::kByte));
        keep(name + "group_scale", groups.scale.view(at::kByte));
        keep(name + "values", moe8::dequantize(groups));
      }
    }
    for (const int elem : {0, 1}) {
      for (const bool pow2 : {false, true}) {
        const auto e = static_cast<moe8::ElemDtype>(elem);
        const std::string name = "float8/" + of + "-" + std::string(moe8::to_string(e)) +
                                 (pow2 ? "-pow2" : "-any") + "/";
        const auto add = [&](const std::string& how, const moe8::Float8Tensor& q) {
          keep(name + how + "_data", q.data.view(at::kByte));
          keep(name + how + "_scale", q.scale);
          keep(name + how + "_values", moe8::dequantize(q));
        };
        add("tensor", moe8::quantize_float8(x, moe8::Float8Granularity::tensorwise(), e, pow2));
        add("rows", moe8::quantize_float8(x, moe8::Float8Granularity::axiswise(1), e, pow2));
        add("columns", moe8::quantize_float8(x, moe8::Float8Granularity::axiswise(0), e, pow2));
        add("groups",
            moe8::quantize_float8(x, moe8::Float8Granularity::axiswise(0), e, pow2, offs));
      }
    }
  }
}

void record_grouped(const moe8::RecipeInfo& recipe, at::ScalarType dtype) {
  const std::string name =
      "grouped/" + recipe.name + (dtype == at::kFloat ? "-f32" : "-bf16") + "/";
  const at::Tensor A = input(name + "A", numbers({83, 72}, dtype));
  const at::Tensor W = input(name + "W", numbers({4, 40, 72}, dtype));
  const at::Tensor bias = input(name + "bias", at::randn({4, 40}));
  const at::Tensor offs = offs_of(name + "offs", {33, 33, 34, 80});
  const at::Tensor out =
      moe8::quantize_then_scaled_grouped_mm(A, W.transpose(1, 2), offs, recipe.config, bias);
  keep(name + "out", out);
  const at::Tensor grad = numbers({83, 40}, out.scalar_type());
  keep(name + "grad_out", grad);
  out.backward(grad);
  keep(name + "grad_A", A.grad());
  keep(name + "grad_W", W.grad());
  keep(name + "grad_bias", bias.grad());
}

void record_linear(const moe8::RecipeInfo& recipe, at::ScalarType dtype) {
  const std::string name = "linear/" + recipe.name + (dtype == at::kFloat ? "-f32" : "-bf16") + "/";
  const at::Tensor x = input(name + "x", numbers({3, 17, 72}, dtype));
  const at::Tensor W = input(name + "W", numbers({40, 72}, dtype));
  const at::Tensor bias = input(name + "bias", numbers({40}, dtype));
  const at::Tensor out = moe8::quantize_then_linear(x, W, bias, recipe.config);
  keep(name + "out", out);
  const at::Tensor grad = numbers({3, 17, 40}, dtype);
  keep(name + "grad_out", grad);
  out.backward(grad);
  keep(name + "grad_x", x.grad());
  keep(name + "grad_W", W.grad());
  keep(name + "grad_bias", bias.grad());
}

// Gate and up in one weight by halves, interleaved with all that gpt-oss has, or in two weights.
void record_experts(const moe8::RecipeInfo& recipe, const std::string& kind) {
  const std::string name = "experts/" + recipe.name + "-" + kind + "/";
  const int64_t T = 37, k = 3, E = 5, d = 64, h = 40;
  const at::ScalarType dtype = at::kBFloat16;
  const bool is_split = kind == "split", is_gpt = kind == "gpt";
  const at::Tensor x = input(name + "x", numbers({T, d}, dtype));
  const at::Tensor w1 = input(name + "w1", numbers({E, is_split ? h : 2 * h, d}, dtype) * 0.2);
  const at::Tensor w3 =
      is_split ? input(name + "w3", numbers({E, h, d}, dtype) * 0.2) : at::Tensor();
  const at::Tensor w2 = input(name + "w2", numbers({E, d, h}, dtype) * 0.2);
  const at::Tensor experts = at::randint(0, is_gpt ? E + 1 : E, {T, k});  // E: a slot of no expert
  keep(name + "experts", experts);
  const at::Tensor scores = input(name + "scores", at::softmax(at::randn({T, k}), -1));
  moe8::ExpertsOptions options{.config = recipe.config};
  options.implementation = moe8::ExpertsImplementation::FUSED;
  if (is_gpt) {
    options.gate_up = moe8::GateUpLayout::INTERLEAVED;
    options.activation = moe8::Activation::CLAMPED_SWIGLU;
    options.b1 = input(name + "b1", numbers({E, 2 * h}, dtype));
    options.b2 = input(name + "b2", numbers({E, d}, dtype));
  }
  if (kind == "input") options.scores = moe8::ScorePlacement::INPUT;
  const at::Tensor out = moe8::moe_experts(x, w1, w3, w2, experts, scores, options);
  keep(name + "out", out);
  const at::Tensor grad = numbers({T, d}, dtype);
  keep(name + "grad_out", grad);
  out.backward(grad);
  keep(name + "grad_x", x.grad());
  keep(name + "grad_w1", w1.grad());
  if (w3.defined()) keep(name + "grad_w3", w3.grad());
  keep(name + "grad_w2", w2.grad());
  keep(name + "grad_scores", scores.grad());
  if (is_gpt) {
    keep(name + "grad_b1", options.b1.grad());
    keep(name + "grad_b2", options.b2.grad());
  }
}

void record() {
  record_quantizers();
  for (const moe8::RecipeInfo& recipe : moe8::all_recipes()) {
    const bool of_experts = moe8::is_grouped(recipe.config);
    for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
      of_experts ? record_grouped(recipe, dtype) : record_linear(recipe, dtype);
    }
    if (!of_experts) continue;
    for (const char* kind : {"halves", "split", "gpt", "input"}) record_experts(recipe, kind);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    record();
    moe8::save_safetensors(argv[1], results);
    std::printf("%zu tensors\n", results.size());
    return 0;
  } catch (const std::exception& error) {
    std::printf("%s\n", moe8::message_of(error).c_str());
    return 1;
  }
}
