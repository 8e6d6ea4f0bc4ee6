// SPDX-License-Identifier: BSD-3-Clause
#include "quantize/cuda_groups.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include "cuda/gemm/grouped_gemm.h"
#include "quantize/cuda_launch.h"
#include "quantize/token_groups.h"

namespace moe8 {

std::shared_ptr<const DeviceGroups> make_device_groups(const std::optional<at::Tensor>& offs,
                                                       int64_t rows, const at::Device& device) {
  constexpr const char* kOp = "make_device_groups";
  const Launch launch(device);
  auto groups = std::make_shared<DeviceGroups>();
  const at::TensorOptions on_device = at::TensorOptions().device(device);
  groups->offs = offs ? offs->contiguous() : at::full({1}, rows, on_device.dtype(at::kInt));
  const int64_t count = groups->offs.numel();
  MOE8_CHECK(count <= cuda::kMaxGroups, kOp, "offs", "expected at most ", cuda::kMaxGroups,
             " groups on a GPU, got ", count);
  const int64_t bytes = cuda::group_metadata_bytes(rows, count, cuda::kGroupPadding);
  groups->memory = at::empty({bytes}, on_device.dtype(at::kByte));
  groups->metadata =
      cuda::group_metadata(groups->memory.mutable_data_ptr(), rows, count, cuda::kGroupPadding);
  check_launch(kOp, cuda::launch_group_metadata(groups->offs.const_data_ptr<int32_t>(),
                                                groups->metadata, launch.stream));
  return groups;
}

}  // namespace moe8
