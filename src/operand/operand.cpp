// SPDX-License-Identifier: BSD-3-Clause
#include "operand/operand.h"

#include <algorithm>
#include <mutex>

#include "base/check.h"
#include "base/overloaded.h"
#include "moe8/float8.h"
#include "moe8/mx.h"
#include "operand/cuda_forms.h"
#include "quantize/both_axes.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

at::ScalarType dtype_of(Encoding encoding) {
  return encoding == Encoding::FLOAT32 ? at::kFloat : at::kBFloat16;
}

// Along the last axis and the one before in one call, where the format is quantized by axis.
std::optional<BothAxes> values_along_both(const at::Tensor& x, const OperandFormat& format,
                                          const std::optional<at::Tensor>& offs,
                                          at::ScalarType dtype) {
  using Both = std::optional<BothAxes>;
  return std::visit(Overloaded{[](const HighPrecision&) -> Both { return std::nullopt; },
                               [&](const MxFormat& f) -> Both {
                                 return fake_quantize_mx_both(x, f.elem, f.mode, offs, dtype);
                               },
                               [&](const Float8Format& f) -> Both {
                                 if (f.granularity == ScalingGranularity::TENSORWISE)
                                   return std::nullopt;
                                 return fake_quantize_float8_both(
                                     x, f.elem, f.round_scales_to_power_of_2, offs, dtype);
                               }},
                    format);
}

bool contains(const std::vector<FormKey>& keys, const FormKey& key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

// Forms of LibTorch's CPU kernels are values.
std::vector<Form> make_cpu_forms(const at::Tensor& source, const std::vector<FormKey>& keys,
                                 const TokenGroups& groups) {
  const int64_t last = source.dim() - 1;
  const std::optional<at::Tensor> offs = source.dim() == 2 ? groups.offs() : std::nullopt;
  std::vector<Form> forms;
  for (const FormKey& key : keys) {
    const at::ScalarType dtype = dtype_of(key.encoding);
    const FormKey along_last{key.format, last, key.encoding};
    const FormKey before_last{key.format, last - 1, key.encoding};
    const auto is_made = [&](const Form& form) { return form.key == key; };
    if (std::any_of(forms.begin(), forms.end(), is_made)) continue;
    if (contains(keys, along_last) && contains(keys, before_last)) {
      if (auto both = values_along_both(source, key.format, offs, dtype)) {
        forms.push_back({along_last, both->last, {}});
        forms.push_back({before_last, both->before_last, {}});
        continue;
      }
    }
    forms.push_back(
        {key,
         operand_values(source, key.format, key.axis, key.axis == 0 ? offs : std::nullopt, dtype),
         {}});
  }
  return forms;
}

std::vector<Form> make_forms(const at::Tensor& source, const std::vector<FormKey>& keys,
                             const TokenGroups& groups) {
  return source.is_cuda() ? make_cuda_forms(source, keys, groups)
                          : make_cpu_forms(source, keys, groups);
}

}  // namespace

class FormStore {
 public:
  void expect(const FormKey& key) {
    const std::lock_guard lock(mutex_);
    if (std::find(expected_.begin(), expected_.end(), key) == expected_.end()) {
      expected_.push_back(key);
    }
  }

  void add(Form form) {
    const std::lock_guard lock(mutex_);
    forms_.push_back(std::move(form));
  }

  Form get(const FormKey& key, const at::Tensor& source, const TokenGroups& groups) {
    const std::lock_guard lock(mutex_);
    if (const Form* form = find(key)) return *form;
    MOE8_CHECK(source.defined(), "low_precision_gemm", "operand", "expected the form of ",
               to_string(key.format), " along axis ", key.axis,
               " or its source to have been kept. This is a defect of moe8");
    std::vector<FormKey> wanted = {key};
    for (const FormKey& other : expected_) {
      if (!(other == key) && !find(other) && !is_source(other, source)) wanted.push_back(other);
    }
    std::vector<Form> made = make_forms(source, wanted, groups);
    std::move(made.begin(), made.end(), std::back_inserter(forms_));
    return *find(key);
  }

  bool has(const FormKey& key) {
    const std::lock_guard lock(mutex_);
    return find(key) != nullptr;
  }

  int64_t bytes() {
    const std::lock_guard lock(mutex_);
    int64_t sum = 0;
    for (const Form& form : forms_) {
      sum += static_cast<int64_t>(form.data.nbytes());
      if (form.scale.defined()) sum += static_cast<int64_t>(form.scale.nbytes());
    }
    return sum;
  }

 private:
  const Form* find(const FormKey& key) const {
    const auto at = std::find_if(forms_.begin(), forms_.end(),
                                 [&](const Form& form) { return form.key == key; });
    return at == forms_.end() ? nullptr : &*at;
  }

  std::mutex mutex_;
  std::vector<FormKey> expected_;
  std::vector<Form> forms_;
};

std::shared_ptr<FormStore> make_form_store() {
  return std::make_shared<FormStore>();
}

int64_t form_bytes(FormStore& store) {
  return store.bytes();
}

Operand::Operand(at::IntArrayRef sizes, at::ScalarType dtype, const at::Device& device)
    : sizes_(sizes.vec()), dtype_(dtype), device_(device), store_(make_form_store()) {}

Operand::Operand(const at::Tensor& source, std::shared_ptr<FormStore> store)
    : source_(written_out(source)),
      sizes_(source.sizes().vec()),
      dtype_(source.scalar_type()),
      device_(source.device()),
      store_(std::move(store)) {}

Operand::Operand(const at::Tensor& source) : Operand(source, make_form_store()) {}

Operand Operand::future(at::IntArrayRef sizes, at::ScalarType dtype, const at::Device& device) {
  return Operand(sizes, dtype, device);
}

Operand Operand::kept(at::IntArrayRef sizes, at::ScalarType dtype, Form form) {
  Operand operand(sizes, dtype, form.data.device());
  operand.store_->add(std::move(form));
  return operand;
}

const at::Tensor& Operand::source() const {
  MOE8_CHECK(source_.defined(), "low_precision_gemm", "operand",
             "expected the high-precision tensor to have been kept. This is a defect of moe8");
  return source_;
}

void Operand::expect(const FormKey& key) const {
  store_->expect(key);
}

bool Operand::has(const FormKey& key) const {
  return (source_.defined() && is_source(key, source_)) || store_->has(key);
}

Form Operand::form(const FormKey& key, const TokenGroups& groups) const {
  if (source_.defined() && is_source(key, source_)) return {key, source_.detach(), {}};
  return store_->get(key, source_, groups);
}

std::string describe(const Operand& x) {
  return c10::str(x.scalar_type(), " ", x.sizes(), " on ", x.device());
}

bool is_source(const FormKey& key, const at::Tensor& source) {
  return std::holds_alternative<HighPrecision>(key.format) && key.encoding != Encoding::FLOAT8 &&
         source.scalar_type() == dtype_of(key.encoding) && source.is_contiguous();
}

at::Tensor operand_values(const at::Tensor& x, const OperandFormat& format, int64_t axis,
                          const std::optional<at::Tensor>& offs, at::ScalarType dtype) {
  return std::visit(
      Overloaded{
          [&](const HighPrecision&) { return x.detach().to(dtype).contiguous(); },
          [&](const MxFormat& f) { return fake_quantize_mx(x, f.elem, f.mode, axis, offs, dtype); },
          [&](const Float8Format& f) {
            const bool whole = f.granularity == ScalingGranularity::TENSORWISE;
            return fake_quantize_float8(
                x, whole ? Float8Granularity::tensorwise() : Float8Granularity::axiswise(axis),
                f.elem, f.round_scales_to_power_of_2, whole ? std::nullopt : offs, dtype);
          }},
      format);
}

}  // namespace moe8
