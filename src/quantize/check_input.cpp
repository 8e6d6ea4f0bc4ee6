// SPDX-License-Identifier: BSD-3-Clause
#include "quantize/check_input.h"

#include <ATen/core/grad_mode.h>

#include <cstdlib>
#include <mutex>
#include <string_view>

#include "base/check.h"
#include "base/log.h"
#include "base/plain_text.h"
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

struct Unusual {
  const char* what;
  const char* hint;
};

// Tensors that are no array of numbers in memory.
std::optional<Unusual> unusual(const at::Tensor& x) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet kTransforms({DispatchKey::FuncTorchBatched,
                                             DispatchKey::FuncTorchGradWrapper,
                                             DispatchKey::Batched, DispatchKey::Functionalize});
  if (x.key_set().has_any(kTransforms)) {
    return Unusual{"a tensor of a function transform (vmap, grad)", "Call it outside of that"};
  }
  if (x.is_nested()) return Unusual{"a nested tensor", "Pass its buffer, with offs for its rows"};
  if (x.is_mkldnn()) return Unusual{"an mkldnn tensor", "Call to_dense() first"};
  if (x.layout() != at::kStrided) return Unusual{"a sparse tensor", "Call to_dense() first"};
  if (x.is_meta()) return Unusual{"a meta tensor, which has no values", "Give it memory first"};
  if (!x.has_storage()) return Unusual{"a tensor without storage", "Copy it to a dense one first"};
  return std::nullopt;
}

}  // namespace

std::string describe(const at::Tensor& x) {
  if (!x.defined()) return "an undefined tensor";
  if (x.is_nested()) return concat("a nested tensor of ", x.scalar_type(), " on ", x.device());
  return concat(x.scalar_type(), " ", x.sizes(), " on ", x.device());
}

void check_dense(const char* op, const char* argument, const at::Tensor& x) {
  MOE8_CHECK(x.defined(), op, argument, "expected a tensor, got an undefined one");
  const std::optional<Unusual> got = unusual(x);
  MOE8_CHECK(!got, op, argument, "expected a dense tensor, got ", got->what, " (", describe(x),
             "). ", got->hint);
}

bool holds_its_values(const at::Tensor& x) {
  return !x.is_neg() && !x.is_conj() && !x._is_zerotensor();
}

at::Tensor written_out(const at::Tensor& x) {
  return holds_its_values(x) ? x : x.clone();
}

at::Tensor contiguous_values(const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  return x.contiguous();
}

void check_holds_its_values(const char* op, const char* argument, const at::Tensor& x) {
  check_dense(op, argument, x);
  MOE8_CHECK(holds_its_values(x), op, argument, "expected values in memory, got ",
             x._is_zerotensor() ? "a zero tensor without memory" : "a negative or conjugate view",
             " (", describe(x), "). Call clone() first");
}

void check_dtype(const char* op, const char* argument, const at::Tensor& x) {
  check_dense(op, argument, x);
  MOE8_CHECK(x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat, op, argument,
             "expected bfloat16 or float32, got ", describe(x));
}

void check_out_dtype(const char* op, const char* argument, at::ScalarType dtype) {
  MOE8_CHECK(dtype == at::kBFloat16 || dtype == at::kFloat, op, argument,
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

namespace {

// What start rows in the place of end rows look like. It may be meant so: a first expert without
// tokens, and rows of padding. So it is no warning.
void hint_at_start_rows(const char* op, int64_t end, int64_t rows) {
  static std::once_flag once;
  std::call_once(once, [&] {
    log_info(concat("[", op, "] offs: the first group has no rows, and the rows ", end, " to ",
                    rows - 1, " are in no group. Right for end rows? Start rows look like this."));
  });
}

}  // namespace

void check_offs(const char* op, const at::Tensor& offs, int64_t groups, int64_t rows,
                const at::Device& device) {
  check_holds_its_values(op, "offs", offs);
  MOE8_CHECK(offs.scalar_type() != at::kLong, op, "offs", "expected 1-D int32 end rows, got ",
             describe(offs), ". cumsum() of int32 gives int64: call .to(torch::kInt32)");
  MOE8_CHECK(offs.scalar_type() == at::kInt && offs.dim() == 1, op, "offs",
             "expected 1-D int32 end rows, got ", describe(offs));
  MOE8_CHECK(offs.device() == device, op, "offs", "expected on ", device, ", got ", describe(offs));
  MOE8_CHECK(groups < 0 || offs.size(0) == groups, op, "offs", "expected ", groups,
             " end rows, one an expert, got ", offs.size(0));
  // To read them from a GPU the host has to wait for it, which a graph capture does not allow.
  if (!offs.is_cpu() && !(reads_offs_of_gpus() && current_stream(offs.device()).capture == 0))
    return;
  const at::Tensor ends = offs.cpu().contiguous();
  check_ends(op, ends, rows);
  if (ends.size(0) == 0) return;
  const int32_t* end = ends.const_data_ptr<int32_t>();
  const int32_t last = end[ends.size(0) - 1];
  if (end[0] == 0 && last < rows) hint_at_start_rows(op, last, rows);
}

void check_mx_tensor(const char* op, const char* argument, const MXTensor& x) {
  const int64_t dim = static_cast<int64_t>(x.shape.size());
  MOE8_CHECK(x.data.defined() && x.scale.defined(), op, argument, "expected data and scale, got ",
             describe(x.data), " and ", describe(x.scale));
  check_holds_its_values(op, argument, x.data);
  check_holds_its_values(op, argument, x.scale);
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
