// SPDX-License-Identifier: BSD-3-Clause
// What became of converted weights: whether their products ran in low precision, in high precision
// (by which operation), or not at all. Whoever runs or lets pass a product of a converted weight
// notes it here; when a backward has ended, weights that never ran in low precision are named.
// When and how that is judged: docs/decisions/022-unused-conversions.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "moe8/quantize_model.h"

namespace moe8 {

// ---- notes --------------------------------------------------------------------
/// A product of the weight with this id (Tagged::id; a derived weight passes each of its sources)
/// ran in low precision.
void note_low_precision(uint64_t id);

/// A product of it ran in high precision: `op` as its users call it ("bmm"), `why` a clause with
/// what to do instead ("its input is not strided; call contiguous() first"). Noted once per weight
/// and `why`. Warns by the weight's name, unless the end of a backward will do so for all weights.
void note_high_precision(uint64_t id, const char* op, const char* why);

/// A gradient has reached the weight itself, by whatever way, in this backward of LibTorch's.
void note_gradient(uint64_t id, int backward);

// ---- what is known of a weight ------------------------------------------------
struct UseRecord;

/// The record of a weight and of all its copies. Lives as long as anybody (a tag) holds it; made
/// when it is first asked for.
std::shared_ptr<UseRecord> use_record(uint64_t id);

/// What a conversion knows of a weight.
struct ConvertedWeight {
  std::string fqn{};
  std::vector<int64_t> shape{};
  Unused unused = Unused::WARN;
  /// True when the module that owns the weight computes with another tensor by now; may be empty.
  std::function<bool()> is_replaced{};
};

/// From now on the weight with this id is judged under this name. What was noted before is
/// forgotten when `anew` (its config is another one now). Who calls it sees to it that end_watch()
/// is called when the weight is destroyed (watch_gradient of backward_end.h); weights made in
/// InferenceMode, which no gradient reaches, are not judged.
/// @return true when the tensor is not the one that was expected under this id so far.
bool expect_use(uint64_t id, const at::Tensor& weight, ConvertedWeight known, bool anew);

/// The conversion of this weight was taken back: it is not judged any more.
void forget_use(uint64_t id, const at::Tensor& weight);

/// The same, of a weight that is being destroyed. Its record refers to it weakly, which would keep
/// what belongs to the tensor beside its memory, the record among it; this ends that.
void end_watch(uint64_t id, const c10::TensorImpl* weight);

/// How the products of the weight ran since its conversion, and what to do about it.
WeightUse use_of(uint64_t id);

// ---- the judgement ------------------------------------------------------------
/// True while some converted weight has not been judged yet: false lets every trigger pass at once.
bool any_unjudged();

/// To be called when a backward has ended. Of the weights that have not been judged it judges those
/// that a gradient reached in it, those that are replaced, and those that are frozen; the others were
/// not needed so far, or another thread's backward is under way and judges them. One warning names all that did not train in low precision.
/// @throws c10::Error with the same text when one of them was converted with Unused::ERROR.
void judge_uses(int backward);

}  // namespace moe8
