// SPDX-License-Identifier: BSD-3-Clause
// What engines share whose learning rate and clocks are the host's; Muon by LibTorch's operations.
#pragma once

#include <utility>
#include <vector>

#include "optim/engine.h"
#include "quantize/check_input.h"

namespace moe8 {

class HostOptimEngine : public OptimEngine {
 public:
  explicit HostOptimEngine(size_t parameters) : clocks_(parameters) {}

  void set_learning_rate(double learning_rate) override { learning_rate_ = learning_rate; }
  std::vector<AdamWClock> clocks() const override { return clocks_; }
  void set_clocks(const std::vector<AdamWClock>& clocks) override { clocks_ = clocks; }
  void muon_directions(const MuonRule& rule, const std::vector<MuonItem>& items,
                       const std::vector<at::Tensor>& directions, const at::Tensor& norm) override;
  void muon_weights(const std::vector<MuonItem>& items, const std::vector<at::Tensor>& directions,
                    const at::Tensor& norm) override;

 protected:
  StepScalars begin(const AdamWItem& item, const AdamWRule& rule, const float* norm) {
    return begin_step(clocks_[item.index], rule, learning_rate_, item.weight_decay, norm,
                      static_cast<uint32_t>(item.index));
  }

 private:
  double learning_rate_ = 0;
  std::vector<AdamWClock> clocks_;
};

}  // namespace moe8
