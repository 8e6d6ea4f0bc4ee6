// SPDX-License-Identifier: BSD-3-Clause
// Exchanges of single tensors under the names that every LibTorch from 2.11 on has: later ones call
// them otherwise and warn about the older names.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace moe8 {

template <typename ProcessGroup>
auto all_to_all_single(ProcessGroup& group, at::Tensor& to, at::Tensor& from,
                       std::vector<int64_t>& out_split, std::vector<int64_t>& in_split) {
  if constexpr (requires { group.all_to_all_single(to, from, out_split, in_split); }) {
    return group.all_to_all_single(to, from, out_split, in_split);
  } else {
    return group.alltoall_base(to, from, out_split, in_split);
  }
}

template <typename ProcessGroup>
auto all_gather_single(ProcessGroup& group, at::Tensor& to, at::Tensor& from) {
  if constexpr (requires { group.all_gather_single(to, from); }) {
    return group.all_gather_single(to, from);
  } else {
    return group._allgather_base(to, from);
  }
}

template <typename ProcessGroup>
auto reduce_scatter_single(ProcessGroup& group, at::Tensor& to, at::Tensor& from) {
  if constexpr (requires { group.reduce_scatter_single(to, from); }) {
    return group.reduce_scatter_single(to, from);
  } else {
    return group._reduce_scatter_base(to, from);
  }
}

}  // namespace moe8
