// SPDX-License-Identifier: BSD-3-Clause
// The CUDA twins of to_blocked_m_groups and to_blocked_k_groups (include/moe8/blocked_scales.h):
// scale bytes into the tile order of block-scaled tensor cores. No Torch. They write every byte of
// their outputs and never wait for the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_status.h"

namespace moe8::cuda {

/// Groups of rows or of columns, each padded by itself.
struct BlockedGroupsArgs {
  const uint8_t* scale;  // [rows, columns]
  int64_t rows;
  int64_t columns;
  const int32_t* ends;  // [groups] end rows or columns
  int64_t groups;       // at most kMaxGroups
  uint8_t* blocked;     // rows: (rows + 128 groups) * round_up(columns, 4) bytes;
                        // columns: round_up(rows, 128) * (columns + 4 groups)
  int64_t* start;       // [groups + 1] first padded row or column of each group
};
LaunchStatus launch_blocked_scales_m_groups(const BlockedGroupsArgs& args, cudaStream_t stream);
LaunchStatus launch_blocked_scales_k_groups(const BlockedGroupsArgs& args, cudaStream_t stream);

}  // namespace moe8::cuda
