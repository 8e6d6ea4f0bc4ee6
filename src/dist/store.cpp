// SPDX-License-Identifier: BSD-3-Clause
// The store in which the processes of a launch meet.
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "base/check.h"
#include "dist/backends.h"

namespace moe8 {
namespace {

StorePtr connect(const Launch& launch, std::chrono::milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = launch.master_port;
  options.isServer = !launch.has_agent_store && launch.rank == 0;
  options.waitWorkers = false;  // the first barrier waits, and says for whom
  options.timeout = timeout;
  try {
    return c10::make_intrusive<c10d::TCPStore>(launch.master_address, options);
  } catch (const std::exception& error) {
    const char* const what = options.isServer ? "a free port" : "the store of rank 0";
    fail("parallel", "MASTER_ADDR, MASTER_PORT",
         concat("expected ", what, " at ", launch.master_address, ":", launch.master_port,
                " within ", timeout.count() / 1000, " s, got: ", message_of(error)));
  }
}

}  // namespace

StorePtr connect_store(const Launch& launch, std::chrono::milliseconds timeout) {
  // A launcher that starts a job again may keep the store of the time before.
  return c10::make_intrusive<c10d::PrefixStore>(concat("moe8/", launch.restarts),
                                                connect(launch, timeout));
}

}  // namespace moe8
