// SPDX-License-Identifier: BSD-3-Clause
#include "train/profile/step_profile.h"

#include <string>

#include "base/plain_text.h"
#include "dist/activity.h"
#include "io/file.h"
#include "train/profile/time_table.h"

namespace moe8 {

void StepProfile::before(int64_t step) {
  step_ = step;
  if (step == kWarmUp) profiler_.emplace(device_, Profiler::Record::KERNELS);
  if (step == kWarmUp + steps_) profiler_.emplace(device_, Profiler::Record::OPERATIONS);
}

bool StepProfile::after(const RunFolder& folder, Progress& progress) {
  const LongWork sorts_and_writes;
  if (step_ == kWarmUp + steps_ - 1) {
    std::string text = to_text(time_table(profiler_->stop(), steps_));
    text += formatted("\nA step before the recording took %.3f ms: recording costs idle time.\n",
                      unrecorded_ms_);
    profiler_.reset();
    write_file("profile", folder.profile(), text);
    progress.say(text);
    return true;
  }
  if (step_ == kWarmUp + steps_) {
    profiler_->stop(folder.trace());
    profiler_.reset();
    progress.say("Trace of a step, for ui.perfetto.dev: " + folder.trace());
    return true;
  }
  return false;
}

}  // namespace moe8
