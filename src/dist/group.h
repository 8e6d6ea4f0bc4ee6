// SPDX-License-Identifier: BSD-3-Clause
// What a Group holds.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "dist/backends.h"
#include "moe8/parallel.h"

namespace moe8 {

using ProcessGroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;

struct Group::Impl {
  std::string name;
  int64_t rank = 0;
  std::vector<int64_t> ranks{0};
  at::DeviceType device = at::kCPU;  // of tensors beside those on the CPU
  std::chrono::milliseconds timeout{std::chrono::minutes(10)};
  StorePtr world_store{};  // in which ranks say why they ended; null: of nobody's world
  bool in_background = false;
  std::shared_ptr<Impl> background{};  // once background() was called
  std::mutex making{};
  ProcessGroupPtr process_group{};

  int64_t size() const { return static_cast<int64_t>(ranks.size()); }
  int64_t world_rank() const { return ranks[static_cast<size_t>(rank)]; }
};

/// Connects the members by `store`, which they have for themselves.
ProcessGroupPtr make_process_group(const Group::Impl& group, const StorePtr& store);

/// The same ranks with a transport of their own, for what nobody waits for yet: exchanges that give way to
/// kernels, and do not stand in a row with those of the group. All ranks call it in the same order; the
/// second call gives the same group. Ends with the group. The group itself where it is alone, or of
/// nobody's world.
Group background(const Group& group);

/// In the store of a world the key of the first reason to end, "rank 3: ...".
constexpr const char* kFirstReason = "ended";

/// The sentence about it that ends a message, " Rank 3 said: ..."; empty where none of the others has
/// said anything. Waits a little for it.
std::string reason_of_others(const Group::Impl& group);

}  // namespace moe8
