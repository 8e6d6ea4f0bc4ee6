// SPDX-License-Identifier: BSD-3-Clause
#include "gemm/observer.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "weights/tags.h"

namespace moe8 {
namespace {

std::atomic<int> listening{0};
thread_local bool unobserved = false;

struct Observers {
  std::shared_mutex mutex;  // shared while observers run, so that stop() waits for them
  std::vector<GemmObserver*> all;
};
// Never destroyed: threads of LibTorch may outlive static storage.
Observers& observers() {
  static Observers* instance = new Observers;
  return *instance;
}

}  // namespace

WeightId weight_id(const at::Tensor& W) {
  const std::optional<Tagged> tagged = find_tag(W);
  const at::TensorBase& weight = W.is_view() ? W._base() : W;
  return {tagged ? tagged->ids.vec() : std::vector<uint64_t>(), weight.unsafeGetTensorImpl()};
}

bool numerics_observed() {
  return listening.load(std::memory_order_relaxed) != 0;
}

void GemmObserver::start() {
  const std::unique_lock lock(observers().mutex);
  observers().all.push_back(this);
  ++listening;
}

void GemmObserver::stop() {
  const std::unique_lock lock(observers().mutex);
  if (std::erase(observers().all, this) > 0) --listening;
}

UnobservedProducts::UnobservedProducts() : before_(std::exchange(unobserved, true)) {}
UnobservedProducts::~UnobservedProducts() {
  unobserved = before_;
}

void show_to_observers(const GemmProblem& problem, const at::Tensor& result) {
  if (unobserved) return;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
  const std::shared_lock lock(observers().mutex);
  for (GemmObserver* observer : observers().all) observer->observe(problem, result);
}

}  // namespace moe8
