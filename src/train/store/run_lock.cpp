// SPDX-License-Identifier: BSD-3-Clause
// flock(2) on a file that holds the number of the process.
#include "train/store/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "base/check.h"
#include "base/plain_text.h"

namespace moe8 {
namespace {

constexpr const char* kRunLock = "train";

std::string holder(const Descriptor& file) {
  char text[32] = {};
  const ssize_t got = ::pread(file.get(), text, sizeof text - 1, 0);
  return got > 0 ? concat(" (process ", text, ")") : "";
}

}  // namespace

RunLock::RunLock(const std::string& path)
    : fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
  const std::string folder = std::filesystem::path(path).parent_path();
  MOE8_CHECK(fd_.get() >= 0, kRunLock, "output.folder",
             "expected a folder that can be written to, got '", folder,
             "': ", std::generic_category().message(errno));
  if (::flock(fd_.get(), LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    MOE8_CHECK(error != EWOULDBLOCK, kRunLock, "output.folder", "expected no other run in '",
               folder, "', but one is going on", holder(fd_));
    fail(kRunLock, path, "cannot be locked: " + std::generic_category().message(error));
  }
  // Only for the message above, so a failure to write it does not matter.
  const std::string process = std::to_string(::getpid());
  if (::ftruncate(fd_.get(), 0) == 0) {
    [[maybe_unused]] const ssize_t written = ::pwrite(fd_.get(), process.data(), process.size(), 0);
  }
}

}  // namespace moe8
