// SPDX-License-Identifier: BSD-3-Clause
// File access: what is refused, and that a failed write leaves nothing behind.
#include "io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "testing/compare.h"
#include "testing/folder.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using testing::FullDisk;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

TEST(InputFile, ReadsAnywhere) {
  const TemporaryFolder folder;
  const InputFile file("op", folder.write("a", "0123456789"));
  EXPECT_EQ(file.size(), 10);
  char text[4] = {};
  file.read(text, 3, 6);
  EXPECT_STREQ(text, "678");
  EXPECT_THAT(error_of([&] { file.read(text, 3, 8); }),
              HasSubstr("expected 3 bytes at 8, got 2: the file became shorter"));
}

TEST(InputFile, RefusesWhatIsNoFile) {
  const TemporaryFolder folder;
  const auto open = [](const std::string& path) {
    return error_of([&] { InputFile("op", path); });
  };
  EXPECT_EQ(
      open(folder / "none"),
      "[op] " + (folder / "none") + ": expected a readable file, got: No such file or directory");
  EXPECT_THAT(open(folder / ""), HasSubstr("expected a regular file, got a directory"));
  EXPECT_THAT(open("/dev/null"), HasSubstr("expected a regular file, got a device"));
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(open(folder / "pipe"), HasSubstr("expected a regular file, got a pipe"));
  EXPECT_THAT(open(""), HasSubstr("expected a readable file"));
}

TEST(InputFile, RefusesUnreadable) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  const TemporaryFolder folder;
  const std::string path = folder.write("secret", "x");
  fs::permissions(path, fs::perms::none);
  EXPECT_THAT(error_of([&] { InputFile("op", path); }), HasSubstr("Permission denied"));
}

TEST(ReadTextFile, RefusesANulByteByItsPlace) {
  const TemporaryFolder folder;
  EXPECT_EQ(read_text_file("op", folder.write("a", "text\n")), "text\n");
  const std::string path = folder.write("a", std::string_view("text\0more", 9));
  EXPECT_EQ(error_of([&] { read_text_file("op", path); }),
            "[op] " + path + ": expected text, got a NUL byte at byte 4");
  const std::string wide = folder.write("a", std::string_view("t\0e\0", 4));
  EXPECT_THAT(error_of([&] { read_text_file("op", wide); }), HasSubstr("UTF-16? Save it as UTF-8"));
}

TEST(AtomicFile, AppearsOnCommit) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a", "old");
  {
    AtomicFile file("op", path);
    file.write("new ", 4);
    file.write("text", 4);
    EXPECT_EQ(folder.read("a"), "old");
    file.commit();
  }
  EXPECT_EQ(folder.read("a"), "new text");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
}

TEST(AtomicFile, LeavesNothingWhenAbandoned) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a", "old");
  { AtomicFile("op", path).write("new", 3); }
  EXPECT_EQ(folder.read("a"), "old");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
}

TEST(AtomicFile, LeavesNothingOnAFullDisk) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a", "old");
  const std::string megabyte(1 << 20, 'x');
  const std::string error = error_of([&] {
    const FullDisk full;
    AtomicFile("op", path).write(megabyte.data(), megabyte.size());
  });
  EXPECT_THAT(error,
              ::testing::AllOf(HasSubstr(path), HasSubstr("more bytes, got: File too large")));
  EXPECT_EQ(folder.read("a"), "old");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
}

// ---- what is replaced ---------------------------------------------------------
TEST(AtomicFile, ASymbolicLinkStaysOne) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "disk");
  folder.write("disk/target", "old");
  fs::create_symlink("disk/target", folder / "relative");
  fs::create_symlink(folder / "relative", folder / "twice");
  for (const char* link : {"relative", "twice"}) {
    write_file("op", folder / link, link);
    EXPECT_TRUE(fs::is_symlink(folder / link)) << link;
    EXPECT_EQ(folder.read("disk/target"), link);
  }
  fs::create_symlink("disk/new", folder / "dangling");
  write_file("op", folder / "dangling", "text");
  EXPECT_EQ(folder.read("disk/new"), "text");
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"dangling", "disk", "relative", "twice"}));
  fs::create_symlink("loop", folder / "loop");
  EXPECT_THAT(error_of([&] { write_file("op", folder / "loop", ""); }),
              HasSubstr("loop: expected a regular file or a new name, got: Too many levels"));
}

// The umask while it lives.
class Umask {
 public:
  explicit Umask(mode_t mask) : before_(::umask(mask)) {}
  ~Umask() { ::umask(before_); }
  Umask(const Umask&) = delete;
  Umask& operator=(const Umask&) = delete;

 private:
  mode_t before_;
};

TEST(AtomicFile, KeepsThePermissionsOfWhatItReplaces) {
  const TemporaryFolder folder;
  const auto mode = [&](const char* name) {
    return static_cast<int>(fs::status(folder / name).permissions());
  };
  const Umask umask(0027);
  write_file("op", folder / "new", "");
  EXPECT_EQ(mode("new"), 0640);
  for (const int kept : {0600, 0644, 0666, 0400}) {
    folder.write("a", "old");
    fs::permissions(folder / "a", static_cast<fs::perms>(kept));
    write_file("op", folder / "a", "new");
    EXPECT_EQ(mode("a"), kept);
    EXPECT_EQ(folder.read("a"), "new");
  }
}

TEST(AtomicFile, KeepsTheOwnerWhereItMay) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root may give files away";
  const TemporaryFolder folder;
  const std::string path = folder.write("a", "old");
  ASSERT_EQ(::chown(path.c_str(), 65534, 65534), 0);
  write_file("op", path, "new");
  struct stat status {};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, 65534u);
  EXPECT_EQ(status.st_gid, 65534u);
}

TEST(AtomicFile, RefusesWhatItCannotReplace) {
  const TemporaryFolder folder;
  const auto make = [](const std::string& path) {
    return error_of([&] { AtomicFile("op", path); });
  };
  EXPECT_THAT(make(""), HasSubstr("expected a file name"));
  EXPECT_THAT(make(folder / ""), HasSubstr("got a directory"));
  EXPECT_THAT(make("/dev/full"), HasSubstr("expected a regular file or a new name, got a device"));
  EXPECT_THAT(
      make(folder / "none/a"),
      HasSubstr("expected a folder that can be written to, got: No such file or directory"));
  EXPECT_THAT(make("/proc/a"), HasSubstr("expected a folder that can be written to"));
}

TEST(AtomicFolder, AppearsWhenItIsComplete) {
  const TemporaryFolder folder;
  {
    AtomicFolder a("op", folder / "a");
    write_file("op", a.partial() + "/file", "x");
    EXPECT_EQ(folder.names(), std::vector<std::string>{"a.partial"});
    a.commit();
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
  EXPECT_EQ(folder.read("a/file"), "x");
  { AtomicFolder b("op", folder / "b"); }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a"});
}

TEST(AtomicFolder, RemovesWhatAnEarlierProcessLeft) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "a.partial/old");
  AtomicFolder("op", folder / "a").commit();
  EXPECT_TRUE(fs::is_empty(folder / "a"));
}

TEST(Discard, RemovesFilesFoldersAndNothing) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "a/deep");
  fs::create_directories(folder / "a.partial/deep");  // of an earlier attempt
  fs::create_symlink("nowhere", folder / "link");
  folder.write("file", "x");
  for (const char* name : {"a", "link", "file", "none"})
    EXPECT_FALSE(discard(folder / name)) << name;
  EXPECT_EQ(folder.names(), std::vector<std::string>{});
  folder.write("file", "x");
  EXPECT_TRUE(discard(folder / "file/a"));  // not a folder
}

TEST(RemoveLeftovers, RemovesOnlyWhatIsUnfinished) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "a.partial/deep");
  for (const char* name : {".moe8-1-2.tmp", "mine.tmp", ".moe8-notes", "b"})
    folder.write(name, "x");
  remove_leftovers(folder / "");
  EXPECT_EQ(folder.names(), (std::vector<std::string>{".moe8-notes", "b", "mine.tmp"}));
  remove_leftovers(folder / "none");
}

}  // namespace
}  // namespace moe8
