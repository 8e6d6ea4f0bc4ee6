// SPDX-License-Identifier: BSD-3-Clause
// Signals that ask a run to stop.
#pragma once

namespace moe8 {

/// While it lives, SIGINT, SIGTERM and SIGHUP are noted instead of ending the process, so that a
/// run can save itself; the second of them ends it at once with exit status 128 + signal. Signals
/// that the process was started to ignore (nohup) stay ignored. SIGXFSZ and SIGPIPE are ignored, so
/// that a file that may not grow and a closed terminal are errors of a write, not the end. At most
/// one at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  /// The number of the first signal, 0 when none came.
  static int received();
};

}  // namespace moe8
