// SPDX-License-Identifier: BSD-3-Clause
#include "io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <new>
#include <sstream>
#include <system_error>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/log.h"

namespace moe8 {
namespace {

constexpr uint64_t kMaxCall = uint64_t{1} << 30;  // Linux moves at most 2 GiB - 4 KiB a call

constexpr mode_t kPrivate = 0600, kByUmask = 0666;  // permissions of new files

constexpr const char* kTemporaryStart = ".moe8-";  // and the end of files that are being written
constexpr const char* kTemporaryEnd = ".tmp";
constexpr const char* kPartial = ".partial";  // the end of folders that are being filled or removed

std::string reason(int error) {
  return std::generic_category().message(error);
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

std::string folder_of(const std::string& path) {
  const auto folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

// Follows symbolic links to the name that is no link, which need not exist.
std::string target_of(const std::string& path) {
  constexpr int kMaxLinks = 40;  // as the kernel, which has the error for more
  std::filesystem::path target = path;
  for (int i = 0; i < kMaxLinks; ++i) {
    std::error_code no_link;
    const auto next = std::filesystem::read_symlink(target, no_link);
    if (no_link) break;
    target = target.parent_path() / next;  // `next` alone when that is absolute
  }
  return target.string();
}

// What takes the place of a file must not be open to more people than that was. Only root may give
// a file to another user; where the system refuses, the file is the writer's.
void take_over_permissions(const Descriptor& file, const struct stat& replaced) {
  constexpr mode_t kPermissions = 0777;
  constexpr uid_t kSame = -1;
  [[maybe_unused]] const bool done = (::fchown(file.get(), replaced.st_uid, replaced.st_gid) == 0 ||
                                      ::fchown(file.get(), kSame, replaced.st_gid) == 0) &&
                                     ::fchmod(file.get(), replaced.st_mode & kPermissions) == 0;
}

}  // namespace

// ---- Descriptor -------------------------------------------------------------
Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}
Descriptor::Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

// ---- free functions ----------------------------------------------------------
void write_all(const char* op, const std::string& path, const Descriptor& file, const void* bytes,
               uint64_t count) {
  const auto* in = static_cast<const char*>(bytes);
  while (count > 0) {
    const ssize_t done = ::write(file.get(), in, std::min(count, kMaxCall));
    if (done < 0 && errno == EINTR) continue;
    MOE8_CHECK(done >= 0, op, path, "expected to write ", count,
               " more bytes, got: ", reason(errno));
    in += done;
    count -= static_cast<uint64_t>(done);
  }
}

void sync_folder(const std::string& path) {
  const Descriptor folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0 || ::fsync(folder.get()) != 0) {
    log_warning(path + ": the folder could not be flushed: " + reason(errno));
  }
}

std::string read_text_file(const char* op, const std::string& path) {
  std::error_code error;
  const bool regular = std::filesystem::is_regular_file(path, error);
  MOE8_CHECK(regular, op, "file", "expected a readable file, got '", path, "'",
             std::filesystem::exists(path, error) ? ", which is not a regular file"
                                                  : ", which does not exist");
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  MOE8_CHECK(in.good() || in.eof(), op, "file", "expected a readable file, got '", path, "'");
  check_no_nul(op, path, text.view());
  return std::move(text).str();
}

void check_no_nul(const char* op, const std::string& where, std::string_view text) {
  const size_t nul = text.find('\0');
  MOE8_CHECK(nul == std::string_view::npos, op, where, "expected text, got a NUL byte at byte ",
             nul, nul <= 1 ? ". UTF-16? Save it as UTF-8." : "");
}

// ---- InputFile --------------------------------------------------------------
InputFile::InputFile(const char* op, const std::string& path) : op_(op), path_(path) {
  // Without O_NONBLOCK, opening a pipe would wait for a writer.
  fd_ = Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  MOE8_CHECK(fd_.get() >= 0, op_, path_, "expected a readable file, got: ", reason(errno));
  struct stat status {};
  MOE8_CHECK(::fstat(fd_.get(), &status) == 0, op_, path_,
             "expected a readable file, got: ", reason(errno));
  MOE8_CHECK(S_ISREG(status.st_mode), op_, path_, "expected a regular file, got ",
             kind_of(status.st_mode));
  size_ = static_cast<uint64_t>(status.st_size);
}

void InputFile::read(void* to, uint64_t count, uint64_t position) const {
  auto* out = static_cast<char*>(to);
  for (uint64_t done = 0; done < count;) {
    const ssize_t got = ::pread(fd_.get(), out + done, std::min(count - done, kMaxCall),
                                static_cast<off_t>(position + done));
    if (got < 0 && errno == EINTR) continue;
    MOE8_CHECK(got >= 0, op_, path_, "expected ", count, " bytes at ", position,
               ", got: ", reason(errno));
    MOE8_CHECK(got > 0, op_, path_, "expected ", count, " bytes at ", position, ", got ", done,
               ": the file became shorter while it was read");
    done += static_cast<uint64_t>(got);
  }
}

// ---- AtomicFile -------------------------------------------------------------
AtomicFile::AtomicFile(const char* op, const std::string& path)
    : op_(op), path_(path), target_(target_of(path)) {
  MOE8_CHECK(!path.empty(), op_, "path", "expected a file name, got an empty text");
  struct stat replaced {};
  const bool exists = ::stat(path.c_str(), &replaced) == 0;
  MOE8_CHECK(exists || errno != ELOOP, op_, path_,
             "expected a regular file or a new name, got: ", reason(errno));
  // Renaming onto a device as root would replace the device.
  MOE8_CHECK(!exists || S_ISREG(replaced.st_mode), op_, path_,
             "expected a regular file or a new name, got ", kind_of(replaced.st_mode));

  static std::atomic<uint64_t> counter{0};
  do {
    temporary_ = folder_of(target_) + "/" + kTemporaryStart + std::to_string(::getpid()) + "-" +
                 std::to_string(counter++) + kTemporaryEnd;
    fd_ = Descriptor(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
                            exists ? kPrivate : kByUmask));
  } while (fd_.get() < 0 && errno == EEXIST);
  if (fd_.get() < 0) {
    const int error = errno;
    temporary_.clear();
    fail(op_, path_, "expected a folder that can be written to, got: " + reason(error));
  }
  if (exists) take_over_permissions(fd_, replaced);
}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* bytes, uint64_t count) {
  write_all(op_, path_, fd_, bytes, count);
}

void AtomicFile::commit() {
  MOE8_CHECK(::fsync(fd_.get()) == 0, op_, path_,
             "expected to flush the file, got: ", reason(errno));
  MOE8_CHECK(::rename(temporary_.c_str(), target_.c_str()) == 0, op_, path_,
             "expected to rename the finished file, got: ", reason(errno));
  temporary_.clear();
  sync_folder(folder_of(target_));
}

void write_file(const char* op, const std::string& path, std::string_view bytes) {
  AtomicFile file(op, path);
  file.write(bytes.data(), bytes.size());
  file.commit();
}

// ---- AtomicFolder -----------------------------------------------------------
std::string AtomicFolder::partial_of(const std::string& path) {
  return path + kPartial;
}

AtomicFolder::AtomicFolder(const char* op, const std::string& path)
    : op_(op), path_(path), partial_(partial_of(path)) {
  std::error_code error;
  std::filesystem::remove_all(partial_, error);
  if (!error) std::filesystem::create_directory(partial_, error);
  MOE8_CHECK(!error, op_, path_, "expected to make a folder, got: ", error.message());
}

AtomicFolder::~AtomicFolder() {
  if (committed_) return;
  try {
    std::error_code ignored;
    std::filesystem::remove_all(partial_, ignored);
  } catch (const std::bad_alloc&) {  // an error_code does not stand for this
    // The next start removes it: remove_leftovers().
  }
}

void AtomicFolder::commit() {
  sync_folder(partial_);
  MOE8_CHECK(::rename(partial_.c_str(), path_.c_str()) == 0, op_, path_,
             "expected to rename the finished folder, got: ", reason(errno));
  committed_ = true;
  sync_folder(folder_of(path_));
}

// ---- removing ---------------------------------------------------------------
std::error_code discard(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const std::string partial = path + kPartial;
  fs::remove_all(partial, error);  // a folder cannot be renamed onto one that is not empty
  if (error) return error;
  fs::rename(path, partial, error);
  if (error == std::errc::no_such_file_or_directory) return {};
  if (!error) fs::remove_all(partial, error);
  return error;
}

void remove_leftovers(const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::vector<fs::path> leftovers;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename();
    const bool file = name.starts_with(kTemporaryStart) && name.ends_with(kTemporaryEnd);
    if (file || name.ends_with(kPartial)) leftovers.push_back(it->path());
  }
  for (const fs::path& path : leftovers) {
    fs::remove_all(path, error);
    if (error) log_warning(path.string() + ": a leftover could not be removed: " + error.message());
  }
}

}  // namespace moe8
