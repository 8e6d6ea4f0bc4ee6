// SPDX-License-Identifier: BSD-3-Clause
#include "groups/token_groups.h"

#include <mutex>
#include <utility>

namespace moe8 {

struct TokenGroups::Cache {
  std::mutex mutex;
  std::shared_ptr<const DeviceGroups> groups;
};

TokenGroups::TokenGroups(std::optional<at::Tensor> offs)
    : offs_(std::move(offs)), cache_(std::make_shared<Cache>()) {}

const DeviceGroups& TokenGroups::on_device(int64_t rows, const at::Device& device) const {
  const std::lock_guard lock(cache_->mutex);
  if (!cache_->groups) cache_->groups = make_device_groups(offs_, rows, device);
  return *cache_->groups;
}

}  // namespace moe8
