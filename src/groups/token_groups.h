// SPDX-License-Identifier: BSD-3-Clause
// Which tokens belong to which expert, as a product and its gradients share it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace moe8 {

/// What CUDA kernels read of the groups: src/groups/cuda_groups.h.
struct DeviceGroups;

/// The groups of rows of one product. Copies share what was derived for a device.
class TokenGroups {
 public:
  /// One group of all rows.
  TokenGroups() : TokenGroups(std::nullopt) {}
  /// offs [E] int32 end rows, on the device of the rows; not set: one group of all rows.
  TokenGroups(std::optional<at::Tensor> offs);  // NOLINT(google-explicit-constructor)
  TokenGroups(const at::Tensor& offs)           // NOLINT(google-explicit-constructor)
      : TokenGroups(std::optional<at::Tensor>(offs)) {}

  const std::optional<at::Tensor>& offs() const { return offs_; }
  int64_t count() const { return offs_ ? offs_->numel() : 1; }

  /// End rows as the host knows them, [count()]: of a GPU's offs it waits for the device at the
  /// first call. @throws c10::Error when they decrease or leave [0, rows].
  const std::vector<int64_t>& ends_on_host(int64_t rows) const;

  /// What CUDA kernels need to know of the groups of `rows` rows on `device`: launched on the
  /// current stream at the first call and kept. The host does not wait.
  const DeviceGroups& on_device(int64_t rows, const at::Device& device) const;

 private:
  struct Cache;

  std::optional<at::Tensor> offs_;
  std::shared_ptr<Cache> cache_;
};

/// @throws c10::Error unless `ends`, int32 [E] on a CPU, begin at 0 or later, never decrease and
/// stay at or below `rows`. The error names `op` and "offs".
void check_ends(const char* op, const at::Tensor& ends, int64_t rows);

/// Computes it on the current stream. @throws c10::Error in a build without CUDA.
std::shared_ptr<const DeviceGroups> make_device_groups(const std::optional<at::Tensor>& offs,
                                                       int64_t rows, const at::Device& device);

}  // namespace moe8
