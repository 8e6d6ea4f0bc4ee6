// SPDX-License-Identifier: BSD-3-Clause
#include "train/crew.h"

#include <ATen/ops/tensor.h>
#include <c10/util/Logging.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "base/check.h"
#include "base/plain_text.h"
#include "train/agree.h"
#include "train/training_device.h"

namespace moe8 {
namespace {

constexpr const char* kRun = "train";  // begins errors

std::string why_lost(const LostRank& lost) {
  if (lost.rank < 0) return "the launcher's store does not answer any more";
  const std::string time = shortest(std::round(10 * lost.seconds) / 10);
  if (!lost.hangs) {
    return concat("rank ", lost.rank, ": no sign of life for ", time, " s: it was killed or hangs");
  }
  return concat("rank ", lost.rank, ": the others have waited for it for ", time,
                " s: it lives, but hangs or needs longer than parallel.timeout_s");
}

// A launcher's store that has gone is a warning of 33 lines; whoever ends the run has said why in one.
void quiet_libtorch() {
  constexpr int kErrors = 2;
  if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = kErrors;
}

// In the thread of the watch, while the main thread waits in vain. One rank prints.
[[noreturn]] void end_because_of(const LostRank& lost, int64_t rank, const WatchOptions& watch) {
  const bool prints = rank == (lost.rank == 0 ? 1 : 0);
  if (prints || lost.rank < 0) {
    std::fprintf(
        stderr,
        "moe8: %s. All ranks end. Start the same command again with --resume: the run goes "
        "on after its last checkpoint\n",
        why_lost(lost).c_str());
    std::fflush(stderr);
  } else {
    std::this_thread::sleep_for(2 * watch.interval);  // a launcher ends all after the first
  }
  ::_exit(1);
}

WatchOptions watch_of(const RunConfig& config, WatchOptions watch) {
  watch.stall = std::chrono::seconds(config.parallel.timeout_s);
  return watch;
}

ParallelOptions options_of(const RunConfig& config) {
  ParallelOptions options;
  options.layout = {config.parallel.expert, config.parallel.tensor};
  const bool on_gpu = training_device(config.training.device).is_cuda();
  options.device = on_gpu ? at::kCUDA : at::kCPU;
  // The watch is sooner, and knows who is missed.
  options.timeout = std::max(options.timeout, std::chrono::seconds(20 * config.parallel.timeout_s));
  return options;
}

}  // namespace

Crew::Crew() = default;

Crew::Crew(const RunConfig& config, const Launch& launch, const WatchOptions& watch)
    : patience_(watch_of(config, watch)) {
  if (launch.world == 1) return;
  quiet_libtorch();
  parallel_ = std::make_unique<Parallel>(options_of(config), launch);
  watch_ = std::make_unique<Watch>(
      parallel_->store(), rank(), size(),
      [rank = rank(), watch = patience_](const LostRank& lost) {
        end_because_of(lost, rank, watch);
      },
      patience_);
}

Crew::~Crew() = default;

const Group& Crew::world() const {
  return parallel_ ? parallel_->world() : alone_;
}
const Group& Crew::data() const {
  return parallel_ ? parallel_->data() : alone_;
}
const Group& Crew::expert() const {
  return parallel_ ? parallel_->expert() : alone_;
}
const Group& Crew::expert_data() const {
  return parallel_ ? parallel_->expert_data() : alone_;
}
const Group& Crew::tensor() const {
  return parallel_ ? parallel_->tensor() : alone_;
}

ShardingGroups Crew::sharding() const {
  return {.all = world(), .expert_data = expert_data(), .part_data = data()};
}

at::Device Crew::device(const RunConfig& config) const {
  return parallel_ ? parallel_->device() : training_device(config.training.device);
}

ExpertPart Crew::experts(const TransformerConfig& model) const {
  const int64_t parts = expert().size();
  if (parts == 1) return {};
  return {expert().rank() * (model.n_experts / parts), model.n_experts};
}

ModelPart Crew::part(const TransformerConfig& model) const {
  return {experts(model), tensor().rank(), tensor().size()};
}

void Crew::check_same(const std::vector<std::pair<std::string, std::string>>& settings) const {
  if (is_alone()) return;
  std::string own;
  for (const auto& [name, value] : settings) own += concat(name, '\n', value, '\0');
  const std::vector<std::string> all = all_gather_text(world(), own);
  const auto parts = [](const std::string& text) {
    std::vector<std::string> found;
    for (size_t at = 0, end; (end = text.find('\0', at)) != std::string::npos; at = end + 1) {
      found.push_back(text.substr(at, end - at));
    }
    return found;
  };
  const std::vector<std::string> first = parts(all[0]);
  for (size_t rank = 1; rank < all.size(); ++rank) {
    const std::vector<std::string> other = parts(all[rank]);
    for (size_t i = 0; i < std::min(first.size(), other.size()); ++i) {
      if (first[i] == other[i]) continue;
      const size_t end = first[i].find('\n');
      throw SharedError(concat("[", kRun, "] ", first[i].substr(0, end), ": expected ",
                               first[i].substr(end + 1), ", as rank 0 has, on every rank, got ",
                               other[i].substr(other[i].find('\n') + 1), " on rank ", rank,
                               ". Start all ranks with the same command, program and files."));
    }
  }
}

int64_t Crew::largest(int64_t number) const {
  if (is_alone()) return number;
  const at::Tensor value = at::tensor({number}, at::kLong);
  all_reduce_(world(), value, Reduction::MAX);
  return value.item<int64_t>();
}

std::vector<RankUse> Crew::gather_use(const RankUse& own) const {
  const at::Tensor values = at::tensor({own.step_seconds, own.waited_seconds, own.bytes_sent,
                                        static_cast<double>(own.peak_memory), own.expert_rows},
                                       at::kDouble)
                                .view({1, 5});
  const at::Tensor all = all_gather(world(), values);
  std::vector<RankUse> uses;
  for (int64_t r = 0; r < size(); ++r) {
    const double* const v = all.const_data_ptr<double>() + 5 * r;
    uses.push_back({v[0], v[1], v[2], static_cast<int64_t>(v[3]), v[4]});
  }
  return uses;
}

std::string Crew::fail(const std::exception& error) {
  const std::string text = message_of(error);
  if (is_alone()) return text;
  if (dynamic_cast<const SharedError*>(&error)) {
    parallel_->shutdown();  // all ranks are here
    return is_first() ? text : "";
  }
  const bool waited = text.find("expected an answer from all ranks") != std::string::npos;
  if (!waited) {
    parallel_->abort(text);
    return concat("rank ", rank(), ": ", text);
  }
  // Some other rank has ended. Where it said why, it printed that.
  if (const size_t why = text.find("The first to end was "); why != std::string::npos) {
    parallel_->abort(text);
    return is_first() ? text.substr(why) : "";
  }
  // The watch knows in a while who it was, and ends this process.
  std::this_thread::sleep_for(2 * patience_.patience);
  parallel_->abort(text);
  return concat("rank ", rank(), ": ", text);
}

}  // namespace moe8
