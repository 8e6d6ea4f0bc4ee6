// SPDX-License-Identifier: BSD-3-Clause
#include "weights/weight_cache.h"

#include <c10/core/StorageImpl.h>

#include <algorithm>
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
// Lives as long as its weight (tags.h); read and changed under the cache's lock alone.
struct KeptForms {
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

  using Contents = std::vector<Content>;  // of the parts of a joined weight
  using Memory = c10::weak_intrusive_ptr<c10::StorageImpl>;

  struct Entry {
    Contents contents;
    std::vector<Memory> memories{};  // of the parts: an address alone may be that of a later weight
    std::shared_ptr<FormStore> store{};  // null: nothing kept
    bool has_gradient = false;           // a backward ran since the weight last changed
    bool is_trusted = false;             // the weight changed visibly after a backward
  };

  explicit KeptForms(const at::Tensor& W) : memory(W.storage().getWeakStorageImpl()) {}

  std::map<std::vector<Part>, Entry> entries;  // by the parts of a joined weight, this one first
  // Of the weight. Somebody's weak reference to the weight keeps this alive longer than the memory.
  Memory memory;
};

namespace {

using Part = KeptForms::Part;
using Content = KeptForms::Content;
using Contents = KeptForms::Contents;
using Memory = KeptForms::Memory;
using Entry = KeptForms::Entry;

struct Observed {
  Contents contents;
  bool is_converted;       // all parts
  bool counts_all_writes;  // of all parts
};

// Nothing for tensors whose changes no counter tells, or whose memory is not their values.
std::optional<Observed> observe(const at::Tensor& W) {
  if (W.is_inference() || !W.has_storage() || W.numel() == 0) return std::nullopt;
  if (!holds_its_values(W)) return std::nullopt;
  const std::optional<uint64_t> aliases = aliases_made(W);
  return Observed{{{static_cast<uint32_t>(W._version()), W.storage().data(), aliases.value_or(0),
                    current_stream(W.device())}},
                  aliases.has_value(),
                  counts_all_writes(W.is_view() ? W._base() : W)};
}

std::optional<Observed> observe(at::TensorList parts) {
  Observed all{{}, true, true};
  for (const at::Tensor& part : parts) {
    const std::optional<Observed> one = observe(part);
    if (!one) return std::nullopt;
    all.contents.push_back(one->contents.front());
    all.is_converted &= one->is_converted;
    all.counts_all_writes &= one->counts_all_writes;
  }
  return all;
}

Operand operand_of(at::TensorList parts, std::shared_ptr<FormStore> store) {
  return parts.size() == 1 ? Operand(parts.front(), std::move(store))
                           : Operand::joined(parts, std::move(store));
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

  // Of guards that live.
  void add_guards(int guards, bool recomputes) {
    one_backward_ += guards;
    if (!recomputes) one_forward_ += guards;
  }

  CachedOperand for_forward(at::TensorList parts, bool for_training) {
    const std::optional<Observed> now = usable(parts);
    if (!now) return not_kept(parts);
    const std::lock_guard lock(mutex_);
    Entry* const entry = make_entry(parts, *now);
    if (!entry) return not_kept(parts);
    update_trust(*entry, *now);
    const bool is_on = mode() == WeightCache::ON;
    const bool may_reuse = is_on || entry->is_trusted;
    const bool is_for_step = !may_reuse || (!is_on && for_training && one_forward_ > 0);
    if (may_reuse && entry->store && is_unchanged(*entry, *now)) {
      CachedOperand kept = hit(parts, *entry);
      kept.is_for_step = is_for_step;
      return kept;
    }
    entry->contents = now->contents;
    entry->memories = memories_of(parts);
    entry->store.reset();
    ++misses_;
    if (!may_reuse && !for_training) return not_kept(parts);
    entry->store = make_form_store();
    return {operand_of(parts, entry->store), true, is_for_step};
  }

  Operand for_backward(at::TensorList parts) {
    const std::optional<Observed> now = usable(parts);
    if (!now) return not_kept(parts).operand;
    const std::lock_guard lock(mutex_);
    const Entry* const entry = find_entry(parts);
    if (!entry) return not_kept(parts).operand;
    if (entry->store && is_unchanged(*entry, *now)) return hit(parts, *entry).operand;
    ++misses_;
    return not_kept(parts).operand;
  }

  void note_gradient(at::TensorList parts) {
    const std::lock_guard lock(mutex_);
    Entry* const entry = find_entry(parts);
    if (!entry) return;
    entry->has_gradient = true;
    const bool outlives = entry->is_trusted && one_backward_ == 0;
    if (mode() != WeightCache::ON && !outlives) entry->store.reset();
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
  // What is known of the parts when the mode lets their forms be kept at all.
  std::optional<Observed> usable(at::TensorList parts) const {
    const WeightCache mode = this->mode();
    if (mode == WeightCache::OFF) return std::nullopt;
    std::optional<Observed> now = observe(parts);
    return now && (mode == WeightCache::ON || now->is_converted) ? now : std::nullopt;
  }

  // Trust is earned by changes of all parts that were seen, and lost to anybody who could write
  // unseen.
  static void update_trust(Entry& entry, const Observed& now) {
    if (!now.counts_all_writes) {
      entry.has_gradient = entry.is_trusted = false;
    } else if (all_changed(entry.contents, now.contents)) {
      entry.is_trusted |= std::exchange(entry.has_gradient, false);
    }
  }

  static bool all_changed(const Contents& before, const Contents& now) {
    return std::equal(before.begin(), before.end(), now.begin(), now.end(),
                      [](const Content& a, const Content& b) { return a.version != b.version; });
  }

  static bool is_unchanged(const Entry& entry, const Observed& now) {
    const auto is_gone = [](const Memory& memory) { return memory.expired(); };
    return entry.contents == now.contents &&
           std::none_of(entry.memories.begin(), entry.memories.end(), is_gone);
  }

  static std::vector<Memory> memories_of(at::TensorList parts) {
    std::vector<Memory> memories;
    for (const at::Tensor& part : parts) memories.push_back(part.storage().getWeakStorageImpl());
    return memories;
  }

  static std::vector<Part> key_of(at::TensorList parts) { return {parts.begin(), parts.end()}; }

  static Entry* find_entry(at::TensorList parts) {
    const std::shared_ptr<KeptForms>* const kept = kept_forms(parts.front());
    if (!kept || !*kept) return nullptr;
    const auto found = (*kept)->entries.find(key_of(parts));
    return found == (*kept)->entries.end() ? nullptr : &found->second;
  }

  Entry* make_entry(at::TensorList parts, const Observed& now) {
    const at::Tensor& first = parts.front();
    std::shared_ptr<KeptForms>* const kept = make_room_for_forms(first);
    if (!kept) return nullptr;
    if (!*kept || (*kept)->memory.expired()) {
      drop_dead();
      *kept = std::make_shared<KeptForms>(first);
      all_.push_back(*kept);
    }
    return &(*kept)->entries.try_emplace(key_of(parts), Entry{now.contents}).first->second;
  }

  void drop_dead() {
    for (const std::weak_ptr<KeptForms>& weight : all_) {
      const std::shared_ptr<KeptForms> kept = weight.lock();
      if (kept && kept->memory.expired()) kept->entries.clear();
    }
    std::erase_if(all_, [](const auto& weight) { return weight.expired(); });
  }

  template <typename F>
  void for_each_entry(F f) {
    for (const std::weak_ptr<KeptForms>& weight : all_) {
      const std::shared_ptr<KeptForms> kept = weight.lock();
      if (!kept) continue;
      for (auto& [parts, entry] : kept->entries) f(entry);
    }
  }

  static CachedOperand not_kept(at::TensorList parts) {
    return {operand_of(parts, make_form_store()), false};
  }

  CachedOperand hit(at::TensorList parts, const Entry& entry) {
    ++hits_;
    return {operand_of(parts, entry.store), true};
  }

  std::atomic<WeightCache> mode_{mode_from_environment()};
  std::atomic<int> one_backward_{0}, one_forward_{0};  // FormsForOneBackward
  std::mutex mutex_;
  std::vector<std::weak_ptr<KeptForms>> all_;  // of every weight; the weights own them
  int64_t hits_ = 0;
  int64_t misses_ = 0;
};

}  // namespace

FormsForOneBackward::FormsForOneBackward(bool recomputes) : recomputes_(recomputes) {
  Cache::instance().add_guards(1, recomputes_);
}

FormsForOneBackward::~FormsForOneBackward() {
  Cache::instance().add_guards(-1, recomputes_);
}

CachedOperand weight_for_forward(const at::Tensor& W, bool for_training) {
  return Cache::instance().for_forward(W, for_training);
}

Operand weight_for_backward(const at::Tensor& W) {
  return Cache::instance().for_backward(W);
}

void note_weight_gradient(const at::Tensor& W) {
  note_weight_gradients(W);
}

CachedOperand weights_for_forward(at::TensorList parts, bool for_training) {
  return Cache::instance().for_forward(parts, for_training);
}

Operand weights_for_backward(at::TensorList parts) {
  return Cache::instance().for_backward(parts);
}

void note_weight_gradients(at::TensorList parts) {
  const auto has_storage = [](const at::Tensor& part) { return part.has_storage(); };
  if (std::all_of(parts.begin(), parts.end(), has_storage)) {
    Cache::instance().note_gradient(parts);
  }
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
