// SPDX-License-Identifier: BSD-3-Clause
// How a converted weight is recognised: a tag on the tensor that says its config. The hooks ask for
// tags at every product, so asking is cheap; when nothing is converted it is one atomic load.
//
// A tag is kept twice, because LibTorch drops either one at times:
//   - in a registry keyed by TensorImpl: survives set_data, torch::load and Module::to
//   - in the tensor's BackendMeta: survives detach(), data() and copies (see tag_copy)
// Views (W.t(), slices) have neither; they lead to the tagged tensor by _base().
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "moe8/config.h"

namespace moe8 {

/// What is known of a tensor that is a converted weight or a view of one.
struct Tagged {
  const Config* config;  // valid until the weight is converted again or taken back
  int64_t dim;           // of the weight itself: 2 for W3[e] would be wrong, it is 3
  uint64_t id;           // of the weight as it was converted; its copies have the same. Never 0
};

/// The tag of `tensor`: its own or that of the weight it is a view of. Safe beside other readers.
std::optional<Tagged> find_tag(const at::Tensor& tensor);

/// The config of exactly this tensor; nothing for a view.
std::optional<Config> config_of(const at::Tensor& weight);

/// Tags a weight, or changes its tag. Aliases made by detach() or data() follow.
void set_tag(const at::Tensor& weight, const Config& config);

/// Takes the tag away, from aliases too.
void clear_tag(const at::Tensor& weight);

/// A copy of a converted weight (clone, cast, move to a device) is a converted weight of its own.
void tag_copy(const at::Tensor& source, const at::Tensor& copy);

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
