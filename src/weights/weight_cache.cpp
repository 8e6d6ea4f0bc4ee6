// SPDX-License-Identifier: BSD-3-Clause
#include "weights/weight_cache.h"

#include <c10/core/StorageImpl.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "device/cuda_device.h"
#include "moe8/memory.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

// Which part of which memory a weight is. The storage is held weakly, so its address stays taken.
struct Place {
  const c10::StorageImpl* storage;
  int64_t offset;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  at::ScalarType dtype;

  explicit Place(const at::Tensor& W)
      : storage(W.storage().unsafeGetStorageImpl()),
        offset(W.storage_offset()),
        sizes(W.sizes().vec()),
        strides(W.strides().vec()),
        dtype(W.scalar_type()) {}
  auto operator<=>(const Place&) const = default;
};

// What must be equal for a kept form to be that of the weight as it is now.
struct Content {
  uint32_t version;
  const void* memory;
  uint64_t aliases_made;
  StreamId stream;  // forms of one stream are not ready on another

  bool operator==(const Content&) const = default;
};

struct Entry {
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
  Content content;
  std::shared_ptr<FormStore> store;  // null: nothing kept
  bool has_gradient = false;         // a backward ran since the weight last changed
  bool is_trusted = false;           // the weight changed visibly after a backward
};

struct Observed {
  Content content;
  bool is_converted;
  bool has_alias;
};

// Nothing for tensors whose changes no counter tells.
std::optional<Observed> observe(const at::Tensor& W) {
  if (W.is_inference() || !W.has_storage() || W.numel() == 0) return std::nullopt;
  const std::optional<AliasWatch> watch = watch_aliases(W);
  return Observed{{static_cast<uint32_t>(W._version()), W.storage().data(),
                   watch ? watch->aliases_made : 0, current_stream(W.device())},
                  watch.has_value(),
                  watch && watch->has_alias};
}

WeightCache mode_from_environment() {
  const char* setting = std::getenv("MOE8_WEIGHT_CACHE");
  const std::string_view text = setting ? setting : "";
  return text == "off" ? WeightCache::OFF : text == "on" ? WeightCache::ON : WeightCache::AUTO;
}

class Cache {
 public:
  // Never destroyed: weights in static storage may outlive it.
  static Cache& instance() {
    static Cache* cache = new Cache;
    return *cache;
  }

  WeightCache mode() const { return mode_.load(); }
  void set_mode(WeightCache mode) {
    mode_.store(mode);
    if (mode == WeightCache::OFF) clear();
  }

  CachedOperand for_forward(const at::Tensor& W, bool for_training) {
    const std::optional<Observed> now = usable(W);
    if (!now) return {Operand(W), false};
    const std::lock_guard lock(mutex_);
    Entry& entry = entry_of(W, *now);
    if (entry.content.version != now->content.version) {
      entry.is_trusted |= std::exchange(entry.has_gradient, false);
    }
    const bool may_reuse = mode() == WeightCache::ON || entry.is_trusted;
    if (may_reuse && entry.store && entry.content == now->content) return hit(W, entry);
    entry.content = now->content;
    entry.store.reset();
    ++misses_;
    if (!may_reuse && !for_training) return {Operand(W), false};
    entry.store = make_form_store();
    return {Operand(W, entry.store), true};
  }

  Operand for_backward(const at::Tensor& W) {
    const std::optional<Observed> now = usable(W);
    if (!now) return Operand(W);
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(Place(W));
    if (found == entries_.end()) return Operand(W);
    Entry& entry = found->second;
    if (entry.store && entry.content == now->content) return hit(W, entry).operand;
    ++misses_;
    return Operand(W);
  }

  void note_gradient(const at::Tensor& W) {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(Place(W));
    if (found == entries_.end()) return;
    found->second.has_gradient = true;
    if (mode() != WeightCache::ON && !found->second.is_trusted) found->second.store.reset();
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    for (auto& [place, entry] : entries_) entry.store.reset();
  }

  WeightCacheUse use() {
    const std::lock_guard lock(mutex_);
    WeightCacheUse use{hits_, misses_, 0, 0};
    for (auto& [place, entry] : entries_) {
      if (!entry.store || entry.storage.expired()) continue;
      ++use.weights;
      use.bytes += form_bytes(*entry.store);
    }
    return use;
  }

 private:
  // What is known of W when the mode lets its forms be kept at all.
  std::optional<Observed> usable(const at::Tensor& W) const {
    const WeightCache mode = this->mode();
    if (mode == WeightCache::OFF) return std::nullopt;
    std::optional<Observed> now = observe(W);
    const bool is_seen = now && (mode == WeightCache::ON || (now->is_converted && !now->has_alias));
    return is_seen ? now : std::nullopt;
  }

  Entry& entry_of(const at::Tensor& W, const Observed& now) {
    const auto found = entries_.find(Place(W));
    if (found != entries_.end()) return found->second;
    // The weights of a model are few, and a new one is about to be quantized: time to look for dead
    // ones, whose forms hold memory.
    std::erase_if(entries_, [](const auto& item) { return item.second.storage.expired(); });
    Entry entry{W.storage().getWeakStorageImpl(), now.content, nullptr};
    return entries_.emplace(Place(W), std::move(entry)).first->second;
  }

  CachedOperand hit(const at::Tensor& W, const Entry& entry) {
    ++hits_;
    return {Operand(W, entry.store), true};
  }

  std::atomic<WeightCache> mode_{mode_from_environment()};
  std::mutex mutex_;
  std::map<Place, Entry> entries_;
  int64_t hits_ = 0;
  int64_t misses_ = 0;
};

bool saves_quantized_at_start() {
  const char* setting = std::getenv("MOE8_SAVE_ACTIVATIONS");
  return !setting || std::string_view(setting) != "source";
}

std::atomic<bool>& saves_quantized() {
  static std::atomic<bool> value{saves_quantized_at_start()};
  return value;
}

}  // namespace

CachedOperand weight_for_forward(const at::Tensor& W, bool for_training) {
  return Cache::instance().for_forward(W, for_training);
}

Operand weight_for_backward(const at::Tensor& W) {
  return Cache::instance().for_backward(W);
}

void note_weight_gradient(const at::Tensor& W) {
  if (W.has_storage()) Cache::instance().note_gradient(W);
}

void set_weight_cache(WeightCache mode) {
  Cache::instance().set_mode(mode);
}

WeightCache weight_cache() {
  return Cache::instance().mode();
}

void clear_weight_cache() {
  Cache::instance().clear();
}

WeightCacheUse weight_cache_use() {
  return Cache::instance().use();
}

void set_save_quantized_activations(bool quantized) {
  saves_quantized().store(quantized);
}

bool save_quantized_activations() {
  return saves_quantized().load();
}

}  // namespace moe8
