// SPDX-License-Identifier: BSD-3-Clause
// How a converted weight is recognised: a tag on the tensor that says its config. The hooks ask for
// tags at every product, so asking is cheap; when nothing is converted it is one atomic load.
//
// A tag is kept twice, because LibTorch drops either one at times:
//   - in a registry keyed by TensorImpl: survives set_data, torch::load and Module::to
//   - in the tensor's BackendMeta: survives detach(), data() and copies (see tag_copy)
// Views (W.t(), slices) have neither; they lead to the tagged tensor by _base().
//
// Tensors made of converted weights by moving elements alone (copies, cat, stack, chosen experts)
// are converted weights too. They have a tag of their own with the ids of what they were made of;
// it goes when the tensor goes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "moe8/config.h"
#include "weights/axes.h"

namespace moe8 {

/// What is known of a tensor that is a converted weight or a view of one. Refers to the tag: valid
/// until the weight is converted again or taken back.
struct Tagged {
  const Config* config;
  c10::ArrayRef<uint64_t> ids;  // of the weights as they were converted; copies have the same. No 0
  AxisSet axes;                 // of the tensor asked for: those that products may contract
  bool is_lookup;               // rows chosen by an index: they may as well be embeddings

  uint64_t id() const { return ids.front(); }
};

/// How a tensor was made of converted weights.
struct MadeOf {
  std::optional<Config> config{};  // not set: it is no converted weight, see why_lost
  std::vector<uint64_t> ids{};     // of the weights
  std::optional<AxisSet> axes{};   // that may be contracted; not set: matrix_axes
  bool is_lookup = false;          // see Tagged
  const char* why_lost = nullptr;  // a clause that says why, with what to do instead
};

/// Of one source, with the axes that the made tensor has.
MadeOf made_of(const Tagged& source, AxisSet axes);

/// A tensor made of converted weights that is none itself: its products run in high precision.
struct Lost {
  c10::ArrayRef<uint64_t> ids;
  const char* why;
};

/// The tag of `tensor`: its own or that of the weight it is a view of. Safe beside other readers.
std::optional<Tagged> find_tag(const at::Tensor& tensor);

/// The config of exactly this tensor; nothing for a view.
std::optional<Config> config_of(const at::Tensor& weight);

/// Tags a weight, or changes its tag. Aliases made by detach() or data() follow.
void set_tag(const at::Tensor& weight, const Config& config);

/// Takes the tag away, from aliases too.
void clear_tag(const at::Tensor& weight);

/// Tags what was made of converted weights.
void tag_made(const at::Tensor& made, MadeOf of);

/// A copy of a converted weight (clone, cast, move to a device) is a converted weight of its own.
void tag_copy(const at::Tensor& source, const at::Tensor& copy);

/// Set when `tensor` was made of converted weights and is none, or is a view of such a tensor.
std::optional<Lost> find_lost(const at::Tensor& tensor);

/// To be called before set_data() replaces what `weight` is: from then on a copy keeps its
/// conversion as an original does.
void keep_tag(const at::Tensor& weight);

/// How many aliases data(), detach() and set_data() have made so far of the converted weight that
/// `tensor` is, or is a view of; those that died are counted. Nothing when that is no converted
/// weight, or one whose aliases cannot be seen.
std::optional<uint64_t> aliases_made(const at::Tensor& tensor);

/// What src/weights/weight_cache.cpp keeps of a weight.
struct KeptForms;

/// Where the kept forms of a weight are held (of the one that `tensor` is, or is a view of): with
/// its TensorImpl. So they go when the weight does, when set_data() gives it other memory, and when
/// its conversion is taken back. Null where nothing was kept yet. Calls for one weight must not run
/// beside each other, nor beside the first make_room_for_forms.
std::shared_ptr<KeptForms>* kept_forms(const at::Tensor& tensor);

/// The same, with room made if there was none. Null where somebody else took the room.
std::shared_ptr<KeptForms>* make_room_for_forms(const at::Tensor& tensor);

/// True while any tag exists: false lets every hook pass at once.
bool any_tags();

}  // namespace moe8
