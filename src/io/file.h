// SPDX-License-Identifier: BSD-3-Clause
// Files with errors for people: reading, and writing that never leaves half a file behind.
// `op` is the name that errors start with; it must outlive the object (a string literal).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>

namespace moe8 {

/// Owns a file descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  int get() const { return fd_; }

 private:
  int fd_;
};

/// Writes everything, however many calls it takes. @throws c10::Error naming `path`.
void write_all(const char* op, const std::string& path, const Descriptor& file, const void* bytes,
               uint64_t count);

/// Waits until the disk knows the names in a folder. Warns where that fails: the files are whole,
/// what can be lost in a power cut is a name.
void sync_folder(const std::string& path);

/// A regular file opened for reading at any position; reads may come from several threads.
class InputFile {
 public:
  /// @throws c10::Error when the file is missing, unreadable or not a regular file.
  InputFile(const char* op, const std::string& path);

  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }
  int descriptor() const { return fd_.get(); }
  /// @throws c10::Error when the bytes cannot be read or the file ends before them.
  void read(void* to, uint64_t count, uint64_t position) const;

 private:
  const char* op_;
  std::string path_;
  Descriptor fd_;
  uint64_t size_ = 0;
};

/// The text of a regular file. @throws c10::Error "[op] file: expected ...", also on a NUL byte:
/// parsers take one for the end of the text and would leave the rest unread.
std::string read_text_file(const char* op, const std::string& path);

/// The same for text that came from elsewhere. @throws c10::Error "[op] where: expected text ...".
void check_no_nul(const char* op, const std::string& where, std::string_view text);

/// A file that appears under its name only when it is complete: written beside it, then renamed.
/// Until commit() returns, a file of that name stays as it was; the destructor removes what was
/// written. A symbolic link stays one: its target is replaced. The new file has the permissions of
/// the one that it replaces, and its owner where the system allows; else what the umask leaves.
class AtomicFile {
 public:
  /// @throws c10::Error when the folder is missing or cannot be written to, or when the name
  /// belongs to something other than a regular file.
  AtomicFile(const char* op, const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* bytes, uint64_t count);
  /// Flushes to the disk and takes the name.
  void commit();

 private:
  const char* op_;
  std::string path_;       // as the caller wrote it, for messages
  std::string target_;     // where links lead from there
  std::string temporary_;  // empty: there is nothing to remove
  Descriptor fd_;
};

/// Writes a whole file at once, through AtomicFile.
void write_file(const char* op, const std::string& path, std::string_view bytes);

/// A folder that appears under its name only when it is complete: filled beside it under the name
/// PATH.partial, then renamed. The destructor removes what was not committed.
class AtomicFolder {
 public:
  /// Removes what an earlier process left unfinished.
  /// @throws c10::Error when the folder cannot be made.
  AtomicFolder(const char* op, const std::string& path);
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  /// The name under which a folder is filled, for other processes that help with it.
  static std::string partial_of(const std::string& path);
  /// Where the files go; each must be on the disk before commit() (AtomicFile::commit sees to it).
  const std::string& partial() const { return partial_; }
  /// Takes the name. @throws c10::Error when it belongs to a file or a folder that is not empty.
  void commit();

 private:
  const char* op_;
  std::string path_;
  std::string partial_;
  bool committed_ = false;
};

/// Removes a file or a whole folder such that no half of a folder is ever seen under its name.
/// Nothing there is no error.
std::error_code discard(const std::string& path);

/// Removes from a folder what AtomicFile, AtomicFolder and discard() of a killed process left. Only
/// for a folder that no other process uses. Failures are warnings.
void remove_leftovers(const std::string& folder);

}  // namespace moe8
