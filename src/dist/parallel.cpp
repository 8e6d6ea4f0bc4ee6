// SPDX-License-Identifier: BSD-3-Clause
// The world of a program: how its processes find each other, its groups, and how it ends.
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <exception>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <utility>

#include "base/check.h"
#include "device/cuda_backend.h"
#include "dist/group.h"
#include "dist/layout.h"

namespace moe8 {
namespace {

constexpr const char* kParallel = "parallel";

// The GPU of this process. A launcher may show each process one GPU, or all of the machine.
at::Device choose_gpu(const Launch& launch) {
  if (const auto failure = load_cuda_backend()) {
    fail(kParallel, "device", concat("expected a GPU, got: ", *failure));
  }
  const c10::impl::VirtualGuardImpl gpus(at::kCUDA);
  if (launch.world == 1) return gpus.getDevice();
  const int64_t count = static_cast<uint8_t>(gpus.deviceCount());
  const int64_t index = count == 1 ? 0 : launch.local_rank;
  MOE8_CHECK(index < count, kParallel, "device",
             "expected a GPU for each process of this machine, got ", count, " for local rank ",
             launch.local_rank);
  const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
  gpus.setDevice(device);
  return device;
}

// Who is missing is known before the transports wait for them.
void meet(c10d::Store& store, const Launch& launch, std::chrono::milliseconds timeout) {
  const auto key = [](int64_t rank) { return concat("here/", rank); };
  store.set(key(launch.rank), std::vector<uint8_t>{1});
  std::vector<std::string> all;
  for (int64_t r = 0; r < launch.world; ++r) all.push_back(key(r));
  try {
    store.wait(all, timeout);
    return;
  } catch (const std::exception&) {
  }
  std::string missing;
  for (int64_t r = 0; r < launch.world; ++r) {
    if (!store.check({key(r)})) missing += concat(missing.empty() ? "" : ", ", r);
  }
  fail(kParallel, "world",
       concat("expected ", launch.world, " processes at ", launch.master_address, ":",
              launch.master_port, " within ", timeout.count() / 1000, " s, got none of rank ",
              missing, ". Their own output says why"));
}

}  // namespace

struct Parallel::Impl {
  Impl(const ParallelOptions& o, Launch l) : options(o), launch(std::move(l)) {}

  ParallelOptions options;
  Launch launch;
  at::Device device{at::kCPU};
  StorePtr store{};
  Group world, data, expert, expert_data, tensor;
  bool has_ended = false;

  Group make_group(const char* name, const std::vector<int64_t>& ranks) const {
    auto group = std::make_shared<Group::Impl>();
    group->name = name;
    group->ranks = ranks;
    group->rank = std::find(ranks.begin(), ranks.end(), launch.rank) - ranks.begin();
    group->device = options.device;
    group->timeout = options.timeout;
    group->world_store = store;
    if (ranks.size() > 1) {
      const std::string prefix = concat(name, "/", ranks.front());
      group->process_group =
          make_process_group(*group, c10::make_intrusive<c10d::PrefixStore>(prefix, store));
    }
    return Group(std::move(group));
  }

  // Groups of the same ranks are one, but that of the experts: what they exchange overlaps with what
  // the others do.
  void make_groups() {
    const LayoutGroups ranks = layout_groups(options.layout, launch.world, launch.rank);
    world = make_group("world", ranks.world);
    data = ranks.data == ranks.world ? world : make_group("data", ranks.data);
    expert = make_group("expert", ranks.expert);
    expert_data = ranks.expert_data == ranks.world  ? world
                  : ranks.expert_data == ranks.data ? data
                                                    : make_group("expert_data", ranks.expert_data);
    tensor = make_group("tensor", ranks.tensor);
  }

  template <typename Function>
  void for_each_process_group(const Function& function) const {
    std::vector<c10d::ProcessGroup*> seen;
    for (const Group* group : {&world, &data, &expert, &expert_data, &tensor}) {
      const std::shared_ptr<Group::Impl>& beside = group->impl().background;
      for (c10d::ProcessGroup* const process_group :
           {group->impl().process_group.get(), beside ? beside->process_group.get() : nullptr}) {
        if (!process_group) continue;
        if (std::find(seen.begin(), seen.end(), process_group) != seen.end()) continue;
        seen.push_back(process_group);
        function(*process_group);
      }
    }
  }

  // All ranks have come here, or one has said that it ended otherwise; rank 0, which may serve the
  // store, is the last to leave.
  void part() const {
    const auto until =
        std::chrono::steady_clock::now() +
        std::min<std::chrono::milliseconds>(options.timeout, std::chrono::minutes(1));
    const auto wait_for = [&](const char* key, int64_t count) {
      while (store->add(key, 0) < count && !store->check({kFirstReason}) &&
             std::chrono::steady_clock::now() < until) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    };
    store->add("done", 1);
    wait_for("done", launch.world);
    store->add("left", 1);
    if (launch.rank == 0) wait_for("left", launch.world);
  }
};

Parallel::Parallel(const ParallelOptions& options, const Launch& launch)
    : impl_(std::make_unique<Impl>(options, launch)) {
  Impl& impl = *impl_;
  MOE8_CHECK(options.device == at::kCPU || options.device == at::kCUDA, kParallel, "device",
             "expected kCPU or kCUDA, got ", options.device);
  MOE8_CHECK(options.timeout.count() > 0, kParallel, "timeout", "expected more than 0 s, got ",
             options.timeout.count(), " s");
  layout_groups(options.layout, launch.world, launch.rank);  // wrong ones before anybody waits
  if (options.device == at::kCUDA) impl.device = choose_gpu(launch);
  if (launch.world > 1) {
    impl.store = connect_store(launch, options.timeout);
    meet(*impl.store, launch, options.timeout);
  }
  impl.make_groups();
}

Parallel::~Parallel() {
  try {
    if (std::uncaught_exceptions() > 0) {
      abort("an exception passed through");
    } else {
      shutdown();
    }
  } catch (const std::exception&) {  // nobody is left to be told
  }
}

const Launch& Parallel::launch() const {
  return impl_->launch;
}
const ParallelOptions& Parallel::options() const {
  return impl_->options;
}
at::Device Parallel::device() const {
  return impl_->device;
}
const Group& Parallel::world() const {
  return impl_->world;
}
const Group& Parallel::data() const {
  return impl_->data;
}
const Group& Parallel::expert() const {
  return impl_->expert;
}
const Group& Parallel::expert_data() const {
  return impl_->expert_data;
}
const Group& Parallel::tensor() const {
  return impl_->tensor;
}
c10::intrusive_ptr<c10d::Store> Parallel::store() const {
  return impl_->store;
}

void Parallel::shutdown() {
  Impl& impl = *impl_;
  if (std::exchange(impl.has_ended, true) || !impl.store) return;
  try {
    impl.part();
  } catch (const std::exception&) {  // whoever served the store has ended: nobody is waited for
  }
  impl.for_each_process_group([](c10d::ProcessGroup& group) { group.shutdown(); });
}

void Parallel::abort(const std::string& why) {
  Impl& impl = *impl_;
  if (std::exchange(impl.has_ended, true) || !impl.store) return;
  try {
    const std::string reason = concat("rank ", impl.launch.rank, ": ", why);
    impl.store->compareSet(kFirstReason, std::vector<uint8_t>{},
                           std::vector<uint8_t>(reason.begin(), reason.end()));
  } catch (const std::exception&) {  // the store may be what has failed
  }
  impl.for_each_process_group([](c10d::ProcessGroup& group) { group.abort(); });
}

}  // namespace moe8
