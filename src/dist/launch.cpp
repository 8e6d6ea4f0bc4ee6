// SPDX-License-Identifier: BSD-3-Clause
// What a launcher says by environment variables, and what is wrong with it.
#include "dist/launch.h"

#include <charconv>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <system_error>

#include "base/check.h"

namespace moe8 {
namespace {

constexpr const char* kLaunch = "launch";
constexpr int64_t kMaxRanks = 1 << 24;

// The variables of one launcher.
struct Variables {
  const char* launcher;
  const char* rank;
  const char* world;
  const char* local_rank;
  const char* local_world;  // nullptr: it says none
  const char* restarts;     // nullptr: it says none
};

constexpr Variables kLaunchers[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
     "TORCHELASTIC_RESTART_COUNT"},
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", nullptr},
    // SLURM_NTASKS is not asked: sbatch sets it for its script as well, which is one process.
    {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", nullptr,
     "SLURM_RESTART_COUNT"},
    {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", nullptr},
};

class Environment {
 public:
  explicit Environment(const LaunchVariables& variable) : variable_(variable) {}

  std::optional<std::string> text(const char* name) const {
    const char* const value = name ? variable_(name) : nullptr;
    return value && *value ? std::optional<std::string>(value) : std::nullopt;
  }

  /// Nothing where it is not set.
  std::optional<int64_t> number(const char* name, int64_t least, int64_t greatest) const {
    const std::optional<std::string> value = text(name);
    if (!value) return std::nullopt;
    int64_t number = 0;
    const char* const end = value->data() + value->size();
    const auto [stopped, error] = std::from_chars(value->data(), end, number);
    MOE8_CHECK(error == std::errc() && stopped == end && number >= least && number <= greatest,
               kLaunch, name, "expected a number of ", least, " to ", greatest, ", got '", *value,
               "'");
    return number;
  }

  int64_t needed(const char* name, const char* because, int64_t least, int64_t greatest) const {
    const std::optional<int64_t> value = number(name, least, greatest);
    MOE8_CHECK(value, kLaunch, name, "expected a number, as ", because,
               " is set, got nothing. A launcher sets both; to run as one process unset ", because);
    return *value;
  }

 private:
  const LaunchVariables& variable_;
};

// SLURM_PROCID alone is no launch by srun: sbatch sets it for its script.
bool is_started_by(const Variables& v, const Environment& environment) {
  const bool has_world = environment.text(v.world).has_value();
  if (std::string_view(v.launcher) == "srun") return has_world;
  return has_world || environment.text(v.rank).has_value();
}

bool is_true(const std::optional<std::string>& text) {
  return text && (*text == "True" || *text == "true" || *text == "1");
}

// Where the store is. A world of this machine alone meets here unless it is told otherwise.
void find_master(Launch& launch, const Environment& environment, bool is_one_machine) {
  const std::optional<std::string> address = environment.text("MASTER_ADDR");
  const std::optional<int64_t> port = environment.number("MASTER_PORT", 1, 65535);
  const bool may_guess = is_one_machine && launch.launcher != "torchrun";
  MOE8_CHECK(address || may_guess, kLaunch, "MASTER_ADDR", "expected the host of rank 0, as ",
             launch.world, " processes were started, got nothing. Export MASTER_ADDR and ",
             "MASTER_PORT to all of them");
  MOE8_CHECK(port || may_guess, kLaunch, "MASTER_PORT", "expected a free port of ",
             address.value_or("this machine"), ", as ", launch.world,
             " processes were started, got nothing. Export MASTER_ADDR and MASTER_PORT to all of ",
             "them");
  constexpr uint16_t kUsualPort = 29500;
  launch.master_address = address.value_or("127.0.0.1");
  launch.master_port = port ? static_cast<uint16_t>(*port) : kUsualPort;
}

}  // namespace

Launch launch_from(const LaunchVariables& variable) {
  const Environment environment(variable);
  for (const Variables& v : kLaunchers) {
    if (!is_started_by(v, environment)) continue;
    Launch launch;
    launch.launcher = v.launcher;
    launch.world = environment.needed(v.world, v.rank, 1, kMaxRanks);
    launch.rank = environment.needed(v.rank, v.world, 0, launch.world - 1);
    if (launch.world == 1) return launch;
    launch.local_rank = environment.needed(v.local_rank, v.world, 0, launch.world - 1);
    const int64_t local_world = environment.number(v.local_world, 1, launch.world).value_or(0);
    launch.restarts = environment.number(v.restarts, 0, INT64_MAX).value_or(0);
    launch.has_agent_store = is_true(environment.text("TORCHELASTIC_USE_AGENT_STORE"));
    find_master(launch, environment, local_world == launch.world);
    return launch;
  }
  return {};
}

Launch launch_from_environment() {
  return launch_from([](const char* name) -> const char* { return std::getenv(name); });
}

}  // namespace moe8
