// SPDX-License-Identifier: BSD-3-Clause
// How a hook sits in LibTorch's dispatcher: the layers at which calls are seen, the way on to
// LibTorch's own kernel, and the two kinds of hooks (before and after that kernel).
#pragma once

#include <torch/library.h>
#include <torch/torch.h>

#include <string>
#include <type_traits>
#include <utility>

#include "weights/backward_end.h"
#include "weights/inside_product.h"
#include "weights/tags.h"
#include "weights/usage.h"

namespace moe8::hooks {

/// Hooks above LibTorch's autograd kernels. Those fill the slots AutogradCPU, AutogradCUDA and
/// AutogradOther alike; we take the first two, so AutogradOther still leads to the kernel we
/// displaced.
struct AutogradLayer {
  static bool active() { return !InsideProduct::now(); }
  static c10::DispatchKeySet rest(c10::DispatchKeySet keys) {
    return (keys & c10::after_autograd_keyset) |
           c10::DispatchKeySet(c10::DispatchKey::AutogradOther);
  }
};

/// Hooks for InferenceMode, which skips autograd keys.
struct InferenceLayer {
  static bool active() { return c10::InferenceMode::is_enabled() && !InsideProduct::now(); }
  static c10::DispatchKeySet rest(c10::DispatchKeySet keys) {
    return keys &
           c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::BackendSelect);
  }
};

/// A product that is left to LibTorch: when a backward through it ends, converted weights that
/// never took part in any product are noticed.
inline at::Tensor watched(at::Tensor result) {
  judge_after_backward_through(result);
  return result;
}

/// Op: one of at::_ops. Try takes its arguments and returns something that is true and leads to the
/// result (std::optional<Tensor>, Tensor*), or is false: then LibTorch computes.
template <typename Layer, typename Op, auto Try, typename Schema = typename Op::schema>
struct Before;
template <typename Layer, typename Op, auto Try, typename R, typename... Args>
struct Before<Layer, Op, Try, R(Args...)> {
  static R call(c10::DispatchKeySet keys, Args... args) {
    if (any_tags() && Layer::active()) {
      if (auto result = Try(args...)) return *std::move(result);
      if constexpr (std::is_same_v<R, at::Tensor>) {
        if (any_unjudged()) return watched(Op::redispatch(Layer::rest(keys), args...));
      }
    }
    return Op::redispatch(Layer::rest(keys), args...);
  }
};

/// Mark takes LibTorch's result and the arguments.
template <typename Layer, typename Op, auto Mark, typename Schema = typename Op::schema>
struct After;
template <typename Layer, typename Op, auto Mark, typename R, typename... Args>
struct After<Layer, Op, Mark, R(Args...)> {
  static R call(c10::DispatchKeySet keys, Args... args) {
    R result = Op::redispatch(Layer::rest(keys), args...);
    if (any_tags() && Layer::active()) Mark(result, args...);
    return result;
  }
};

template <typename Op>
std::string name_of() {
  const std::string name(Op::name), overload(Op::overload_name);
  return overload.empty() ? name : name + "." + overload;
}

template <typename Layer, typename Op, auto Try>
void add_before(torch::Library& library) {
  using Kernel = Before<Layer, Op, Try>;
  library.impl(name_of<Op>().c_str(), TORCH_FN(Kernel::call));
}

template <typename Layer, typename Op, auto Mark>
void add_after(torch::Library& library) {
  using Kernel = After<Layer, Op, Mark>;
  library.impl(name_of<Op>().c_str(), TORCH_FN(Kernel::call));
}

}  // namespace moe8::hooks
