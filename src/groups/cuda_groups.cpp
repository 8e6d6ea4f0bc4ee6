// SPDX-License-Identifier: BSD-3-Clause
#include "groups/cuda_groups.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <array>
#include <mutex>

#include "cuda/gemm/grouped_gemm.h"
#include "device/cuda_device.h"
#include "device/cuda_launch.h"
#include "groups/token_groups.h"

namespace moe8 {
namespace {

constexpr const char* kOp = "make_device_groups";

std::shared_ptr<const DeviceGroups> compute_groups(const std::optional<at::Tensor>& offs,
                                                   int64_t rows, const at::Device& device) {
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

// One group of all rows, as linears have: it depends on nothing else, so layers of one batch share
// it. Per stream, as its memory is; a graph being captured gets its own, which lives as long as a
// product of it needs it.
class OneGroups {
 public:
  std::shared_ptr<const DeviceGroups> get(int64_t rows, const at::Device& device) {
    const StreamId stream = current_stream(device);
    const std::lock_guard lock(mutex_);
    if (stream.capture != 0) return get_captured(rows, device, stream);
    for (const Entry& entry : entries_) {
      if (entry.rows == rows && entry.device == device && entry.stream == stream)
        return entry.groups;
    }
    Entry made{rows, device, stream, compute_groups(std::nullopt, rows, device)};
    Entry& oldest = entries_[next_++ % entries_.size()];
    oldest = std::move(made);
    return oldest.groups;
  }

 private:
  std::shared_ptr<const DeviceGroups> get_captured(int64_t rows, const at::Device& device,
                                                   const StreamId& stream) {
    const bool is_same =
        captured_.rows == rows && captured_.device == device && captured_.stream == stream;
    std::shared_ptr<const DeviceGroups> groups = is_same ? captured_.groups.lock() : nullptr;
    if (groups) return groups;
    groups = compute_groups(std::nullopt, rows, device);
    captured_ = {rows, device, stream, groups};
    return groups;
  }

  struct Captured {
    int64_t rows = -1;
    at::Device device = at::kCPU;
    StreamId stream;
    std::weak_ptr<const DeviceGroups> groups;
  };
  struct Entry {
    int64_t rows = -1;
    at::Device device = at::kCPU;
    StreamId stream;
    std::shared_ptr<const DeviceGroups> groups;
  };
  std::mutex mutex_;
  std::array<Entry, 16> entries_;
  Captured captured_;
  size_t next_ = 0;
};

}  // namespace

std::shared_ptr<const DeviceGroups> make_device_groups(const std::optional<at::Tensor>& offs,
                                                       int64_t rows, const at::Device& device) {
  if (offs) return compute_groups(offs, rows, device);
  static auto* const one_groups = new OneGroups;  // never destroyed: CUDA may be gone by then
  return one_groups->get(rows, device);
}

}  // namespace moe8
