// SPDX-License-Identifier: BSD-3-Clause
#include "groups/token_groups.h"

#include <mutex>
#include <utility>

#include "base/check.h"

namespace moe8 {

struct TokenGroups::Cache {
  std::mutex mutex;
  std::shared_ptr<const DeviceGroups> groups;
  std::optional<std::vector<int64_t>> ends;
};

TokenGroups::TokenGroups(std::optional<at::Tensor> offs)
    : offs_(std::move(offs)), cache_(std::make_shared<Cache>()) {}

const std::vector<int64_t>& TokenGroups::ends_on_host(int64_t rows) const {
  const std::lock_guard lock(cache_->mutex);
  if (cache_->ends) return *cache_->ends;
  if (!offs_) return cache_->ends.emplace(1, rows);
  const at::Tensor ends = offs_->cpu().contiguous();
  check_ends("low_precision_gemm", ends, rows);
  const int32_t* data = ends.const_data_ptr<int32_t>();
  return cache_->ends.emplace(data, data + ends.numel());
}

const DeviceGroups& TokenGroups::on_device(int64_t rows, const at::Device& device) const {
  const std::lock_guard lock(cache_->mutex);
  if (!cache_->groups) cache_->groups = make_device_groups(offs_, rows, device);
  return *cache_->groups;
}

void check_ends(const char* op, const at::Tensor& ends, int64_t rows) {
  const at::Tensor contiguous = ends.contiguous();
  const int32_t* data = contiguous.const_data_ptr<int32_t>();
  int64_t previous = 0;
  for (int64_t e = 0; e < contiguous.numel(); ++e) {
    MOE8_CHECK(data[e] >= previous, op, "offs", "expected non-decreasing end rows from 0 on, got ",
               data[e], " after ", previous, " at index ", e);
    previous = data[e];
  }
  MOE8_CHECK(previous <= rows, op, "offs", "expected end rows of at most ", rows,
             ", the rows there are, got ", previous);
}

}  // namespace moe8
