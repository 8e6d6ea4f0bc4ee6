// SPDX-License-Identifier: BSD-3-Clause
// Exchanges beside those of moe8/parallel.h that give the caller no memory of their own, or send less. Any
// dtype; errors as there.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "moe8/parallel.h"

namespace moe8 {

/// parts[r] goes to rank r, but this rank's own, which stays where it is: not even a copy of it is
/// made. The result is what the others sent to this rank, `rows` each: [(size - 1) * rows, ...], in
/// the order of ranks.
Pending begin_exchange(const Group& group, const std::vector<at::Tensor>& parts, int64_t rows);

/// Sends `out` to one rank of the group and receives `in` from one, both contiguous rows. All ranks call
/// it, with ranks that fit each other; a rank may have no rows to send or to receive.
Pending begin_send_and_receive(const Group& group, const at::Tensor& out, int64_t to,
                               const at::Tensor& in, int64_t from);

/// begin_all_gather() into `out`, [size * n, ...], contiguous, of the dtype of `in`; `in` may be the
/// rows of `out` that are this rank's.
Pending begin_all_gather_into(const Group& group, const at::Tensor& out, const at::Tensor& sent);

}  // namespace moe8
