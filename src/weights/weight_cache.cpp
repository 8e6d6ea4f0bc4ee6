// SPDX-License-Identifier: BSD-3-Clause
#include "weights/weight_cache.h"

#include <c10/core/StorageImpl.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "device/cuda_device.h"
#include "moe8/memory.h"
#include "quantize/check_input.h"
#include "weights/sharing.h"
#include "weights/tags.h"

namespace moe8 {
namespace {

// Which part of the weight's memory a product reads, and how.
struct Part {
  int64_t offset;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  at::ScalarType dtype;

  explicit Part(const at::Tensor& W)
      : offset(W.storage_offset()),
        sizes(W.sizes().vec()),
        strides(W.strides().vec()),
        dtype(W.scalar_type()) {}
  auto operator<=>(const Part&) const = default;
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
  Content content;
  std::shared_ptr<FormStore> store;  // null: nothing kept
  bool has_gradient = false;         // a backward ran since the weight last changed
  bool is_trusted = false;           // the weight changed visibly after a backward
};

struct Observed {
  Content content;
  bool is_converted;
  bool counts_all_writes;
};

// Nothing for tensors whose changes no counter tells, or whose memory is not their values.
std::optional<Observed> observe(const at::Tensor& W) {
  if (W.is_inference() || !W.has_storage() || W.numel() == 0) return std::nullopt;
  if (!holds_its_values(W)) return std::nullopt;
  const std::optional<uint64_t> aliases = aliases_made(W);
  return Observed{{static_cast<uint32_t>(W._version()), W.storage().data(), aliases.value_or(0),
                   current_stream(W.device())},
                  aliases.has_value(),
                  counts_all_writes(W.is_view() ? W._base() : W)};
}

WeightCache mode_from_environment() {
  const char* setting = std::getenv("MOE8_WEIGHT_CACHE");
  const std::string_view text = setting ? setting : "";
  return text == "off" ? WeightCache::OFF : text == "on" ? WeightCache::ON : WeightCache::AUTO;
}

}  // namespace

// Lives as long as its weight (tags.h); read and changed under the cache's lock alone.
struct KeptForms {
  explicit KeptForms(const at::Tensor& W) : memory(W.storage().getWeakStorageImpl()) {}

  std::map<Part, Entry> parts;
  // Of the weight. Somebody's weak reference to the weight keeps this alive longer than the memory.
  c10::weak_intrusive_ptr<c10::StorageImpl> memory;
};

namespace {

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
    Entry* const entry = make_entry(W, *now);
    if (!entry) return {Operand(W), false};
    update_trust(*entry, *now);
    const bool may_reuse = mode() == WeightCache::ON || entry->is_trusted;
    if (may_reuse && entry->store && entry->content == now->content) return hit(W, *entry);
    entry->content = now->content;
    entry->store.reset();
    ++misses_;
    if (!may_reuse && !for_training) return {Operand(W), false};
    entry->store = make_form_store();
    return {Operand(W, entry->store), true};
  }

  Operand for_backward(const at::Tensor& W) {
    const std::optional<Observed> now = usable(W);
    if (!now) return Operand(W);
    const std::lock_guard lock(mutex_);
    const Entry* const entry = find_entry(W);
    if (!entry) return Operand(W);
    if (entry->store && entry->content == now->content) return hit(W, *entry).operand;
    ++misses_;
    return Operand(W);
  }

  void note_gradient(const at::Tensor& W) {
    const std::lock_guard lock(mutex_);
    Entry* const entry = find_entry(W);
    if (!entry) return;
    entry->has_gradient = true;
    if (mode() != WeightCache::ON && !entry->is_trusted) entry->store.reset();
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    for_each_entry([](Entry& entry) { entry.store.reset(); });
  }

  WeightCacheUse use() {
    const std::lock_guard lock(mutex_);
    drop_dead();
    WeightCacheUse use{hits_, misses_, 0, 0};
    for_each_entry([&](const Entry& entry) {
      if (!entry.store) return;
      ++use.weights;
      use.bytes += form_bytes(*entry.store);
    });
    return use;
  }

 private:
  // What is known of W when the mode lets its forms be kept at all.
  std::optional<Observed> usable(const at::Tensor& W) const {
    const WeightCache mode = this->mode();
    if (mode == WeightCache::OFF) return std::nullopt;
    std::optional<Observed> now = observe(W);
    return now && (mode == WeightCache::ON || now->is_converted) ? now : std::nullopt;
  }

  // Trust is earned by a change that was seen, and lost to anybody who could write unseen.
  static void update_trust(Entry& entry, const Observed& now) {
    if (!now.counts_all_writes) {
      entry.has_gradient = entry.is_trusted = false;
    } else if (entry.content.version != now.content.version) {
      entry.is_trusted |= std::exchange(entry.has_gradient, false);
    }
  }

  static Entry* find_entry(const at::Tensor& W) {
    const std::shared_ptr<KeptForms>* const kept = kept_forms(W);
    if (!kept || !*kept) return nullptr;
    const auto found = (*kept)->parts.find(Part(W));
    return found == (*kept)->parts.end() ? nullptr : &found->second;
  }

  Entry* make_entry(const at::Tensor& W, const Observed& now) {
    std::shared_ptr<KeptForms>* const kept = make_room_for_forms(W);
    if (!kept) return nullptr;
    if (!*kept || (*kept)->memory.expired()) {
      drop_dead();
      *kept = std::make_shared<KeptForms>(W);
      all_.push_back(*kept);
    }
    return &(*kept)->parts.try_emplace(Part(W), Entry{now.content, nullptr}).first->second;
  }

  void drop_dead() {
    for (const std::weak_ptr<KeptForms>& weight : all_) {
      const std::shared_ptr<KeptForms> kept = weight.lock();
      if (kept && kept->memory.expired()) kept->parts.clear();
    }
    std::erase_if(all_, [](const auto& weight) { return weight.expired(); });
  }

  template <typename F>
  void for_each_entry(F f) {
    for (const std::weak_ptr<KeptForms>& weight : all_) {
      const std::shared_ptr<KeptForms> kept = weight.lock();
      if (!kept) continue;
      for (auto& [part, entry] : kept->parts) f(entry);
    }
  }

  CachedOperand hit(const at::Tensor& W, const Entry& entry) {
    ++hits_;
    return {Operand(W, entry.store), true};
  }

  std::atomic<WeightCache> mode_{mode_from_environment()};
  std::mutex mutex_;
  std::vector<std::weak_ptr<KeptForms>> all_;  // of every weight; the weights own them
  int64_t hits_ = 0;
  int64_t misses_ = 0;
};

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

}  // namespace moe8
