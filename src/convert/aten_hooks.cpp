// SPDX-License-Identifier: BSD-3-Clause
// The only file that touches the dispatcher. A product whose weight is tagged goes to the function
// of src/ops that a caller could use directly; any other call goes on to LibTorch's own kernel.
//
// Three layers of hooks, because no single dispatch key sees every call:
//   AutogradCPU/CUDA  products, training and no_grad. nn::Linear calls addmm or matmul, seldom
//                     linear; linear and matmul are hooked as well, because with a frozen weight they
//                     may become bmm on an expanded view, which nobody could recognise.
//                     Also the fused optimizers, so that their writes to weights are counted.
//   BackendSelect     products in InferenceMode, where autograd keys are skipped.
//   CPU/CUDA          _to_copy and clone, in every mode: the copy of a converted weight (autocast,
//                     Module::to, Module::clone) is one as well.
// Not hooked: bmm, baddbmm, einsum, mv, embedding, out= and dtype overloads. A converted weight
// there, or as the left operand of mm, computes in high precision.
#include "convert/aten_hooks.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_to_copy_native.h>
#include <ATen/ops/clone_native.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "base/overloaded.h"
#include "moe8/grouped_mm.h"
#include "moe8/linear.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

using at::Tensor;
using c10::DispatchKey;
using c10::DispatchKeySet;

// ---- layers -----------------------------------------------------------------
// Hooks above LibTorch's autograd kernels. Those fill the slots AutogradCPU, AutogradCUDA and
// AutogradOther alike; we take the first two, so AutogradOther still leads to the kernel we
// displaced.
struct AutogradLayer {
  static bool active() { return true; }
  static DispatchKeySet rest(DispatchKeySet keys) {
    return (keys & c10::after_autograd_keyset) | DispatchKeySet(DispatchKey::AutogradOther);
  }
  struct Entered {};
};

// Hooks for InferenceMode. Nothing keeps our own operations from coming back here with a tagged
// weight (a GEMM that a config leaves in high precision), so a flag does.
struct InferenceLayer {
  static thread_local bool entered;

  static bool active() { return c10::InferenceMode::is_enabled() && !entered; }
  static DispatchKeySet rest(DispatchKeySet keys) {
    return keys & DispatchKeySet(DispatchKeySet::FULL_AFTER, DispatchKey::BackendSelect);
  }
  struct Entered {
    Entered() { entered = true; }
    ~Entered() { entered = false; }
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;
  };
};
thread_local bool InferenceLayer::entered = false;

// ---- whether ----------------------------------------------------------------
// High precision in spite of a conversion must not go unnoticed, nor be an error: LibTorch computes
// what the model asks for.
void warn_once(const char* op, const char* why) {
  static std::mutex mutex;
  static std::set<std::string> told;
  const std::string text =
      c10::str("[quantize_] at::", op, " with a converted weight runs in high precision: ", why);
  {
    const std::lock_guard lock(mutex);
    if (!told.insert(text).second) return;
  }
  log_warning(text);
}

// LibTorch refuses operands of two dtypes, which moe8's functions multiply: code that runs with a
// conversion must run without it. Such a call goes on to LibTorch, whose error it gets.
bool is_refused(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias = {}) {
  return x.scalar_type() != weight.scalar_type() ||
         (bias && bias->defined() && bias->scalar_type() != x.scalar_type());
}

// The config when op(x, weight) is a linear product with a converted 2-D weight.
const Config* linear_config(const char* op, const Tensor& x, const Tensor& weight) {
  const std::optional<Tagged> tagged = find_tag(weight);
  if (!tagged || weight.dim() != 2 || is_refused(x, weight)) return nullptr;
  if (tagged->dim != 2) {
    warn_once(op, "the weight is a slice of a 3-D expert weight; use at::_grouped_mm.");
    return nullptr;
  }
  if (x.layout() != at::kStrided) {
    warn_once(op, "the input is not strided.");
    return nullptr;
  }
  return tagged->config;
}

// The config when the call is a grouped product with a converted 3-D weight.
const Config* grouped_config(const Tensor& A, const Tensor& B_t,
                             const std::optional<Tensor>& offs) {
  const std::optional<Tagged> tagged = find_tag(B_t);
  if (!tagged || is_refused(A, B_t)) return nullptr;
  if (tagged->dim != 3 || B_t.dim() != 3 || A.dim() != 2 || !offs || !offs->defined()) {
    warn_once("_grouped_mm", "only 2-D activations with offs and 3-D weights have low precision.");
    return nullptr;
  }
  return tagged->config;
}

// ---- the products -----------------------------------------------------------
template <typename Layer>
Tensor low_precision_linear(const Tensor& x, const Tensor& weight,
                            const std::optional<Tensor>& bias, const Config& config) {
  [[maybe_unused]] const typename Layer::Entered entered;
  return quantize_then_linear(x, weight, bias && bias->defined() ? bias : std::nullopt, config);
}

template <typename Layer>
Tensor mm(DispatchKeySet keys, const Tensor& x, const Tensor& mat2) {
  if (Layer::active() && x.dim() == 2) {
    if (const Config* config = linear_config("mm", x, mat2)) {
      return low_precision_linear<Layer>(x, mat2.t(), std::nullopt, *config);
    }
  }
  return at::_ops::mm::redispatch(Layer::rest(keys), x, mat2);
}

// beta * self + alpha * product, with self broadcast as addmm does.
Tensor scaled_sum(const Tensor& self, const Tensor& product, const at::Scalar& beta,
                  const at::Scalar& alpha) {
  MOE8_CHECK(self.scalar_type() == product.scalar_type(), "addmm", "self", "expected ",
             product.scalar_type(), " as the product, got ", self.scalar_type());
  const Tensor scaled = alpha.equal(1) ? product : product * alpha;
  if (beta.equal(0)) return scaled;  // addmm ignores self then, NaN included
  const Tensor added = self.expand_as(product);
  return scaled + (beta.equal(1) ? added : added * beta);
}

template <typename Layer>
Tensor addmm(DispatchKeySet keys, const Tensor& self, const Tensor& x, const Tensor& mat2,
             const at::Scalar& beta, const at::Scalar& alpha) {
  if (Layer::active() && x.dim() == 2) {
    if (const Config* config = linear_config("addmm", x, mat2)) {
      const bool is_bias =
          self.dim() == 1 && self.size(0) == mat2.size(1) && self.scalar_type() == x.scalar_type();
      if (is_bias && beta.equal(1) && alpha.equal(1)) {
        return low_precision_linear<Layer>(x, mat2.t(), self, *config);
      }
      return scaled_sum(self, low_precision_linear<Layer>(x, mat2.t(), std::nullopt, *config), beta,
                        alpha);
    }
  }
  return at::_ops::addmm::redispatch(Layer::rest(keys), self, x, mat2, beta, alpha);
}

template <typename Layer>
Tensor matmul(DispatchKeySet keys, const Tensor& x, const Tensor& other) {
  if (Layer::active() && x.dim() > 0) {
    if (const Config* config = linear_config("matmul", x, other)) {
      return low_precision_linear<Layer>(x, other.t(), std::nullopt, *config);
    }
  }
  return at::_ops::matmul::redispatch(Layer::rest(keys), x, other);
}

template <typename Layer>
Tensor linear(DispatchKeySet keys, const Tensor& x, const Tensor& weight,
              const std::optional<Tensor>& bias) {
  if (Layer::active() && x.dim() > 0 && !is_refused(x, weight, bias)) {
    if (const Config* config = linear_config("linear", x, weight)) {
      return low_precision_linear<Layer>(x, weight, bias, *config);
    }
  }
  return at::_ops::linear::redispatch(Layer::rest(keys), x, weight, bias);
}

Config with_out_dtype(Config config, std::optional<at::ScalarType> out_dtype) {
  if (!out_dtype) return config;
  std::visit(Overloaded{[&](FP8GroupedMMConfig& c) { c.out_dtype = *out_dtype; },
                        [&](MXFP8GroupedMMConfig& c) { c.out_dtype = *out_dtype; },
                        [](MXLinearConfig&) {}, [](Float8LinearConfig&) {}},
             config);
  return config;
}

template <typename Layer>
Tensor grouped_mm(DispatchKeySet keys, const Tensor& A, const Tensor& B_t,
                  const std::optional<Tensor>& offs, const std::optional<Tensor>& bias,
                  std::optional<at::ScalarType> out_dtype) {
  if (Layer::active()) {
    if (const Config* config = grouped_config(A, B_t, offs)) {
      [[maybe_unused]] const typename Layer::Entered entered;
      return quantize_then_scaled_grouped_mm(A, B_t, *offs, with_out_dtype(*config, out_dtype),
                                             bias && bias->defined() ? bias : std::nullopt);
    }
  }
  return at::_ops::_grouped_mm::redispatch(Layer::rest(keys), A, B_t, offs, bias, out_dtype);
}

// ---- copies -----------------------------------------------------------------
// LibTorch's kernel for both keys is the one function at::native::OP, so it is called directly.
Tensor to_copy(const Tensor& self, std::optional<at::ScalarType> dtype,
               std::optional<at::Layout> layout, std::optional<at::Device> device,
               std::optional<bool> pin_memory, bool non_blocking,
               std::optional<at::MemoryFormat> memory_format) {
  const Tensor copy =
      at::native::_to_copy(self, dtype, layout, device, pin_memory, non_blocking, memory_format);
  if (any_tags()) tag_copy(self, copy);
  return copy;
}

Tensor clone(const Tensor& self, std::optional<at::MemoryFormat> memory_format) {
  const Tensor copy = at::native::clone(self, memory_format);
  if (any_tags()) tag_copy(self, copy);
  return copy;
}

// ---- writes -----------------------------------------------------------------
// The fused optimizers write weights without moving the version counters by which a change is seen
// (include/moe8/memory.h): for converted weights that is made up here. All take the weights first.
void count_fused_write(const c10::OperatorHandle& op, DispatchKeySet keys,
                       torch::jit::Stack* stack) {
  const size_t first = stack->size() - op.schema().arguments().size();
  const std::vector<Tensor> written = (*stack)[first].toTensorVector();
  op.redispatchBoxed(AutogradLayer::rest(keys), stack);
  for (const Tensor& weight : written) {
    if (find_tag(weight) && !weight.is_inference()) weight.unsafeGetTensorImpl()->bump_version();
  }
}

constexpr const char* kFusedWrites[] = {
    "_fused_adam_", "_fused_adam_.tensor_lr", "_fused_adamw_",   "_fused_adamw_.tensor_lr",
    "_fused_sgd_",  "_fused_sgd_.tensor_lr",  "_fused_adagrad_", "_fused_adagrad_.tensor_lr"};

// ---- installing -------------------------------------------------------------
torch::Library library_of(DispatchKey key) {
  return torch::Library(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
}

template <typename Layer>
void add_products(torch::Library& library) {
  library.impl("mm", TORCH_FN(mm<Layer>));
  library.impl("addmm", TORCH_FN(addmm<Layer>));
  library.impl("matmul", TORCH_FN(matmul<Layer>));
  library.impl("linear", TORCH_FN(linear<Layer>));
  library.impl("_grouped_mm", TORCH_FN(grouped_mm<Layer>));
}

std::vector<torch::Library> make_hooks() {
  std::vector<torch::Library> libraries;
  for (const DispatchKey key : {DispatchKey::AutogradCPU, DispatchKey::AutogradCUDA}) {
    torch::Library& library = libraries.emplace_back(library_of(key));
    add_products<AutogradLayer>(library);
    for (const char* op : kFusedWrites) {
      library.impl(op, torch::CppFunction::makeFromBoxedFunction<&count_fused_write>());
    }
  }
  add_products<InferenceLayer>(libraries.emplace_back(library_of(DispatchKey::BackendSelect)));
  for (const DispatchKey key : {DispatchKey::CPU, DispatchKey::CUDA}) {
    torch::Library& library = libraries.emplace_back(library_of(key));
    library.impl("_to_copy", TORCH_FN(to_copy));
    library.impl("clone", TORCH_FN(clone));
  }
  return libraries;
}

// LibTorch's autograd must still be what an unconverted tensor meets: the way on
// (AutogradLayer::rest) rests on how LibTorch 2.11 fills its dispatch table.
std::string grad_fn_of_plain_mm() {
  const c10::InferenceMode normal_mode(false);
  const at::AutoGradMode grad(true);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const Tensor x = at::ones({2, 2}, at::kFloat).requires_grad_();
  const auto grad_fn = at::mm(x, x).grad_fn();
  return grad_fn ? grad_fn->name() : "(none)";
}

// Never destroyed: libraries must not be unregistered while the process shuts down.
struct State {
  std::mutex mutex;
  std::vector<torch::Library> libraries;
};
State& state() {
  static State* instance = new State;
  return *instance;
}

void remove_aten_hooks() {
  const std::lock_guard lock(state().mutex);
  state().libraries.clear();
}

}  // namespace

void install_aten_hooks() {
  const std::lock_guard lock(state().mutex);
  if (!state().libraries.empty()) return;
  state().libraries = make_hooks();
  const std::string grad_fn = grad_fn_of_plain_mm();
  if (grad_fn == "MmBackward0") return;
  state().libraries.clear();
  fail("quantize_", "LibTorch",
       c10::str("expected MmBackward0 from a plain mm beside moe8's hooks, got ", grad_fn,
                ". Use LibTorch 2.11, or call moe8::quantize_then_linear and "
                "moe8::quantize_then_scaled_grouped_mm directly."));
}

bool aten_hooks_installed() {
  const std::lock_guard lock(state().mutex);
  return !state().libraries.empty();
}

WithoutAtenHooks::WithoutAtenHooks() : were_installed_(aten_hooks_installed()) {
  remove_aten_hooks();
}

WithoutAtenHooks::~WithoutAtenHooks() {
  if (were_installed_) install_aten_hooks();
}

}  // namespace moe8
