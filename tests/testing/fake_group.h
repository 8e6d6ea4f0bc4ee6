// SPDX-License-Identifier: BSD-3-Clause
// Groups of processes that are not there: this one is any rank of a world of any size. What it would
// send goes nowhere, what it would receive is its own, or zeros where that does not fit. As c10d's
// FakeProcessGroup, whose header needs Python's.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "moe8/parallel.h"

namespace moe8::testing {

class FakeBackend : public c10d::Backend {
 public:
  using c10d::Backend::Backend;
  using Pending = c10::intrusive_ptr<c10d::Work>;

  // NOLINTNEXTLINE(readability-const-return-type): as c10d declares it
  const std::string getBackendName() const override { return "fake"; }
  Pending alltoall_base(at::Tensor& out, at::Tensor& in, std::vector<int64_t>& out_split,
                        std::vector<int64_t>& in_split, const c10d::AllToAllOptions&) override {
    // As if each rank sent what this one sends to it, where that fits.
    if (out_split == in_split && out.numel() == in.numel()) {
      out.copy_(in);
    } else {
      out.zero_();
    }
    return done();
  }
  Pending _allgather_base(at::Tensor& out, at::Tensor& in, const c10d::AllgatherOptions&) override {
    for (at::Tensor& part : out.chunk(getSize())) part.copy_(in);
    return done();
  }
  Pending allreduce(std::vector<at::Tensor>&, const c10d::AllreduceOptions&) override {
    return done();
  }

 private:
  struct Done : c10d::Work {
    bool wait(std::chrono::milliseconds) override { return true; }
  };
  static Pending done() { return c10::make_intrusive<Done>(); }
};

/// @param ranks  of the world that are members, ascending; `rank` is one of them
inline Group fake_group(const std::string& name, const std::vector<int64_t>& ranks, int64_t rank) {
  if (ranks.size() == 1) return {};
  const int place = static_cast<int>(std::find(ranks.begin(), ranks.end(), rank) - ranks.begin());
  const int size = static_cast<int>(ranks.size());
  auto group =
      c10::make_intrusive<c10d::ProcessGroup>(c10::make_intrusive<c10d::HashStore>(), place, size);
  group->setBackend(at::kCPU, c10d::ProcessGroup::CUSTOM,
                    c10::make_intrusive<FakeBackend>(place, size));
  group->setDefaultBackend(c10d::ProcessGroup::CUSTOM);
  return Group(name, group);
}

}  // namespace moe8::testing
