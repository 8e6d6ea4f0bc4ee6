// SPDX-License-Identifier: BSD-3-Clause
// Whether a weight's memory can be written by somebody whose writes its version counter does not
// count.
#pragma once

#include <ATen/core/TensorBase.h>

namespace moe8 {

/// True when every tensor over the memory of `weight` counts its writes in the counter of `weight`,
/// as its views and detach() do. False for
///   - a weight that does not fill its storage: a view of a flat buffer
///   - a storage that tensors with a counter of their own live on, too: what data() returned,
///     a parameter tied by set_data(), what set_() or an unsafe_* operation made
///   - memory that LibTorch did not allocate: from_blob, DLPack, mapped or shared files
/// Raw pointers into the memory cannot be seen.
bool counts_all_writes(const at::TensorBase& weight);

}  // namespace moe8
