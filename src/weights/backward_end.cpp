// SPDX-License-Identifier: BSD-3-Clause
#include "weights/backward_end.h"

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "weights/usage.h"

namespace moe8 {
namespace {

namespace autograd = torch::autograd;
using autograd::variable_list;

// The backwards under way that judge when they have ended.
struct Backwards {
  std::mutex mutex;
  std::set<int> ids;  // of LibTorch's graph tasks

  bool add(int id) {
    const std::lock_guard lock(mutex);
    return ids.insert(id).second;
  }
  void remove(int id) {
    const std::lock_guard lock(mutex);
    ids.erase(id);
  }
};
// Never destroyed: threads of LibTorch may outlive static storage.
Backwards& backwards() {
  static Backwards* instance = new Backwards;
  return *instance;
}

// ---- by a gradient ------------------------------------------------------------
// What a weight's hook does. LibTorch destroys hooks with their tensor, also while somebody refers
// to it weakly. A graph made before the conversion reaches the hook once without counting.
class GradientWatch {
 public:
  GradientWatch(const at::TensorBase& weight, uint64_t id, bool skips_first)
      : weight_(weight.unsafeGetTensorImpl()), id_(id), skips_next_(skips_first) {}
  ~GradientWatch() { end_watch(id_, weight_); }
  GradientWatch(const GradientWatch&) = delete;
  GradientWatch& operator=(const GradientWatch&) = delete;

  void see(const at::TensorBase& grad) {
    if (!grad.defined() || !any_unjudged()) return;
    if (skips_next_.exchange(false)) return;
    note_gradient(id_, autograd::get_current_graph_task_id());
    judge_after_this_backward();
  }

 private:
  const c10::TensorImpl* const weight_;
  const uint64_t id_;
  std::atomic<bool> skips_next_;
};

// For tensors that have hooks of Python's: LibTorch keeps either those or lists of C++ functions.
struct WatchHook final : autograd::FunctionPreHook {
  explicit WatchHook(std::shared_ptr<GradientWatch> own_watch) : watch(std::move(own_watch)) {}
  variable_list operator()(const variable_list& grads) override {
    watch->see(grads[0]);
    return grads;
  }
  const std::shared_ptr<GradientWatch> watch;
};

// ---- by a product -------------------------------------------------------------
std::atomic<bool> watches_product{false};  // one at a time is enough

struct ProductHook final : autograd::FunctionPreHook {
  ProductHook() = default;
  ProductHook(const ProductHook&) = delete;
  ProductHook& operator=(const ProductHook&) = delete;
  ~ProductHook() override { watches_product = false; }
  variable_list operator()(const variable_list& grads) override {
    judge_after_this_backward();
    return grads;
  }
};

}  // namespace

void watch_gradient(const at::Tensor& weight, uint64_t id) {
  if (weight.is_inference()) return;
  const bool has_graph = autograd::impl::try_get_grad_accumulator(weight) != nullptr;
  const auto watch = std::make_shared<GradientWatch>(weight, id, has_graph);
  // As register_hook, which refuses frozen tensors: those may be trained later.
  autograd::AutogradMeta* meta = autograd::impl::materialize_autograd_meta(weight);
  if (!meta->cpp_hooks_list_ && !autograd::impl::hooks(weight).empty()) {
    autograd::impl::add_hook(weight, std::make_unique<WatchHook>(watch));
    return;
  }
  if (!meta->cpp_hooks_list_) autograd::impl::create_cpp_hook(weight);
  meta->cpp_hooks_list_->push_back([watch](const at::TensorBase& grad) {
    watch->see(grad);
    return at::TensorBase();  // the gradient as it is
  });
}

void judge_after_this_backward() {
  const int id = autograd::get_current_graph_task_id();
  if (id < 0 || !backwards().add(id)) return;
  autograd::Engine::get_default_engine().queue_callback([id] {
    backwards().remove(id);
    judge_uses(id);
  });
}

void judge_after_backward_through(const at::Tensor& result) {
  if (!result.grad_fn() || watches_product.exchange(true)) return;
  result.grad_fn()->add_pre_hook(std::make_unique<ProductHook>());
}

}  // namespace moe8
