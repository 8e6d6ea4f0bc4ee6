// SPDX-License-Identifier: BSD-3-Clause
// How long a step and its parts take on the device, measured without waiting for it.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Event.h>

#include <chrono>
#include <memory>
#include <vector>

#include "train/store/metrics.h"

namespace moe8 {

/// Marks where the parts of a step begin: by the clock of a CPU, by events in the stream of a GPU.
class StepClock {
 public:
  enum class Part { DATA, FORWARD, BACKWARD, OPTIMIZER };

  /// Begins the step with Part::DATA.
  /// @param before  the step that ended just now, so that what lies between the two counts; null:
  ///                other work lies between them
  explicit StepClock(const c10::Device& device, const StepClock* before = nullptr);

  /// The part before ends here.
  void start(Part part) { parts_.push_back(part), mark(); }
  /// The step ends here.
  void stop() { mark(); }

  /// After stop(). Waits until the device has come there.
  double seconds() const;
  PartTimes parts() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Mark {
    Clock::time_point time;
    std::shared_ptr<c10::Event> event;  // null on a CPU
  };
  void mark();
  static double seconds(const Mark& from, const Mark& to);

  c10::Device device_;
  std::vector<Part> parts_{Part::DATA};
  std::vector<Mark> marks_;  // one for every part, and the end
};

}  // namespace moe8
