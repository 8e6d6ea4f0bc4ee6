// SPDX-License-Identifier: BSD-3-Clause
// Worlds: how they begin, what groups they have, how they end, well or not.
#include "moe8/parallel.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "base/check.h"
#include "testing/processes.h"

namespace moe8 {
namespace {

using testing::EndedProcess;
using ::testing::HasSubstr;
using testing::in_processes;
using testing::ProcessesOptions;
using testing::run_processes;

// Processes of one test may start some seconds apart where others compute beside it.
constexpr std::chrono::seconds kMoreThanStarting(10);

TEST(Parallel, WithoutALauncherIsAWorldOfOne) {
  Parallel p({}, Launch{});
  EXPECT_EQ(p.store(), nullptr);
  EXPECT_EQ(p.device(), at::Device(at::kCPU));
  for (const Group* group : {&p.world(), &p.data(), &p.expert(), &p.expert_data(), &p.tensor()}) {
    EXPECT_EQ(group->size(), 1);
    EXPECT_EQ(group->rank(), 0);
  }
  const at::Tensor x = at::ones({2});
  EXPECT_TRUE(all_gather(p.world(), x).equal(x));
  EXPECT_EQ(p.world().process_group()->getSize(), 1);
  p.shutdown();
  EXPECT_EQ(Group().name(), "self");
}

TEST(Parallel, EachGroupSumsOverItsMembers) {
  in_processes(
      {4},
      [](Parallel& p) {
        for (const Group* g : {&p.world(), &p.data(), &p.expert(), &p.expert_data(), &p.tensor()}) {
          SCOPED_TRACE(g->name());
          const at::Tensor ranks = all_gather(*g, at::full({1}, p.launch().rank));
          EXPECT_TRUE(ranks.equal(at::tensor(g->ranks())));
          EXPECT_EQ(g->ranks()[static_cast<size_t>(g->rank())], p.launch().rank);
          EXPECT_EQ(g->process_group()->getSize(), g->size());
        }
        EXPECT_EQ(p.expert().size(), 2);
        EXPECT_EQ(p.expert_data().size(), 2);
      },
      [](int64_t) { return ParallelLayout{.expert = 2}; });
}

TEST(Parallel, RankZeroServesTheStoreWhereTheLauncherDoesNot) {
  // A port that nobody else is likely to want.
  const ProcessesOptions options{
      .environment = {{"TORCHELASTIC_USE_AGENT_STORE", ""},
                      {"MASTER_PORT", concat(20000 + ::getpid() % 9000)}}};
  in_processes(
      {2}, [](Parallel& p) { barrier(p.world()); }, {}, options);
}

TEST(Parallel, WhoIsMissingIsNamed) {
  const auto body = [] {
    if (launch_from_environment().rank == 1) return;
    Parallel p({.timeout = kMoreThanStarting});
  };
  const std::vector<EndedProcess> ended = run_processes(3, body);
  EXPECT_EQ(ended[1].exit_code, 0);
  for (const size_t rank : {size_t{0}, size_t{2}}) {
    EXPECT_EQ(ended[rank].exit_code, 1);
    EXPECT_THAT(ended[rank].output,
                HasSubstr("[parallel] world: expected 3 processes at 127.0.0.1:"));
    EXPECT_THAT(ended[rank].output, HasSubstr("within 10 s, got none of rank 1. Their own output"));
  }
}

TEST(Parallel, ALayoutThatDoesNotDivideIsAnErrorBeforeAnybodyWaits) {
  const auto body = [] { Parallel p({.layout = {.expert = 3}}); };
  for (const EndedProcess& process : run_processes(2, body)) {
    EXPECT_EQ(process.exit_code, 1);
    EXPECT_THAT(process.output, HasSubstr("[parallel] expert: expected a divisor of 2"));
  }
}

TEST(Parallel, TheReasonOfTheRankThatEndedFirstIsToldByTheOthers) {
  const auto body = [] {
    Parallel p({.timeout = std::chrono::seconds(60)});
    try {
      if (p.launch().rank == 2) fail("data", "", "the disk is full");
      barrier(p.world());
    } catch (const std::exception& error) {
      p.abort(message_of(error));
      throw;
    }
  };
  const std::vector<EndedProcess> ended = run_processes(3, body);
  for (const EndedProcess& process : ended) {
    EXPECT_EQ(process.exit_code, 1);
    EXPECT_FALSE(process.is_late);
    EXPECT_THAT(process.output, HasSubstr("[data] the disk is full"));
  }
  EXPECT_THAT(ended[0].output,
              HasSubstr("[barrier] group 'world': expected an answer from all ranks, "
                        "got on rank 0 of 3: "));
  EXPECT_THAT(ended[0].output, HasSubstr("The first to end was rank 2: [data] the disk is full"));
}

TEST(Parallel, AKilledRankEndsTheOthersWithAnError) {
  const auto body = [] {
    Parallel p({.timeout = std::chrono::seconds(60)});
    barrier(p.world());
    if (p.launch().rank == 1) ::kill(::getpid(), SIGKILL);
    all_gather(p.world(), at::ones({1000}));
  };
  const std::vector<EndedProcess> ended = run_processes(2, body);
  EXPECT_EQ(ended[1].signal, SIGKILL);
  EXPECT_EQ(ended[0].exit_code, 1);
  EXPECT_FALSE(ended[0].is_late);
  EXPECT_THAT(ended[0].output, HasSubstr("[all_gather] group 'world': expected an answer"));
  EXPECT_THAT(ended[0].output, HasSubstr("No rank has said why: one was killed"));
}

TEST(Parallel, AHangingRankIsWaitedForAsLongAsTheTimeoutSays) {
  const auto body = [] {
    Parallel p({.timeout = kMoreThanStarting});
    if (p.launch().rank == 1) {
      ::sleep(100);
      ::_exit(0);
    }
    all_gather(p.world(), at::ones({1000}));
  };
  const std::vector<EndedProcess> ended =
      run_processes(2, body, {.limit_after_failure = std::chrono::seconds(1)});
  EXPECT_EQ(ended[0].exit_code, 1);
  EXPECT_THAT(ended[0].output, HasSubstr("[all_gather] group 'world': expected an answer"));
}

}  // namespace
}  // namespace moe8
