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

TEST(MappedFile, SeesTheBytes) {
  const TemporaryFolder folder;
  MappedFile first("op", folder.write("a", "abc"));
  const MappedFile moved(std::move(first));
  ASSERT_EQ(moved.bytes().size(), 3);
  EXPECT_EQ(moved.bytes()[2], 'c');
  EXPECT_TRUE(first.bytes().empty());  // NOLINT: moved-from is empty by contract
  EXPECT_TRUE(MappedFile("op", folder.write("empty", "")).bytes().empty());
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
