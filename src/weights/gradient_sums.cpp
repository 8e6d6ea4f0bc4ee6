// SPDX-License-Identifier: BSD-3-Clause
#include "weights/gradient_sums.h"

#include <atomic>
#include <unordered_map>
#include <utility>

namespace moe8 {
namespace {

// By the weight's TensorImpl, which a registered sum keeps alive.
struct SumRegistry {
  std::mutex mutex;
  std::unordered_map<const c10::TensorImpl*, std::weak_ptr<GradientSum>> sums;
  std::atomic<int64_t> count{0};
};
// Never destroyed: optimizers in static storage may outlive it.
SumRegistry& sum_registry() {
  static SumRegistry* registry = new SumRegistry;
  return *registry;
}

}  // namespace

SummedWeight::SummedWeight(const at::Tensor& weight, const at::Tensor& holder)
    : sum_(std::make_shared<GradientSum>(weight, holder)) {
  SumRegistry& registry = sum_registry();
  const std::lock_guard lock(registry.mutex);
  registry.sums[weight.unsafeGetTensorImpl()] = sum_;
  ++registry.count;
}

SummedWeight::~SummedWeight() {
  if (!sum_) return;
  SumRegistry& registry = sum_registry();
  const std::lock_guard lock(registry.mutex);
  const auto found = registry.sums.find(sum_->weight.unsafeGetTensorImpl());
  if (found != registry.sums.end() && found->second.lock() == sum_) registry.sums.erase(found);
  --registry.count;
}

bool SummedWeight::take_newer() {
  const std::lock_guard lock(sum_->mutex);
  return std::exchange(sum_->is_newer, false);
}

std::weak_ptr<GradientSum> gradient_sum_of(const at::Tensor& weight) {
  SumRegistry& registry = sum_registry();
  if (registry.count.load(std::memory_order_relaxed) == 0 || !weight.defined()) return {};
  const std::lock_guard lock(registry.mutex);
  const auto found = registry.sums.find(weight.unsafeGetTensorImpl());
  return found == registry.sums.end() ? std::weak_ptr<GradientSum>() : found->second;
}

}  // namespace moe8
