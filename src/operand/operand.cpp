// SPDX-License-Identifier: BSD-3-Clause
#include "operand/operand.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "base/check.h"
#include "base/overloaded.h"
#include "base/plain_text.h"
#include "device/implementation.h"
#include "moe8/float8.h"
#include "moe8/mx.h"
#include "operand/composite_forms.h"
#include "operand/cuda_forms.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

std::vector<Form> make_forms(at::TensorList parts, const std::vector<FormKey>& keys,
                             const TokenGroups& groups) {
  const auto by = implementation_on(parts.front().device(), groups.count());
  return by == Implementation::CUDA_KERNELS ? make_cuda_forms(parts, keys, groups)
                                            : make_composite_forms(join(parts), keys, groups);
}

bool is_source(const FormKey& key, at::TensorList parts) {
  return parts.size() == 1 && moe8::is_source(key, parts.front());
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

  void add_later(const FormKey& key, std::function<Form()> make) {
    const std::lock_guard lock(mutex_);
    later_.emplace_back(key, std::move(make));
  }

  void drop(const FormKey& key) {
    const std::lock_guard lock(mutex_);
    std::erase_if(forms_, [&](const Form& form) { return form.key == key; });
    std::erase_if(later_, [&](const auto& later) { return later.first == key; });
    std::erase(expected_, key);
  }

  Form get(const FormKey& key, at::TensorList parts, const TokenGroups& groups) {
    const std::lock_guard lock(mutex_);
    if (const Form* form = find(key)) return *form;
    if (std::optional<Form> form = make_later(key)) return *form;
    MOE8_CHECK(!parts.empty(), "low_precision_gemm", "operand", "expected the form of ",
               to_string(key.format), " along axis ", key.axis,
               " or its source to have been kept. This is a defect of moe8");
    std::vector<FormKey> wanted = {key};
    for (const FormKey& other : expected_) {
      if (!(other == key) && !find(other) && !is_source(other, parts)) wanted.push_back(other);
    }
    std::vector<Form> made = make_forms(parts, wanted, groups);
    std::move(made.begin(), made.end(), std::back_inserter(forms_));
    return *find(key);
  }

  bool has(const FormKey& key) {
    const std::lock_guard lock(mutex_);
    return find(key) != nullptr;
  }

  int64_t bytes() {
    const std::lock_guard lock(mutex_);
    std::map<const void*, size_t> by_memory;  // forms may share it
    for (const Form& form : forms_) {
      for (const at::Tensor& x : {form.data, form.decode_scale}) {
        if (x.defined()) by_memory[x.const_data_ptr()] = x.nbytes();
      }
    }
    int64_t sum = 0;
    for (const auto& [memory, bytes] : by_memory) sum += static_cast<int64_t>(bytes);
    return sum;
  }

 private:
  const Form* find(const FormKey& key) const {
    const auto at = std::find_if(forms_.begin(), forms_.end(),
                                 [&](const Form& form) { return form.key == key; });
    return at == forms_.end() ? nullptr : &*at;
  }

  std::optional<Form> make_later(const FormKey& key) {
    const auto at = std::find_if(later_.begin(), later_.end(),
                                 [&](const auto& later) { return later.first == key; });
    if (at == later_.end()) return std::nullopt;
    forms_.push_back(at->second());
    later_.erase(at);
    return forms_.back();
  }

  std::mutex mutex_;
  std::vector<FormKey> expected_;
  std::vector<std::pair<FormKey, std::function<Form()>>> later_;
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
    : parts_{written_out(source)},
      sizes_(source.sizes().vec()),
      dtype_(source.scalar_type()),
      device_(source.device()),
      store_(std::move(store)) {}

Operand::Operand(const at::Tensor& source) : Operand(source, make_form_store()) {}

Operand Operand::joined(at::TensorList parts, std::shared_ptr<FormStore> store) {
  Operand operand(parts.front(), std::move(store));
  for (const at::Tensor& part : parts.slice(1)) {
    operand.parts_.push_back(written_out(part));
    operand.sizes_[1] += part.size(1);
  }
  return operand;
}

Operand Operand::future(at::IntArrayRef sizes, at::ScalarType dtype, const at::Device& device) {
  return Operand(sizes, dtype, device);
}

Operand Operand::kept(at::IntArrayRef sizes, at::ScalarType dtype, Form form) {
  Operand operand(sizes, dtype, form.data.device());
  operand.store_->add(std::move(form));
  return operand;
}

at::Tensor Operand::source() const {
  MOE8_CHECK(has_source(), "low_precision_gemm", "operand",
             "expected the high-precision tensor to have been kept. This is a defect of moe8");
  return join(parts_);
}

at::Tensor Operand::source_matrix(int64_t e) const {
  if (parts_.size() == 1) return parts_.front().select(0, e);
  std::vector<at::Tensor> matrices;
  for (const at::Tensor& part : parts_) matrices.push_back(part.select(0, e));
  return at::cat(matrices, /*dim=*/0);
}

void Operand::expect(const FormKey& key) const {
  store_->expect(key);
}

bool Operand::has(const FormKey& key) const {
  return is_source(key, parts_) || store_->has(key);
}

Form Operand::form(const FormKey& key, const TokenGroups& groups) const {
  if (is_source(key, parts_)) return {key, parts_.front().detach(), {}};
  return store_->get(key, parts_, groups);
}

void Operand::add(Form form) const {
  store_->add(std::move(form));
}

void Operand::add_later(const FormKey& key, std::function<Form()> make) const {
  store_->add_later(key, std::move(make));
}

void Operand::drop(const FormKey& key) const {
  store_->drop(key);
}

Operand Operand::columns(int64_t begin, int64_t size, const FormKey& key,
                         const TokenGroups& groups) const {
  Form part = form(key, groups);
  if (key.encoding == Encoding::FLOAT8) {  // [columns, padded rows], scale [groups, columns]
    part.data = part.data.narrow(0, begin, size);
    part.decode_scale = part.decode_scale.narrow(1, begin, size).contiguous();
  } else {
    part.data = part.data.narrow(1, begin, size);
  }
  Operand operand = has_source() ? Operand(source().narrow(1, begin, size))
                                 : future({sizes_[0], size}, dtype_, device_);
  operand.add(std::move(part));
  return operand;
}

at::ScalarType dtype_of(Encoding encoding) {
  switch (encoding) {
    case Encoding::BF16:
      return at::kBFloat16;
    case Encoding::FLOAT32:
      return at::kFloat;
    case Encoding::FLOAT8:
      break;
  }
  return at::kByte;
}

std::string describe(const Operand& x) {
  return concat(x.scalar_type(), " ", x.sizes(), " on ", x.device());
}

bool is_source(const FormKey& key, const at::Tensor& source) {
  return std::holds_alternative<HighPrecision>(key.format) && key.encoding != Encoding::FLOAT8 &&
         source.scalar_type() == dtype_of(key.encoding) && source.is_contiguous();
}

at::Tensor join(at::TensorList parts) {
  return parts.size() == 1 ? parts.front() : at::cat(parts, /*dim=*/1);
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
