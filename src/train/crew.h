// SPDX-License-Identifier: BSD-3-Clause
// The processes that train one run together. Alone, one process without a launcher, every function
// is free.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moe8/parallel.h"
#include "moe8/sharded_optimizer.h"
#include "train/config/run_config.h"
#include "train/store/named_tensors.h"
#include "train/store/run_result.h"
#include "train/watch.h"

namespace moe8 {

class Crew {
 public:
  /// Alone.
  Crew();
  /// With all that the launcher started.
  /// @throws c10::Error when the config's split does not divide their number, or they do not meet.
  Crew(const RunConfig& config, const Launch& launch, const WatchOptions& watch);
  /// Leaves in order; after fail() the others are told.
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  int64_t rank() const { return world().rank(); }
  int64_t size() const { return world().size(); }
  bool is_alone() const { return size() == 1; }
  bool is_first() const { return rank() == 0; }

  const Group& world() const;
  const Group& data() const;
  const Group& expert() const;
  const Group& expert_data() const;  // the ranks that hold the same experts
  const Group& tensor() const;
  /// For the optimizer.
  ShardingGroups sharding() const;
  /// The GPU of this process where there are several; as the setting says otherwise.
  at::Device device(const RunConfig& config) const;
  /// Which experts this rank holds.
  ExpertPart experts(const TransformerConfig& model) const;
  ModelPart part(const TransformerConfig& model) const;

  /// @throws SharedError naming the first setting in which a rank differs from the first rank, with
  /// both values: what ranks must share before they train together.
  void check_same(const std::vector<std::pair<std::string, std::string>>& settings) const;

  /// The largest of all ranks' numbers.
  int64_t largest(int64_t number) const;
  /// Of every rank, in order.
  std::vector<RankUse> gather_use(const RankUse& own) const;

  /// This process ends because of `error`: says so to the others. When the error is that another
  /// rank did not answer, first finds out which.
  /// @return  what to print, empty where another rank prints it
  std::string fail(const std::exception& error);

 private:
  std::unique_ptr<Parallel> parallel_;  // null: alone
  Group alone_;
  WatchOptions patience_;
  std::unique_ptr<Watch> watch_;
};

}  // namespace moe8
