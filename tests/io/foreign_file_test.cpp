// SPDX-License-Identifier: BSD-3-Clause
// What other files are called in messages, and that text is not taken for what it is not.
#include "io/foreign_file.h"

#include "testing/compare.h"
#include "testing/folder.h"

namespace moe8 {
namespace {

using ::testing::HasSubstr;
using testing::TemporaryFolder;

std::string kind(std::string_view bytes) {
  return foreign_kind(bytes).value_or("unknown");
}

TEST(ForeignFile, IsCalledByItsKind) {
  EXPECT_THAT(kind("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"),
              HasSubstr("a Git LFS pointer. The file itself was not downloaded: run git lfs pull"));
  EXPECT_THAT(kind("<!DOCTYPE html>\n<html>"), HasSubstr("an HTML page"));
  EXPECT_THAT(kind("\xEF\xBB\xBF\r\n <HTML lang=en>"), HasSubstr("an HTML page"));
  EXPECT_THAT(kind(std::string_view("PK\x03\x04\x14\0", 6)), HasSubstr("a zip archive, as torch."));
  EXPECT_THAT(kind("\x80\x02}q"), HasSubstr("a Python pickle"));
  EXPECT_THAT(kind("\x1F\x8B\x08"), HasSubstr("a gzip file. Unpack it"));
  EXPECT_THAT(kind("GGUF\x03"), HasSubstr("a GGUF file"));
  for (const char* other : {"", " ", "version 2", "PK", "<svg", "text"}) {
    EXPECT_EQ(kind(other), "unknown") << other;
  }
}

TEST(ForeignFile, AnIndexNamesItsFiles) {
  const TemporaryFolder folder;
  const auto kind_of = [&](const std::string& text) {
    return foreign_kind(InputFile("op", folder.write("a.json", text))).value_or("unknown");
  };
  EXPECT_EQ(kind_of(R"({"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors",
                                       "c": "m-2.safetensors", "d": 5}})"),
            "the index of a model in several files. Pass these instead: m-1.safetensors, "
            "m-2.safetensors");
  std::string many = R"({"weight_map": {"a": "0")";
  for (int i = 100; i < 130; ++i)
    many += ", \"" + std::to_string(i) + "\": \"" + std::to_string(i) + "\"";
  EXPECT_THAT(kind_of(many + "}}"), HasSubstr("118 and 11 more"));
  EXPECT_EQ(kind_of(R"({"weight_map": 5})"), "a JSON file");
  EXPECT_EQ(kind_of("{}"), "a JSON file");
  EXPECT_EQ(kind_of("{not JSON"), "unknown");
}

TEST(ForeignFile, ADirectoryNamesItsFiles) {
  const TemporaryFolder folder;
  EXPECT_EQ(directory_kind(folder / ""), "a directory without such files");
  for (const char* name : {"b.safetensors", "a.safetensors", "config.json"}) folder.write(name, "");
  EXPECT_EQ(directory_kind(folder / ""),
            "a directory. Pass its files instead: a.safetensors, b.safetensors");
}

std::string in_pairs(const std::string& text, bool little) {
  std::string bytes;
  for (const char c : text) bytes += little ? std::string{c, '\0'} : std::string{'\0', c};
  return bytes;
}

TEST(WideEncoding, IsKnownByItsMarkAndByItsNulBytes) {
  const std::string text = "the cat sat on the mat\r\n";
  EXPECT_EQ(wide_encoding("\xFF\xFE" + in_pairs("hi", true)), "UTF-16");
  EXPECT_EQ(wide_encoding("\xFE\xFF" + in_pairs("hi", false)), "UTF-16");
  EXPECT_EQ(wide_encoding(std::string_view("\xFF\xFE\0\0h\0\0\0", 8)), "UTF-32");
  EXPECT_EQ(wide_encoding(in_pairs(text, true)), "UTF-16LE");
  EXPECT_EQ(wide_encoding(in_pairs(text, false)), "UTF-16BE");
}

TEST(WideEncoding, OtherBytesAreNotTakenForIt) {
  EXPECT_FALSE(wide_encoding(""));
  EXPECT_FALSE(wide_encoding("the cat sat on the mat, and the dog lay on the log"));
  EXPECT_FALSE(wide_encoding(std::string(1000, '\0')));
  EXPECT_FALSE(wide_encoding(std::string("\xFF\0\x80\n", 4)));
  EXPECT_FALSE(wide_encoding("caf\xE9, in Latin-1, and more text than a few bytes"));
  std::string numbers;  // 16 bits each, most of them no letters
  for (int i = 0; i < 100; ++i) numbers += {static_cast<char>(i), '\0'};
  EXPECT_FALSE(wide_encoding(numbers));
}

}  // namespace
}  // namespace moe8
