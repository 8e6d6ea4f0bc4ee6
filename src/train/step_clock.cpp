// SPDX-License-Identifier: BSD-3-Clause
#include "train/step_clock.h"

#include <c10/core/impl/VirtualGuardImpl.h>

namespace moe8 {

StepClock::StepClock(const c10::Device& device, const StepClock* before) : device_(device) {
  if (before) {
    marks_.push_back(before->marks_.back());
  } else {
    mark();
  }
}

void StepClock::mark() {
  Mark& mark = marks_.emplace_back();
  mark.time = Clock::now();
  if (device_.is_cpu()) return;
  mark.event = std::make_shared<c10::Event>(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
  mark.event->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
}

double StepClock::seconds(const Mark& from, const Mark& to) {
  if (!from.event) return std::chrono::duration<double>(to.time - from.time).count();
  to.event->synchronize();
  return 1e-3 * from.event->elapsedTime(*to.event);
}

double StepClock::seconds() const {
  return seconds(marks_.front(), marks_.back());
}

PartTimes StepClock::parts() const {
  PartTimes times;
  double* const of_part[] = {&times.data, &times.forward, &times.backward, &times.optimizer};
  for (size_t i = 0; i < parts_.size(); ++i) {
    *of_part[static_cast<size_t>(parts_[i])] += 1e3 * seconds(marks_[i], marks_[i + 1]);
  }
  return times;
}

}  // namespace moe8
