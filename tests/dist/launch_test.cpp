// SPDX-License-Identifier: BSD-3-Clause
#include "dist/launch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/check.h"

namespace moe8 {
namespace {

using ::testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

Launch launch(const Variables& variables) {
  return launch_from([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

std::string error_of(const Variables& variables) {
  try {
    launch(variables);
  } catch (const c10::Error& error) {
    return message_of(error);
  }
  return "no error";
}

const Variables kTorchrun = {{"RANK", "5"},
                             {"WORLD_SIZE", "16"},
                             {"LOCAL_RANK", "1"},
                             {"LOCAL_WORLD_SIZE", "4"},
                             {"MASTER_ADDR", "node1"},
                             {"MASTER_PORT", "29400"},
                             {"TORCHELASTIC_RESTART_COUNT", "2"},
                             {"TORCHELASTIC_USE_AGENT_STORE", "True"}};

Variables without(Variables variables, const std::string& name) {
  variables.erase(name);
  return variables;
}
Variables with(Variables variables, const std::string& name, const std::string& value) {
  variables[name] = value;
  return variables;
}

TEST(Launch, NothingIsOneProcess) {
  const Launch l = launch({{"MASTER_ADDR", "left over"}, {"HOME", "/root"}});
  EXPECT_EQ(l.launcher, "none");
  EXPECT_EQ(l.rank, 0);
  EXPECT_EQ(l.world, 1);
  EXPECT_EQ(l.local_rank, 0);
}

TEST(Launch, Torchrun) {
  const Launch l = launch(kTorchrun);
  EXPECT_EQ(l.launcher, "torchrun");
  EXPECT_EQ(l.rank, 5);
  EXPECT_EQ(l.world, 16);
  EXPECT_EQ(l.local_rank, 1);
  EXPECT_EQ(l.restarts, 2);
  EXPECT_EQ(l.master_address, "node1");
  EXPECT_EQ(l.master_port, 29400);
  EXPECT_TRUE(l.has_agent_store);
}

TEST(Launch, MpirunOnOneMachineNeedsNoMaster) {
  const Variables open_mpi = {{"OMPI_COMM_WORLD_RANK", "1"},
                              {"OMPI_COMM_WORLD_SIZE", "2"},
                              {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                              {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}};
  const Launch l = launch(open_mpi);
  EXPECT_EQ(l.launcher, "mpirun");
  EXPECT_EQ(l.rank, 1);
  EXPECT_EQ(l.world, 2);
  EXPECT_EQ(l.master_address, "127.0.0.1");
  EXPECT_FALSE(l.has_agent_store);
  EXPECT_EQ(error_of(with(open_mpi, "OMPI_COMM_WORLD_LOCAL_SIZE", "1")),
            "[launch] MASTER_ADDR: expected the host of rank 0, as 2 processes were started, got "
            "nothing. Export MASTER_ADDR and MASTER_PORT to all of them");
  const Launch hydra = launch(
      {{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "3"}, {"MPI_LOCALNRANKS", "4"}});
  EXPECT_EQ(hydra.launcher, "mpirun");
  EXPECT_EQ(hydra.rank, 3);
}

TEST(Launch, SrunButNotTheScriptOfSbatch) {
  const Variables script = {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_LOCALID", "0"}};
  EXPECT_EQ(launch(script).launcher, "none");
  const Variables step =
      with(with(with(with(script, "SLURM_STEP_NUM_TASKS", "8"), "SLURM_PROCID", "6"), "MASTER_ADDR",
                "n1"),
           "MASTER_PORT", "1234");
  const Launch l = launch(step);
  EXPECT_EQ(l.launcher, "srun");
  EXPECT_EQ(l.rank, 6);
  EXPECT_EQ(l.world, 8);
  EXPECT_EQ(l.master_address, "n1");
  EXPECT_EQ(launch({{"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_PROCID", "0"}}).world, 1);
}

TEST(Launch, HalfSetVariablesAreErrors) {
  EXPECT_EQ(error_of(without(kTorchrun, "WORLD_SIZE")),
            "[launch] WORLD_SIZE: expected a number, as RANK is set, got nothing. A launcher sets "
            "both; to run as one process unset RANK");
  EXPECT_THAT(error_of(without(kTorchrun, "RANK")),
              HasSubstr("RANK: expected a number, as WORLD_"));
  EXPECT_THAT(error_of(without(kTorchrun, "LOCAL_RANK")), HasSubstr("LOCAL_RANK: expected"));
  EXPECT_THAT(error_of(without(kTorchrun, "MASTER_ADDR")), HasSubstr("MASTER_ADDR: expected"));
  EXPECT_THAT(error_of(without(kTorchrun, "MASTER_PORT")), HasSubstr("MASTER_PORT: expected"));
}

TEST(Launch, WrongNumbersAreErrors) {
  EXPECT_EQ(error_of(with(kTorchrun, "RANK", "16")),
            "[launch] RANK: expected a number of 0 to 15, got '16'");
  EXPECT_EQ(error_of(with(kTorchrun, "RANK", "-1")),
            "[launch] RANK: expected a number of 0 to 15, got '-1'");
  EXPECT_THAT(error_of(with(kTorchrun, "WORLD_SIZE", "two")), HasSubstr("got 'two'"));
  EXPECT_THAT(error_of(with(kTorchrun, "WORLD_SIZE", "0")), HasSubstr("got '0'"));
  EXPECT_THAT(error_of(with(kTorchrun, "LOCAL_RANK", "1 ")), HasSubstr("got '1 '"));
  EXPECT_THAT(error_of(with(kTorchrun, "MASTER_PORT", "70000")), HasSubstr("1 to 65535"));
}

}  // namespace
}  // namespace moe8
