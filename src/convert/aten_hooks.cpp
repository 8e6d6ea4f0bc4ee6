// SPDX-License-Identifier: BSD-3-Clause
// Installs the hooks of src/convert/hooks/. Three layers, because no single dispatch key sees every
// call:
//   AutogradCPU/CUDA  training and no_grad: products, what is made of weights, fused optimizers
//   BackendSelect     products and what is made of weights in InferenceMode, where autograd keys
//                     are skipped
//   CPU/CUDA          copies, in every mode
#include "convert/aten_hooks.h"

#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <torch/csrc/autograd/function.h>
#include <torch/library.h>

#include <mutex>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/plain_text.h"
#include "convert/hooks/hooks.h"

namespace moe8 {
namespace {

using at::Tensor;
using c10::DispatchKey;

torch::Library library_of(DispatchKey key) {
  return torch::Library(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
}

std::vector<torch::Library> make_hooks() {
  using hooks::LayerKind;
  std::vector<torch::Library> libraries;
  for (const DispatchKey key : {DispatchKey::AutogradCPU, DispatchKey::AutogradCUDA}) {
    torch::Library& library = libraries.emplace_back(library_of(key));
    hooks::add_products(library, LayerKind::AUTOGRAD);
    hooks::add_made(library, LayerKind::AUTOGRAD);
    hooks::add_writes(library);
  }
  torch::Library& inference = libraries.emplace_back(library_of(DispatchKey::BackendSelect));
  hooks::add_products(inference, LayerKind::INFERENCE);
  hooks::add_made(inference, LayerKind::INFERENCE);
  for (const DispatchKey key : {DispatchKey::CPU, DispatchKey::CUDA}) {
    hooks::add_copies(libraries.emplace_back(library_of(key)));
  }
  return libraries;
}

// LibTorch's autograd must still be what an unconverted tensor meets: the way on
// (hooks::AutogradLayer::rest) rests on how LibTorch (2.11 to 2.15) fills its dispatch table.
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
       concat("expected MmBackward0 from a plain mm beside moe8's hooks, got ", grad_fn,
              ". Use LibTorch 2.11 to 2.15, or call moe8::quantize_then_linear and "
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
