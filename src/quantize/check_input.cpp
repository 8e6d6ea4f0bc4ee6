// SPDX-License-Identifier: BSD-3-Clause
#include "quantize/check_input.h"

#include <cstdlib>
#include <string_view>

#include "base/check.h"
#include "device/cuda_device.h"
#include "groups/token_groups.h"

namespace moe8 {
namespace {

// Whether MOE8_CHECK_OFFS=on asks for the check that a GPU otherwise goes without.
bool reads_offs_of_gpus() {
  static const bool reads = [] {
    const char* setting = std::getenv("MOE8_CHECK_OFFS");
    return setting && std::string_view(setting) == "on";
  }();
  return reads;
}

}  // namespace

std::string describe(const at::Tensor& x) {
  if (!x.defined()) return "an undefined tensor";
  return c10::str(x.scalar_type(), " ", x.sizes(), " on ", x.device());
}

void check_dtype(const char* op, const char* argument, const at::Tensor& x) {
  MOE8_CHECK(x.defined(), op, argument, "expected a tensor, got an undefined one");
  MOE8_CHECK(x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat, op, argument,
             "expected bfloat16 or float32, got ", describe(x));
}

void check_out_dtype(const char* op, at::ScalarType dtype) {
  MOE8_CHECK(dtype == at::kBFloat16 || dtype == at::kFloat, op, "dtype",
             "expected bfloat16 or float32, got ", dtype);
}

FloatType float_type(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? FloatType::BF16 : FloatType::F32;
}

int64_t check_axis(const char* op, const at::Tensor& x, int64_t axis) {
  MOE8_CHECK(x.dim() >= 1, op, "x", "expected at least one dimension, got ", describe(x));
  MOE8_CHECK(axis >= -x.dim() && axis < x.dim(), op, "axis", "expected ", -x.dim(), " to ",
             x.dim() - 1, " for ", describe(x), ", got ", axis);
  return axis < 0 ? axis + x.dim() : axis;
}

void check_offs(const char* op, const at::Tensor& offs, int64_t groups, int64_t rows,
                const at::Device& device) {
  MOE8_CHECK(offs.defined() && offs.scalar_type() == at::kInt && offs.dim() == 1, op, "offs",
             "expected 1-D int32 end rows, got ", describe(offs));
  MOE8_CHECK(offs.device() == device, op, "offs", "expected on ", device, ", got ", describe(offs));
  MOE8_CHECK(groups < 0 || offs.size(0) == groups, op, "offs", "expected ", groups,
             " end rows, one an expert, got ", offs.size(0));
  // To read them from a GPU the host has to wait for it, which a graph capture does not allow.
  if (!offs.is_cpu() && !(reads_offs_of_gpus() && current_stream(offs.device()).capture == 0))
    return;
  check_ends(op, offs.cpu(), rows);
}

void check_mx_tensor(const char* op, const char* argument, const MXTensor& x) {
  const int64_t dim = static_cast<int64_t>(x.shape.size());
  MOE8_CHECK(x.data.defined() && x.scale.defined(), op, argument, "expected data and scale, got ",
             describe(x.data), " and ", describe(x.scale));
  MOE8_CHECK(dim >= 1 && x.axis >= 0 && x.axis < dim, op, argument,
             "expected a shape of at least one dimension and an axis in it, got ",
             at::IntArrayRef(x.shape), " and ", x.axis);
  std::vector<int64_t> data = x.shape;
  std::vector<int64_t> scale = x.shape;
  if (x.elem == ElemDtype::E2M1) data.back() = (data.back() + 1) / 2;
  const int64_t groups = x.offs ? x.offs->numel() : 0;
  scale[x.axis] = (scale[x.axis] + (kMxBlock - 1) * (x.offs ? groups : 1)) / kMxBlock;
  const bool is_byte = x.data.element_size() == 1 && !x.data.is_complex();
  MOE8_CHECK(is_byte && x.data.sizes() == at::IntArrayRef(data), op, argument, "expected data ",
             at::IntArrayRef(data), " of one byte each, got ", describe(x.data));
  MOE8_CHECK(x.scale.scalar_type() == at::kFloat8_e8m0fnu &&
                 x.scale.sizes() == at::IntArrayRef(scale) && x.scale.device() == x.data.device(),
             op, argument, "expected scale float8_e8m0fnu ", at::IntArrayRef(scale), " on ",
             x.data.device(), ", got ", describe(x.scale));
}

void check_device_supported(const char* op, const char* argument, const at::Tensor& x) {
  MOE8_CHECK(x.is_cpu() || x.is_cuda(), op, argument,
             "expected a tensor on a CPU or a CUDA device, got ", describe(x));
}

AxisView view_around(const at::IntArrayRef& sizes, int64_t axis) {
  AxisView view{1, sizes[axis], 1};
  for (int64_t d = 0; d < axis; ++d) view.outer *= sizes[d];
  for (size_t d = axis + 1; d < sizes.size(); ++d) view.inner *= sizes[d];
  return view;
}

}  // namespace moe8
