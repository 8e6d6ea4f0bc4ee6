// SPDX-License-Identifier: BSD-3-Clause
// TensorBoard event files: the numbers of metrics.jsonl as scalars, for people who watch their runs
// there. A file for each process that trains the run; metrics.jsonl stays what moe8 itself reads.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"
#include "moe8/numerics.h"
#include "train/store/metrics.h"

namespace moe8 {

/// A number under a name; "/" parts groups of charts.
struct Scalar {
  std::string tag;
  double value;
};

/// What TensorBoard shows of a step, and of a look at the numerics.
std::vector<Scalar> scalars_of(const StepMetrics& metrics);
std::vector<Scalar> scalars_of(const NumericsReport& report);

class EventFile {
 public:
  /// Makes the folder and in it a file "events.out.tfevents.SECONDS.HOST.PROCESS.NUMBER" that no other
  /// process has. Steps from `first_step` on that files of earlier processes hold count no longer.
  /// @throws c10::Error when it cannot be written.
  EventFile(const std::string& folder, int64_t first_step);
  /// Appends one event, which other programs see at once. @throws c10::Error on a failure to write.
  void write(int64_t step, const std::vector<Scalar>& scalars);

 private:
  void append(std::string_view event);

  std::string path_;
  Descriptor file_;
};

/// A record of an event file: length, data, each followed by its checksum.
std::string event_record(std::string_view data);

}  // namespace moe8
