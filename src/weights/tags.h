// SPDX-License-Identifier: BSD-3-Clause
// How a converted weight is recognised: a tag on the tensor that says its config. The hooks ask for
// tags at every product, so asking is cheap; when nothing is converted it is one atomic load.
//
// A tag is kept twice, because LibTorch drops either one at times:
//   - in a registry keyed by TensorImpl: survives set_data, torch::load and Module::to
//   - as the tensor's BackendMeta: survives detach(), data() and copies (see tag_copy)
// Views (W.t(), slices) have neither; they lead to the tagged tensor by _base().
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
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

/// Other tensors that a converted weight shares its memory with, whose in-place writes its version
/// counter may not count: what data() and detach() return.
struct AliasWatch {
  uint64_t aliases_made;  // so far, those that died included
  bool has_alias;         // one lives now
};
/// Of the weight that `tensor` is, or is a view of. Nothing when that is no converted weight, or
/// one whose aliases cannot be seen.
std::optional<AliasWatch> watch_aliases(const at::Tensor& tensor);

/// True while any tag exists: false lets every hook pass at once.
bool any_tags();

}  // namespace moe8
