// SPDX-License-Identifier: BSD-3-Clause
#include "weights/usage.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/nearest.h"
#include "base/plain_text.h"

namespace moe8 {
namespace {

std::atomic<int64_t> unjudged_weights{0};
constexpr int kNoBackward = -1;

constexpr const char* kReplaced =
    "its module computes with another tensor, which was assigned after the conversion: convert "
    "again, or keep the parameter and use set_data()";
constexpr const char* kComputedFrom =
    "no product of it was seen, though a gradient reached it: the products are of tensors computed "
    "from it (W * scale, W + delta), or by operations that moe8 does not know. Multiply by the "
    "weight itself, or leave it out of the conversion";
constexpr const char* kFrozen =
    "no product of it was seen, and it is frozen: it is not in use, or the products are of tensors "
    "computed from it (W + delta). Multiply by the weight itself, or leave it out of the conversion";
constexpr const char* kNoProduct = "no product of it was seen so far";

}  // namespace

// The flags are read and set at every product; the rest is guarded by the mutex.
struct UseRecord : std::enable_shared_from_this<UseRecord> {
  using WeakWeight = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

  // A way in which products of a weight ran in high precision.
  struct HighPrecisionUse {
    std::string op;
    std::string why;
    bool is_told;  // in a warning

    std::string text() const { return concat("at::", op, " ran in high precision: ", why); }
  };

  explicit UseRecord(uint64_t own_id) : id(own_id) {}
  ~UseRecord();
  UseRecord(const UseRecord&) = delete;
  UseRecord& operator=(const UseRecord&) = delete;

  const uint64_t id;
  std::atomic<bool> ran_low{false};
  std::atomic<int> reached_by{kNoBackward};  // the last backward, since it was last judged
  std::atomic<bool> is_judged{true};         // until a conversion expects its use

  std::mutex mutex;
  ConvertedWeight known;
  // Set until end_watch(): what it keeps of a dead tensor holds this record, and would for ever.
  std::optional<WeakWeight> weight;
  std::vector<HighPrecisionUse> ran_high;
  bool had_gradient = false;  // ever

  void set_judged(bool judged) {
    if (is_judged.exchange(judged) != judged) unjudged_weights += judged ? -1 : 1;
  }
  // To be let go where the mutex is not held: the last reference takes it, see end_watch().
  at::Tensor tensor() {
    const std::lock_guard lock(mutex);
    return weight ? at::Tensor(weight->lock()) : at::Tensor();
  }
  bool is_of(const c10::TensorImpl* impl) const {
    return weight && weight->_unsafe_get_target() == impl;
  }
};

namespace {

using HighPrecisionUse = UseRecord::HighPrecisionUse;

// Records by id. They are held by tags; the table only finds them.
class Records {
 public:
  // Never destroyed: tensors in static storage may outlive it.
  static Records& instance() {
    static Records* records = new Records;
    return *records;
  }

  std::shared_ptr<UseRecord> get(uint64_t id) {
    const std::unique_lock lock(mutex_);
    UseRecord*& entry = by_id_[id];
    std::shared_ptr<UseRecord> record = entry ? entry->weak_from_this().lock() : nullptr;
    if (!record) {
      record = std::make_shared<UseRecord>(id);
      entry = record.get();
    }
    return record;
  }

  /// Calls use(record) while the record cannot die. `use` must be short and take no other lock.
  template <typename Use>
  void with(uint64_t id, Use use) const {
    const std::shared_lock lock(mutex_);
    if (const auto found = by_id_.find(id); found != by_id_.end()) use(*found->second);
  }

  std::shared_ptr<UseRecord> find(uint64_t id) const {
    std::shared_ptr<UseRecord> record;
    with(id, [&](UseRecord& found) { record = found.weak_from_this().lock(); });
    return record;
  }

  std::vector<std::shared_ptr<UseRecord>> unjudged() const {
    std::vector<std::shared_ptr<UseRecord>> list;
    {
      const std::shared_lock lock(mutex_);
      for (const auto& [id, record] : by_id_) {
        if (record->is_judged.load(std::memory_order_relaxed)) continue;
        if (auto alive = record->weak_from_this().lock()) list.push_back(std::move(alive));
      }
    }
    std::sort(list.begin(), list.end(), [](const auto& a, const auto& b) { return a->id < b->id; });
    return list;
  }

  void remove(const UseRecord* record) {
    const std::unique_lock lock(mutex_);
    const auto found = by_id_.find(record->id);
    if (found != by_id_.end() && found->second == record) by_id_.erase(found);
  }

 private:
  mutable std::shared_mutex mutex_;
  std::unordered_map<uint64_t, UseRecord*> by_id_;
};

// ---- the judgement ------------------------------------------------------------
// What is wrong with the use of a weight that is judged now; empty: nothing that is not told yet.
// `is_error`: it may be an error, as it is certain that the weight trains in high precision.
struct Verdict {
  bool is_due = false;
  bool is_error = false;
  std::vector<std::string> texts{};
};

Verdict verdict_on(UseRecord& record, const at::Tensor& weight, int backward) {
  if (record.known.is_replaced && record.known.is_replaced()) return {true, true, {kReplaced}};
  int reached_by = backward;
  const bool has_gradient = record.reached_by.compare_exchange_strong(reached_by, kNoBackward);
  record.had_gradient |= has_gradient;
  if (!has_gradient && (weight.requires_grad() || reached_by != kNoBackward)) return {};
  Verdict verdict{.is_due = true};
  const bool ran_low = record.ran_low.load();
  verdict.is_error = has_gradient && !ran_low;
  const bool repeats = verdict.is_error && record.known.unused == Unused::ERROR;
  for (HighPrecisionUse& use : record.ran_high) {
    if (!std::exchange(use.is_told, true) || repeats) verdict.texts.push_back(use.text());
  }
  if (!ran_low && record.ran_high.empty()) {
    verdict.texts.emplace_back(has_gradient ? kComputedFrom : kFrozen);
  }
  return verdict;
}

void judge(UseRecord& record, int backward, ConversionCheck& errors, ConversionCheck& warnings) {
  const at::Tensor weight = record.tensor();
  const std::lock_guard lock(record.mutex);
  if (!weight.defined()) return record.set_judged(true);  // only copies are left
  const Verdict verdict = verdict_on(record, weight, backward);
  if (!verdict.is_due) return;
  const bool is_error = verdict.is_error && record.known.unused == Unused::ERROR;
  // An error comes again with the next gradient.
  record.set_judged(!is_error);
  if (record.known.unused == Unused::IGNORE || verdict.texts.empty()) return;
  (is_error ? errors : warnings)
      .weights.push_back({.fqn = record.known.fqn,
                          .shape = record.known.shape,
                          .remedy = join(verdict.texts, "; ")});
}

// True when the end of a backward will tell of it.
bool awaits_judgement(const UseRecord& record, const at::Tensor& weight) {
  return !record.is_judged && c10::GradMode::is_enabled() && weight.defined() &&
         weight.requires_grad();
}

}  // namespace

UseRecord::~UseRecord() {
  set_judged(true);
  Records::instance().remove(this);
}

void note_low_precision(uint64_t id) {
  Records::instance().with(id, [](UseRecord& record) {
    if (!record.ran_low.load(std::memory_order_relaxed)) record.ran_low = true;
  });
}

void note_gradient(uint64_t id, int backward) {
  Records::instance().with(id, [&](UseRecord& record) { record.reached_by = backward; });
}

void note_high_precision(uint64_t id, const char* op, const char* why) {
  const std::shared_ptr<UseRecord> record = Records::instance().find(id);
  if (!record) return;  // the weight is gone, or its conversion was taken back
  const at::Tensor weight = record->tensor();
  std::string warning;
  {
    const std::lock_guard lock(record->mutex);
    const bool is_known = std::any_of(record->ran_high.begin(), record->ran_high.end(),
                                      [&](const HighPrecisionUse& use) { return use.why == why; });
    if (is_known) return;
    const bool tells_now = !awaits_judgement(*record, weight);
    record->ran_high.push_back({op, why, tells_now});
    const std::string& name = record->known.fqn;
    if (tells_now && record->known.unused != Unused::IGNORE) {
      warning = concat("[quantize_] ", name.empty() ? "a converted weight" : name, ": ",
                       record->ran_high.back().text(), ".");
    }
  }
  if (!warning.empty()) log_warning(warning);
}

std::shared_ptr<UseRecord> use_record(uint64_t id) {
  return Records::instance().get(id);
}

bool expect_use(uint64_t id, const at::Tensor& weight, ConvertedWeight known, bool anew) {
  const std::shared_ptr<UseRecord> record = Records::instance().get(id);
  const std::lock_guard lock(record->mutex);
  if (anew) {
    record->ran_low = false;
    record->reached_by = kNoBackward;
    record->had_gradient = false;
    record->ran_high.clear();
  }
  record->known = std::move(known);
  const bool is_other = !record->is_of(weight.unsafeGetTensorImpl());
  if (is_other && !weight.is_inference()) record->weight.emplace(weight.getIntrusivePtr());
  if (is_other || anew) record->set_judged(false);
  return is_other;
}

void forget_use(uint64_t id, const at::Tensor& weight) {
  end_watch(id, weight.unsafeGetTensorImpl());
}

void end_watch(uint64_t id, const c10::TensorImpl* weight) {
  const std::shared_ptr<UseRecord> record = Records::instance().find(id);
  if (!record) return;
  const std::lock_guard lock(record->mutex);
  if (!record->is_of(weight)) return;  // a copy has the same id
  record->weight.reset();
  record->set_judged(true);
}

WeightUse use_of(uint64_t id) {
  WeightUse result;
  const std::shared_ptr<UseRecord> record = Records::instance().find(id);
  if (!record) return result;
  const at::Tensor weight = record->tensor();  // is_replaced() may see its module off
  const std::lock_guard lock(record->mutex);
  const bool ran_low = record->ran_low, ran_high = !record->ran_high.empty();
  result.use = ran_low && ran_high ? Use::BOTH
               : ran_low           ? Use::LOW_PRECISION
               : ran_high          ? Use::HIGH_PRECISION
                                   : Use::NONE;
  std::vector<std::string> remedies;
  for (const HighPrecisionUse& use : record->ran_high) {
    result.ops.push_back(use.op);
    remedies.push_back(use.text());
  }
  if (record->known.is_replaced && record->known.is_replaced()) remedies.emplace_back(kReplaced);
  if (result.use == Use::NONE && remedies.empty()) {
    remedies.emplace_back(record->had_gradient || record->reached_by != kNoBackward ? kComputedFrom
                                                                                    : kNoProduct);
  }
  result.remedy = join(remedies, "; ");
  return result;
}

bool any_unjudged() {
  return unjudged_weights.load(std::memory_order_relaxed) != 0;
}

void judge_uses(int backward) {
  ConversionCheck errors, warnings;
  for (const std::shared_ptr<UseRecord>& record : Records::instance().unjudged()) {
    judge(*record, backward, errors, warnings);
  }
  if (!warnings.weights.empty()) log_warning("[quantize_] unused: " + warnings.to_line());
  if (!errors.weights.empty()) fail("quantize_", "unused", errors.to_line());
}

}  // namespace moe8
