// SPDX-License-Identifier: BSD-3-Clause
#include "dist/group.h"

#include <algorithm>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <utility>

#include "base/check.h"

namespace moe8 {

ProcessGroupPtr make_process_group(const Group::Impl& group, const StorePtr& store) {
  using c10d::ProcessGroup;
  const int rank = static_cast<int>(group.rank), size = static_cast<int>(group.size());
  const Meeting meeting{store, rank, size, group.timeout, group.in_background};
  auto made = c10::make_intrusive<ProcessGroup>(store, rank, size);
  made->setBackend(at::kCPU, ProcessGroup::GLOO, gloo_backend(meeting));
  made->setDefaultBackend(ProcessGroup::GLOO);
  if (group.device == at::kCUDA) {
    made->setBackend(at::kCUDA, ProcessGroup::NCCL, nccl_backend(meeting));
    made->setDefaultBackend(ProcessGroup::NCCL);
  }
  made->setGroupName("moe8/" + group.name);
  return made;
}

Group background(const Group& group) {
  Group::Impl& of = group.impl();
  if (of.size() == 1 || !of.world_store) return group;
  const std::lock_guard lock(of.making);
  if (!of.background) {
    const auto made = std::make_shared<Group::Impl>();
    made->name = of.name + ", in the background";
    made->rank = of.rank;
    made->ranks = of.ranks;
    made->device = of.device;
    made->timeout = of.timeout;
    made->world_store = of.world_store;
    made->in_background = true;
    const std::string prefix = concat(of.name, "/", of.ranks.front(), "/background");
    made->process_group =
        make_process_group(*made, c10::make_intrusive<c10d::PrefixStore>(prefix, of.world_store));
    of.background = made;
  }
  return Group(of.background);
}

std::string reason_of_others(const Group::Impl& group) {
  if (!group.world_store) return "";
  try {
    // What ended a rank may reach this one sooner than what the rank says about it.
    for (int tries = 0; tries < 20; ++tries) {
      if (group.world_store->check({kFirstReason})) {
        const std::vector<uint8_t> bytes = group.world_store->get(kFirstReason);
        const std::string reason(bytes.begin(), bytes.end());
        if (reason.starts_with(concat("rank ", group.world_rank(), ":"))) return "";
        return concat(" The first to end was ", reason);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  } catch (const std::exception&) {
    return " The store of the world does not answer either: its process has ended";
  }
  return " No rank has said why: one was killed, hangs, or calls other exchanges";
}

Group::Group() : impl_(std::make_shared<Impl>()) {
  impl_->name = "self";
}

Group::Group(const std::string& name, c10::intrusive_ptr<c10d::ProcessGroup> process_group)
    : impl_(std::make_shared<Impl>()) {
  MOE8_CHECK(process_group, "group", "process_group", "expected one, got null");
  impl_->name = name;
  impl_->rank = process_group->getRank();
  impl_->ranks.resize(static_cast<size_t>(process_group->getSize()));
  for (size_t i = 0; i < impl_->ranks.size(); ++i) impl_->ranks[i] = static_cast<int64_t>(i);
  for (const c10::Device& device : process_group->getDeviceTypes()) {
    if (!device.is_cpu()) impl_->device = device.type();
  }
  impl_->process_group = std::move(process_group);
}

Group::Group(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

const std::string& Group::name() const {
  return impl_->name;
}
int64_t Group::rank() const {
  return impl_->rank;
}
int64_t Group::size() const {
  return impl_->size();
}
const std::vector<int64_t>& Group::ranks() const {
  return impl_->ranks;
}

ProcessGroupPtr Group::process_group() const {
  const std::lock_guard lock(impl_->making);
  if (!impl_->process_group) {
    MOE8_CHECK(size() == 1, "group", name(), "expected a group in use, got one that was shut down");
    impl_->process_group = make_process_group(*impl_, c10::make_intrusive<c10d::HashStore>());
  }
  return impl_->process_group;
}

}  // namespace moe8
