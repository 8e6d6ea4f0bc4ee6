// SPDX-License-Identifier: BSD-3-Clause
#include "weights/tags.h"

#include <c10/core/TensorImpl.h>
#include <c10/core/UndefinedTensorImpl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "weights/usage.h"

namespace moe8 {
namespace {

std::atomic<int64_t> live_tags{0};
std::atomic<uint64_t> last_id{0};

// Shared by a weight and its aliases; one whose config was taken away marks nothing.
struct Tag final : c10::intrusive_ptr_target {
  explicit Tag(const Config& c) : Tag(MadeOf{.config = c, .ids = {++last_id}}) {}
  explicit Tag(MadeOf m) : config(m.config), made(std::move(m)) {
    ++live_tags;
    uses.reserve(made.ids.size());
    for (const uint64_t id : made.ids) uses.push_back(use_record(id));
  }
  ~Tag() override { --live_tags; }
  Tag(const Tag&) = delete;
  Tag& operator=(const Tag&) = delete;

  /// Of a weight, or a copy that is one in all respects.
  bool is_whole() const {
    return made.ids.size() == 1 && !made.axes && !made.is_lookup && !made.why_lost;
  }
  /// That may be contracted, of the tensor that carries this tag.
  AxisSet axes(int64_t dim) const { return made.axes.value_or(matrix_axes(dim)); }

  std::optional<Config> config;
  const MadeOf made;
  // Of the weights that this was made of; shared with the tags of copies. Held, not looked at.
  std::vector<std::shared_ptr<UseRecord>> uses;
  std::atomic<uint64_t> aliases_made{0};
};
using TagPtr = c10::intrusive_ptr<Tag>;

// What a tensor itself carries: its tag, and what goes with the tensor, not with its aliases.
struct Mark final : c10::BackendMeta {
  explicit Mark(TagPtr t) : tag(std::move(t)) {}
  ~Mark() override;
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;

  // LibTorch calls this for every alias: data(), detach(), set_data().
  c10::intrusive_ptr<c10::BackendMeta> clone(
      const c10::intrusive_ptr<c10::BackendMeta>&) const override {
    if (!tag) return nullptr;
    ++tag->aliases_made;
    return c10::make_intrusive<Mark>(tag);
  }

  const TagPtr tag;  // null: no converted weight, only one whose forms are kept
  std::shared_ptr<KeptForms> kept;
  c10::TensorImpl* keeper = nullptr;  // set: the tensor that carries this, and may keep forms
};

Mark* mark_of(const at::TensorBase& tensor) {
  return dynamic_cast<Mark*>(tensor.unsafeGetTensorImpl()->get_backend_meta());
}

Tag* meta_tag(const at::TensorBase& tensor) {
  const Mark* mark = mark_of(tensor);
  return mark ? mark->tag.get() : nullptr;
}

// The bytes of its storage that a tensor covers.
struct Extent {
  const c10::StorageImpl* storage;
  int64_t begin;
  int64_t end;

  bool contains(const Extent& other) const {
    return storage == other.storage && begin <= other.begin && other.end <= end;
  }
};

Extent extent_of(const at::TensorBase& tensor) {
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    last += std::max<int64_t>(tensor.size(i) - 1, 0) * tensor.stride(i);
  }
  const auto item = static_cast<int64_t>(tensor.itemsize());
  const int64_t begin = tensor.storage_offset() * item;
  return {tensor.storage().unsafeGetStorageImpl(), begin, begin + (last + 1) * item};
}

// True when `tensor` can only be a view of `weight`. Weights whose rows lie apart in memory (slices
// of a larger buffer) may have others between their rows: of those only whole views are known.
bool covers(const at::Tensor& weight, const at::Tensor& tensor, const Extent& extent) {
  if (weight.storage().unsafeGetStorageImpl() != extent.storage) return false;
  const Extent own = extent_of(weight);
  if (!own.contains(extent)) return false;
  const bool dense = own.end - own.begin == static_cast<int64_t>(weight.nbytes());
  return dense || (own.begin == extent.begin && weight.numel() == tensor.numel());
}

// True for a weight whose views do not lead back to it by _base().
bool views_lose(const at::TensorBase& weight) {
  return weight.has_storage() && (weight.is_inference() || weight.is_view());
}

// What `view`, which is `weight` or shares its memory, is by the tag of that weight.
Tagged seen_as(const at::TensorBase& view, const at::TensorBase& weight, const Tag& tag) {
  const AxisSet axes = tag.axes(weight.dim());
  return {&*tag.config, tag.made.ids,
          view.is_same(weight) ? axes : axes_of_view(weight, axes, view), tag.made.is_lookup};
}

// Says of an address, without a lock, that it is in no table: what most products' operands hear.
class AddressFilter {
 public:
  void add(const void* address) { ++counts_[slot_of(address)]; }
  void remove(const void* address) { --counts_[slot_of(address)]; }
  bool may_hold(const void* address) const {
    return counts_[slot_of(address)].load(std::memory_order_acquire) != 0;
  }

 private:
  static constexpr size_t kSlots = 4096;

  static size_t slot_of(const void* address) {
    return std::hash<uintptr_t>()(reinterpret_cast<uintptr_t>(address) >> 4) % kSlots;
  }

  std::array<std::atomic<uint32_t>, kSlots> counts_{};  // of the addresses in the table
};

class Registry {
 public:
  // Never destroyed: tensors in static storage may outlive it.
  static Registry& instance() {
    static Registry* registry = new Registry;
    return *registry;
  }

  // The pointer stays valid while its tensor lives: entries go only with their tensor or clear().
  Tag* find(const c10::TensorImpl* impl) const {
    if (!filter_.may_hold(impl)) return nullptr;
    const std::shared_lock lock(mutex_);
    const auto found = entries_.find(impl);
    return found == entries_.end() ? nullptr : found->second.tag.get();
  }

  void insert(const at::Tensor& weight, TagPtr tag) {
    std::vector<at::Tensor> alive;  // outlives the lock, as in find_by_memory
    const std::unique_lock lock(mutex_);
    if (entries_.size() >= purge_at_) purge(alive);
    const Mark* const mark = mark_of(weight);
    Entry entry{std::nullopt, std::move(tag)};
    if (!mark || !mark->keeper) entry.weight = Weak(weight.getIntrusivePtr());
    const c10::TensorImpl* impl = weight.unsafeGetTensorImpl();
    if (entries_.insert_or_assign(impl, std::move(entry)).second) filter_.add(impl);
    if (views_lose(weight) && std::ranges::find(by_memory_, impl) == by_memory_.end()) {
      by_memory_.push_back(impl);
      has_by_memory_ = true;
    }
  }

  void erase(const c10::TensorImpl* impl) {
    const std::unique_lock lock(mutex_);
    const auto found = entries_.find(impl);
    if (found != entries_.end()) erase(found);
  }

  // A weak reference leaves a dead TensorImpl its mark, and that the forms. The entry of a weight
  // that keeps forms does without: its mark says when it goes.
  void rely_on_mark(const at::TensorBase& weight) {
    const std::unique_lock lock(mutex_);
    const auto found = entries_.find(weight.unsafeGetTensorImpl());
    if (found != entries_.end()) found->second.weight.reset();
  }

  void lose_mark(c10::TensorImpl* impl) {
    const std::unique_lock lock(mutex_);
    const auto found = entries_.find(impl);
    if (found == entries_.end() || found->second.weight) return;
    if (c10::raw::intrusive_ptr::use_count(impl) == 0) {
      erase(found);  // the tensor is being destroyed
    } else {
      found->second.weight = Weak(Strong::unsafe_reclaim_from_nonowning(impl));  // set_data()
    }
  }

  // Some weights' views have no base that leads to them: weights made in InferenceMode, and weights
  // that are views themselves. Their memory tells.
  std::optional<Tagged> find_by_memory(const at::Tensor& tensor) const {
    if (!has_by_memory_.load(std::memory_order_relaxed) || !tensor.has_storage()) return {};
    if (tensor.storage().use_count() == 1) return {};  // alone in its memory: no view of a weight
    const Extent extent = extent_of(tensor);
    std::vector<at::Tensor> alive;  // outlives the lock: the last reference to one may be here
    const std::shared_lock lock(mutex_);  // nobody inserts meanwhile
    bool is_any_alive = false;
    for (const c10::TensorImpl* impl : by_memory_) {
      const Entry& entry = entries_.at(impl);
      const at::Tensor& weight = alive.emplace_back(entry.lock());
      if (!weight.defined()) continue;
      is_any_alive = true;
      if (!entry.tag->config) continue;
      if (covers(weight, tensor, extent)) return seen_as(tensor, weight, *entry.tag);
    }
    if (!is_any_alive) has_by_memory_ = false;  // the last one is gone: no more looking
    return {};
  }

 private:
  using Strong = c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  using Weak = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

  struct Entry {
    // Keeps the address from being used again, not the tensor's memory. Not set: the tensor lives,
    // and its mark tells when it does not.
    std::optional<Weak> weight;
    TagPtr tag;

    // Undefined for those without a weak reference: their views have a base, nobody scans for them.
    at::Tensor lock() const { return weight ? at::Tensor(weight->lock()) : at::Tensor(); }
  };

  using Entries = std::unordered_map<const c10::TensorImpl*, Entry>;

  static constexpr size_t kMinPurgeAt = 64;

  Entries::iterator erase(Entries::iterator entry) {
    filter_.remove(entry->first);
    std::erase(by_memory_, entry->first);
    return entries_.erase(entry);
  }

  // Entries of dead weights go when the table has doubled: cheap per insertion.
  void purge(std::vector<at::Tensor>& alive) {
    by_memory_.clear();
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      const at::Tensor& weight = alive.emplace_back(entry->second.lock());
      if (weight.defined() && views_lose(weight)) by_memory_.push_back(entry->first);
      const bool is_dead = entry->second.weight && !weight.defined();
      entry = is_dead ? erase(entry) : std::next(entry);
    }
    has_by_memory_ = !by_memory_.empty();
    purge_at_ = 2 * entries_.size() + kMinPurgeAt;
  }

  AddressFilter filter_;
  mutable std::shared_mutex mutex_;
  Entries entries_;
  size_t purge_at_ = kMinPurgeAt;
  std::vector<const c10::TensorImpl*> by_memory_;  // those that find_by_memory() looks through
  mutable std::atomic<bool> has_by_memory_{false};
};

const at::TensorBase& weight_of(const at::Tensor& tensor) {
  return tensor.is_view() ? tensor._base() : tensor;
}

Mark::~Mark() {
  if (keeper) Registry::instance().lose_mark(keeper);
}

// The tag of exactly this tensor.
Tag* own_tag(const at::TensorBase& tensor) {
  Tag* tag = meta_tag(tensor);
  if (!tag) tag = Registry::instance().find(tensor.unsafeGetTensorImpl());
  return tag && tag->config ? tag : nullptr;
}

}  // namespace

bool any_tags() {
  return live_tags.load(std::memory_order_relaxed) != 0;
}

std::optional<Tagged> find_tag(const at::Tensor& tensor) {
  if (!any_tags() || !tensor.defined()) return std::nullopt;
  if (const Tag* tag = own_tag(tensor)) return seen_as(tensor, tensor, *tag);
  if (tensor.is_view()) {
    const at::TensorBase& base = tensor._base();
    if (const Tag* tag = own_tag(base)) return seen_as(tensor, base, *tag);
  }
  return Registry::instance().find_by_memory(tensor);
}

std::optional<Lost> find_lost(const at::Tensor& tensor) {
  if (!any_tags() || !tensor.defined()) return std::nullopt;
  const Tag* tag = meta_tag(weight_of(tensor));
  if (!tag || !tag->made.why_lost) return std::nullopt;
  return Lost{tag->made.ids, tag->made.why_lost};
}

std::optional<uint64_t> aliases_made(const at::Tensor& tensor) {
  if (!any_tags() || !tensor.defined()) return std::nullopt;
  const Tag* tag = meta_tag(weight_of(tensor));
  if (!tag || !tag->config) return std::nullopt;
  return tag->aliases_made.load();
}

std::shared_ptr<KeptForms>* kept_forms(const at::Tensor& tensor) {
  Mark* mark = mark_of(weight_of(tensor));
  return mark ? &mark->kept : nullptr;
}

std::shared_ptr<KeptForms>* make_room_for_forms(const at::Tensor& tensor) {
  const at::TensorBase& weight = weight_of(tensor);
  c10::TensorImpl* impl = weight.unsafeGetTensorImpl();
  if (!impl->get_backend_meta()) impl->set_backend_meta(c10::make_intrusive<Mark>(nullptr));
  Mark* mark = mark_of(weight);
  if (!mark || views_lose(weight)) return nullptr;
  if (!mark->keeper) {
    mark->keeper = impl;
    Registry::instance().rely_on_mark(weight);
  }
  return &mark->kept;
}

std::optional<Config> config_of(const at::Tensor& weight) {
  const Tag* tag = own_tag(weight);
  return tag ? tag->config : std::nullopt;
}

void set_tag(const at::Tensor& weight, const Config& config) {
  c10::TensorImpl* impl = weight.unsafeGetTensorImpl();
  Tag* existing = meta_tag(weight);
  if (!existing) existing = Registry::instance().find(impl);
  // What was made of others is a weight in its own right from now on.
  if (existing && !existing->is_whole()) existing = nullptr;
  const TagPtr tag = existing ? TagPtr::reclaim_copy(existing) : c10::make_intrusive<Tag>(config);
  tag->config = config;
  if (meta_tag(weight) != tag.get()) impl->set_backend_meta(c10::make_intrusive<Mark>(tag));
  Registry::instance().insert(weight, tag);
}

void clear_tag(const at::Tensor& weight) {
  c10::TensorImpl* impl = weight.unsafeGetTensorImpl();
  const auto forget = [&](Tag& tag) {
    tag.config.reset();
    for (const uint64_t id : tag.made.ids) forget_use(id, weight);
  };
  if (Tag* tag = Registry::instance().find(impl)) forget(*tag);
  if (Tag* tag = meta_tag(weight)) {
    forget(*tag);
    impl->set_backend_meta(nullptr);
  }
  Registry::instance().erase(impl);
}

MadeOf made_of(const Tagged& source, AxisSet axes) {
  return {.config = *source.config,
          .ids = source.ids.vec(),
          .axes = axes,
          .is_lookup = source.is_lookup};
}

void tag_made(const at::Tensor& made, MadeOf of) {
  if (of.axes == matrix_axes(made.dim())) of.axes.reset();
  auto tag = c10::make_intrusive<Tag>(std::move(of));
  made.unsafeGetTensorImpl()->set_backend_meta(c10::make_intrusive<Mark>(tag));
  if (views_lose(made)) Registry::instance().insert(made, std::move(tag));
}

void tag_copy(const at::Tensor& source, const at::Tensor& copy) {
  const std::optional<Tagged> tagged = find_tag(source);
  if (tagged && !copy.is_same(source)) tag_made(copy, made_of(*tagged, tagged->axes));
}

void keep_tag(const at::Tensor& weight) {
  Tag* tag = meta_tag(weight);
  if (!tag || !tag->config) return;
  if (Registry::instance().find(weight.unsafeGetTensorImpl())) return;
  Registry::instance().insert(weight, TagPtr::reclaim_copy(tag));
}

}  // namespace moe8
