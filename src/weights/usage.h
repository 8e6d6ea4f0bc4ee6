// SPDX-License-Identifier: BSD-3-Clause
// What became of converted weights: whether their products ran in low precision, in high precision
// (by which operation), or not at all. Whoever runs or lets pass a product of a converted weight
// notes it here.
#pragma once

#include <cstdint>

namespace moe8 {

/// A product of the weight with this id (Tagged::id; a derived weight passes each of its sources)
/// ran in low precision.
void note_low_precision(uint64_t id);

/// A product of it ran in high precision: `op` as its users call it ("bmm"), `why` a clause with
/// what to do instead ("its input is not strided; call contiguous() first").
void note_high_precision(uint64_t id, const char* op, const char* why);

}  // namespace moe8
