// SPDX-License-Identifier: BSD-3-Clause
// One run a folder.
#pragma once

#include <string>

#include "io/file.h"

namespace moe8 {

/// Holds a lock on a file while it lives. The kernel drops the lock with the process, however that
/// ends, so no stale one is ever left; the file itself stays and means nothing.
class RunLock {
 public:
  /// @throws c10::Error when another process or another RunLock holds it, or the file cannot be
  /// made.
  explicit RunLock(const std::string& path);

 private:
  Descriptor fd_;
};

}  // namespace moe8
