// SPDX-License-Identifier: BSD-3-Clause
// Signals that ask a run to stop.
#pragma once

namespace moe8 {

/// While it lives, SIGINT, SIGTERM and SIGHUP are noted instead of ending the process, so that a
/// run can save itself; the second of them ends it at once with exit status 128 + signal. So does
/// the first one while wait() says that nothing would be lost, as it does at the beginning, and a
/// run that does not come to the end of its step in time. Signals that the process was started to
/// ignore (nohup) stay ignored. SIGXFSZ and SIGPIPE are ignored, so that a file that may not grow
/// and a closed terminal are errors of a write, not the end. SIGALRM is taken. At most one at a
/// time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  /// From now on a signal waits so many seconds for received() to be asked, then ends the process;
  /// with 0 at once.
  static void wait(double seconds);

  /// The number of the first signal, 0 when none came. Who asks has all the time to end by itself.
  static int received();
};

}  // namespace moe8
