// SPDX-License-Identifier: BSD-3-Clause
// Which formats a config means is asked of src/autograd/training_formats.h, in which form a kernel
// reads an operand of src/gemm/low_precision_gemm.h.
#include "train/plan/planned_conversion.h"

#include <ATen/ops/promote_types.h>

#include <string_view>
#include <variant>

#include "autograd/training_formats.h"
#include "base/overloaded.h"
#include "convert/resolve.h"
#include "gemm/low_precision_gemm.h"

namespace moe8 {
namespace {

using bytes_of::kBf16;
using bytes_of::kFloat;

// Of the right operand, as a Hopper GPU's kernels read it: codes of FP8, values of MX formats. A
// build without CUDA has no kernel that could be asked.
double hopper_form_bytes(const OperandFormat& right) {
  return std::visit(
      Overloaded{[](const HighPrecision&) { return 0.0; }, [](const MxFormat&) { return kBf16; },
                 [](const Float8Format&) { return 1.0; }},
      right);
}

// Of the right operand, as the CPU's kernel of the product reads it. The kernels themselves are
// asked.
double form_bytes(Gemm gemm, const GemmFormats& formats, at::ScalarType left, at::ScalarType right,
                  at::ScalarType out) {
  const std::vector<int64_t> rows{64, 64}, weight{1, 64, 64};  // no kernel of a CPU asks for sizes
  const GemmProblem problem{
      .gemm = gemm,
      .left = Operand::future(rows, left, at::kCPU),
      .right = Operand::future(gemm == Gemm::GRAD_WEIGHT ? rows : weight, right, at::kCPU),
      .groups = {},
      .formats = formats,
      .out_dtype = out};
  const Encoding encoding = choose_gemm_kernel(problem).encoding;
  const double bytes = encoding == Encoding::BF16 ? kBf16 : kFloat;
  const bool is_source =
      std::holds_alternative<HighPrecision>(formats.right) && bytes == itemsize(right);
  return is_source ? 0 : bytes;
}

KeptForms kept_forms(const Config& config, at::ScalarType weight, at::ScalarType input,
                     bool on_gpu) {
  const TrainingFormats formats = training_formats(config);
  const at::ScalarType out = out_dtype_of(config, input);
  KeptForms kept;
  if (on_gpu) {
    kept.of_forward = hopper_form_bytes(formats.out.right);
    kept.of_weight = kept.of_forward + hopper_form_bytes(formats.grad_input.right);
    kept.of_input = hopper_form_bytes(formats.grad_weight.right);
    return kept;
  }
  kept.of_forward = form_bytes(Gemm::OUT, formats.out, input, weight, out);
  kept.of_weight =
      kept.of_forward + form_bytes(Gemm::GRAD_INPUT, formats.grad_input, out, weight, input);
  kept.of_input = form_bytes(Gemm::GRAD_WEIGHT, formats.grad_weight, out, input, weight);
  if (kept.of_input > itemsize(input)) kept.of_input = 0;  // the input itself is smaller
  return kept;
}

}  // namespace

ConversionReport plan_conversion(const RunConfig& config) {
  const std::string dtype(c10::getDtypeNames(dtype_of(config.training.weights)).first);
  std::vector<ParameterInfo> parameters;
  for (const ParameterShape& parameter : parameter_shapes(config.model)) {
    parameters.push_back({.fqn = parameter.name,
                          .shape = parameter.shape,
                          .owner = guess_owner(parameter.name, parameter.shape),
                          .dtype = dtype,
                          .has_known_use = true});
  }
  return resolve(parameters, {}, to_fqn_config(config.conversion()));
}

at::ScalarType dtype_of(Weights weights) {
  return weights == Weights::FLOAT32 ? at::kFloat : at::kBFloat16;
}

PlannedConversion::PlannedConversion(const ConversionReport& report, const TrainingConfig& training)
    : dtype_(dtype_of(training.weights)), on_gpu_(training.device == TrainingDevice::CUDA) {
  for (const ConversionRow& row : report.converted()) configs_.emplace(row.fqn, *row.config);
}

const Config* PlannedConversion::config(const std::string& fqn) const {
  const auto found = configs_.find(fqn);
  return found == configs_.end() ? nullptr : &found->second;
}

at::ScalarType PlannedConversion::out_dtype(const std::string& fqn) const {
  const Config* found = config(fqn);
  return found ? out_dtype_of(*found, dtype_) : dtype_;
}

at::ScalarType PlannedConversion::input_dtype(const std::string& fqn) const {
  constexpr std::string_view kSecond = "experts.w2";
  if (!fqn.ends_with(kSecond)) return dtype_;
  const std::string part = fqn.substr(0, fqn.size() - 2);
  return at::promote_types(out_dtype(part + "w1"), out_dtype(part + "w3"));
}

KeptForms PlannedConversion::forms(const std::string& fqn) const {
  const Config* found = config(fqn);
  return found ? kept_forms(*found, dtype_, input_dtype(fqn), on_gpu_) : KeptForms{};
}

bool PlannedConversion::have_one_config(const std::string& weight, const std::string& other) const {
  const Config* const a = config(weight);
  const Config* const b = config(other);
  return a && b ? *a == *b : a == b;
}

bool PlannedConversion::is_of_fused_experts(const std::string& fqn) const {
  constexpr std::string_view kExperts = ".moe.experts.";
  const size_t at = fqn.find(kExperts);
  if (at == std::string::npos) return false;
  const std::string part = fqn.substr(0, at + kExperts.size());
  return have_one_config(part + "w1", part + "w3");
}

}  // namespace moe8
