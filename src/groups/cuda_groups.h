// SPDX-License-Identifier: BSD-3-Clause
// The groups of a product as CUDA kernels read them. Only for files built with CUDA.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/groups/group_metadata.h"

namespace moe8 {

struct DeviceGroups {
  at::Tensor offs;               // [E] int32, contiguous; one group: [1], the rows
  at::Tensor memory;             // what `metadata` points into
  cuda::GroupMetadata metadata;  // groups padded to cuda::kGroupPadding
};

}  // namespace moe8
