// SPDX-License-Identifier: BSD-3-Clause
#include "autograd/shared_input.h"

#include <utility>

namespace moe8 {
namespace {

thread_local SharedInput* innermost = nullptr;

}  // namespace

SharedInput::SharedInput(at::Tensor x)
    : x_(std::move(x)), forms_(make_form_store()), outer_(std::exchange(innermost, this)) {}

SharedInput::~SharedInput() {
  innermost = outer_;
}

bool SharedInput::is_of(const at::Tensor& A) const {
  return x_.has_storage() && A.has_storage() && A.const_data_ptr() == x_.const_data_ptr() &&
         A.scalar_type() == x_.scalar_type() && A.numel() == x_.numel() &&
         A.size(-1) == x_.size(-1) && A.is_contiguous() && x_.is_contiguous() &&
         A.is_neg() == x_.is_neg();
}

std::shared_ptr<FormStore> input_forms(const at::Tensor& A) {
  return innermost && innermost->is_of(A) ? innermost->forms_ : make_form_store();
}

}  // namespace moe8
