// SPDX-License-Identifier: BSD-3-Clause
// safetensors: round trips, a file of the reference implementation, hostile headers, failed writes.
#include "moe8/safetensors.h"

#include <torch/torch.h>

#include <random>

#include "testing/compare.h"
#include "testing/folder.h"
#include "testing/locale.h"

namespace moe8 {
namespace {

using ::testing::ElementsAre;
using testing::error_of;
using testing::FullDisk;
using ::testing::HasSubstr;
using testing::same_bits;
using testing::TemporaryFolder;

using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

std::string length_bytes(uint64_t length) {
  return {reinterpret_cast<const char*>(&length), sizeof length};
}

std::string file_of(const std::string& header, const std::string& data = "") {
  return length_bytes(header.size()) + header + data;
}

// Written by the Python package safetensors 0.8.0.
std::string reference_file() {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
      R"("none":{"dtype":"F32","shape":[0,3],"data_offsets":[8,8]},)"
      R"("w":{"dtype":"BF16","shape":[2,2],"data_offsets":[8,16]},)"
      R"("s":{"dtype":"F8_E8M0","shape":[3],"data_offsets":[16,19]},)"
      R"("flag":{"dtype":"BOOL","shape":[3],"data_offsets":[19,22]}}   )";
  const std::string data("\x07\0\0\0\0\0\0\0\x80?\0\xc0\0?@@\0\x7f\xfe\x01\0\x01", 22);
  return file_of(header, data);
}

at::Tensor bytes(at::IntArrayRef shape, uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  return torch::randint(0, 256, shape, generator, at::kByte);
}

// same_bits for dtypes that few operations know.
::testing::AssertionResult same_bytes(const at::Tensor& expected, const at::Tensor& got) {
  if (expected.scalar_type() != got.scalar_type() || expected.sizes() != got.sizes()) {
    return ::testing::AssertionFailure() << "expected " << expected.toString() << expected.sizes()
                                         << ", got " << got.toString() << got.sizes();
  }
  const auto raw = [](const at::Tensor& x) {
    const at::Tensor dense = x.contiguous();
    return std::string(static_cast<const char*>(dense.const_data_ptr()), dense.nbytes());
  };
  if (raw(expected) != raw(got)) return ::testing::AssertionFailure() << "the bytes differ";
  return ::testing::AssertionSuccess();
}

class Safetensors : public ::testing::Test {
 protected:
  std::string path() const { return folder_ / "a.safetensors"; }
  std::string load_error(const std::string& file) const {
    folder_.write("a.safetensors", file);
    return error_of([&] { load_safetensors(path()); });
  }
  std::string save_error(const Tensors& tensors,
                         const std::map<std::string, std::string>& metadata = {}) const {
    return error_of([&] { save_safetensors(path(), tensors, metadata); });
  }

  TemporaryFolder folder_;
};

// ---- round trips ------------------------------------------------------------
TEST_F(Safetensors, KeepsEveryDtype) {
  const std::pair<at::ScalarType, std::string> dtypes[] = {{at::kByte, "U8"},
                                                           {at::kChar, "I8"},
                                                           {at::kUInt16, "U16"},
                                                           {at::kShort, "I16"},
                                                           {at::kUInt32, "U32"},
                                                           {at::kInt, "I32"},
                                                           {at::kUInt64, "U64"},
                                                           {at::kLong, "I64"},
                                                           {at::kHalf, "F16"},
                                                           {at::kBFloat16, "BF16"},
                                                           {at::kFloat, "F32"},
                                                           {at::kDouble, "F64"},
                                                           {at::kComplexFloat, "C64"},
                                                           {at::kFloat8_e4m3fn, "F8_E4M3"},
                                                           {at::kFloat8_e4m3fnuz, "F8_E4M3FNUZ"},
                                                           {at::kFloat8_e5m2, "F8_E5M2"},
                                                           {at::kFloat8_e5m2fnuz, "F8_E5M2FNUZ"},
                                                           {at::kFloat8_e8m0fnu, "F8_E8M0"},
                                                           {at::kFloat4_e2m1fn_x2, "F4"}};
  Tensors tensors{{"BOOL", bytes({5, 3}, 1) > 127}};
  for (const auto& [dtype, name] : dtypes) {
    tensors.emplace_back(
        name, bytes({5, 3 * static_cast<int64_t>(c10::elementSize(dtype))}, 2).view(dtype));
  }
  save_safetensors(path(), tensors);

  const SafetensorsReader reader(path());
  EXPECT_EQ(reader.entries().size(), tensors.size());
  for (const SafetensorsEntry& entry : reader.entries()) EXPECT_EQ(entry.dtype, entry.name);
  for (const auto& [name, tensor] : tensors) {
    EXPECT_TRUE(same_bytes(tensor, reader.tensor(name))) << name;
  }
}

TEST_F(Safetensors, KeepsShapesAndValuesOfViews) {
  const at::Tensor base = torch::arange(60, at::kFloat).view({3, 4, 5});
  const at::Tensor codes = bytes({4, 6}, 3).view(at::kFloat4_e2m1fn_x2);
  const Tensors tensors{{"transposed", base.transpose(0, 2)},
                        {"strided", base.slice(2, 0, 5, 2)},
                        {"expanded", torch::ones({1, 3}).expand({4, 3})},
                        {"packed", codes.transpose(0, 1)},
                        {"conjugated", torch::view_as_complex(base.view({3, 10, 2})).conj()},
                        {"scalar", torch::tensor(2.5)},
                        {"empty", torch::empty({2, 0, 3}, at::kBFloat16)},
                        {"nothing", torch::empty({0})},
                        {"parameter", torch::ones({2, 2}).set_requires_grad(true)}};
  save_safetensors(path(), tensors);
  const auto loaded = load_safetensors(path());
  ASSERT_EQ(loaded.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    if (name == "packed") {
      EXPECT_TRUE(same_bytes(tensor.view(at::kByte).contiguous(), loaded.at(name).view(at::kByte)));
    } else if (name == "conjugated") {
      EXPECT_TRUE(tensor.equal(loaded.at(name)));
    } else {
      EXPECT_TRUE(same_bytes(tensor, loaded.at(name))) << name;
    }
    EXPECT_FALSE(loaded.at(name).requires_grad());
  }
}

TEST_F(Safetensors, AlignsAndRepeats) {
  const Tensors tensors{{"odd", torch::ones({3}, at::kByte)},
                        {"wide", torch::ones({2}, at::kDouble)},
                        {"half", torch::ones({5}, at::kHalf)},
                        {"first", torch::ones({1}, at::kByte)}};
  save_safetensors(path(), tensors, {{"b", "2"}, {"a", "1"}});
  const std::string once = folder_.read("a.safetensors");
  save_safetensors(path(), tensors, {{"a", "1"}, {"b", "2"}});
  EXPECT_EQ(once, folder_.read("a.safetensors"));

  const SafetensorsReader reader(path());
  EXPECT_THAT(reader.metadata(), ElementsAre(::testing::Pair("a", "1"), ::testing::Pair("b", "2")));
  std::vector<std::string> names;
  for (const SafetensorsEntry& entry : reader.entries()) {
    names.push_back(entry.name);
    EXPECT_EQ(entry.begin % reader.tensor(entry.name).element_size(), 0) << entry.name;
  }
  EXPECT_THAT(names, ElementsAre("wide", "half", "odd", "first"));
  uint64_t header = 0;
  std::memcpy(&header, once.data(), sizeof header);
  EXPECT_EQ(header % 8, 0);
}

TEST_F(Safetensors, TheBytesAreTheSameInEveryLocale) {
  const Tensors tensors{{"a", torch::zeros({4000, 3})}, {"b", torch::ones({12345})}};
  save_safetensors(path(), tensors);
  const std::string plain = folder_.read("a.safetensors");
  EXPECT_THAT(plain, HasSubstr(R"("shape":[4000,3],"data_offsets":[0,48000])"));
  const testing::GermanStreams german;
  save_safetensors(path(), tensors);
  EXPECT_EQ(folder_.read("a.safetensors"), plain);
  EXPECT_TRUE(same_bits(tensors[0].second, load_safetensors(path()).at("a")));
}

TEST_F(Safetensors, WritesNoTensorsAndAnyName) {
  save_safetensors(path(), {});
  EXPECT_TRUE(load_safetensors(path()).empty());
  const std::string odd = "\"quoted\"\n\u00fc\U0001F600 \\";
  save_safetensors(path(), {{odd, torch::ones({1})}, {"", torch::zeros({1})}}, {{odd, odd}});
  const SafetensorsReader reader(path());
  EXPECT_TRUE(reader.contains(odd));
  EXPECT_TRUE(reader.contains(""));
  EXPECT_EQ(reader.metadata().at(odd), odd);
}

TEST_F(Safetensors, ReadsTheReferenceImplementation) {
  folder_.write("a.safetensors", reference_file());
  SafetensorsReader other(path());
  const SafetensorsReader reader(std::move(other));
  EXPECT_EQ(reader.metadata().at("format"), "pt");
  EXPECT_TRUE(
      same_bits(torch::tensor({{1.0, -2.0}, {0.5, 3.0}}, at::kBFloat16), reader.tensor("w")));
  EXPECT_EQ(reader.tensor("n").dim(), 0);
  EXPECT_EQ(reader.tensor("n").item<int64_t>(), 7);
  EXPECT_TRUE(same_bits(torch::tensor({true, false, true}), reader.tensor("flag")));
  EXPECT_TRUE(same_bits(torch::empty({0, 3}), reader.tensor("none")));
  EXPECT_TRUE(same_bits(torch::tensor({0, 127, 254}, at::kByte).view(at::kFloat8_e8m0fnu),
                        reader.tensor("s")));
}

TEST_F(Safetensors, ReadsRowsIntoMemoryThatIsThere) {
  const at::Tensor w = torch::randn({5, 3, 2}), one = torch::full({}, 7.0f);
  save_safetensors(path(), {{"w", w}, {"one", one}, {"none", torch::ones({0, 3})}});
  const SafetensorsReader reader(path());
  for (int64_t first = 0; first <= 5; ++first) {
    for (int64_t count = 0; first + count <= 5; ++count) {
      const at::Tensor around = at::full({7, 3, 2}, NAN);
      reader.read_rows("w", first, around.narrow(0, 1, count));
      EXPECT_TRUE(same_bits(w.narrow(0, first, count), around.narrow(0, 1, count)));
      EXPECT_EQ(at::isnan(around).sum().item<int64_t>(), 6 * (7 - count));  // nothing beside it
    }
  }
  const at::Tensor scalar = at::full({}, NAN), none = at::empty({0, 3});
  reader.read_rows("one", 0, scalar);
  EXPECT_EQ(scalar.item<float>(), 7);
  const auto version = none._version();
  reader.read_rows("none", 0, none);
  EXPECT_GT(none._version(), version);
}

TEST_F(Safetensors, RefusesMemoryThatRowsDoNotFit) {
  save_safetensors(path(), {{"w", torch::randn({5, 3})}});
  const SafetensorsReader reader(path());
  const auto error = [&](int64_t first, const at::Tensor& out) {
    return error_of([&] { reader.read_rows("w", first, out); });
  };
  EXPECT_THAT(error(0, at::empty({6, 3})), HasSubstr("expected rows of [5, 3], got [6, 3] from 0"));
  EXPECT_THAT(error(4, at::empty({2, 3})), HasSubstr("expected rows of [5, 3]"));
  EXPECT_THAT(error(-1, at::empty({2, 3})), HasSubstr("expected rows of [5, 3]"));
  EXPECT_THAT(error(INT64_MAX, at::empty({2, 3})), HasSubstr("expected rows of [5, 3]"));
  EXPECT_THAT(error(0, at::empty({3, 5})), HasSubstr("expected rows of [5, 3]"));
  EXPECT_THAT(error(0, at::empty({5})), HasSubstr("expected rows of [5, 3]"));
  EXPECT_THAT(error(0, at::empty({5, 3}, at::kBFloat16)),
              HasSubstr("expected contiguous memory of the CPU for Float, got CPUBFloat16Type"));
  EXPECT_THAT(error(0, at::empty({3, 5}).t()), HasSubstr("expected contiguous memory"));
  EXPECT_THAT(error(0, at::Tensor()), HasSubstr("got an undefined tensor"));
}

TEST_F(Safetensors, ListsNearestNames) {
  save_safetensors(path(), {{"layers.0.w1", torch::ones({1})}, {"output", torch::ones({1})}});
  const SafetensorsReader reader(path());
  EXPECT_THAT(error_of([&] { reader.tensor("layers.0.w2"); }),
              HasSubstr("a.safetensors: expected one of its 2 tensors, got \"layers.0.w2\". "
                        "Nearest: \"layers.0.w1\""));
}

// ---- what is no such file ------------------------------------------------------
TEST_F(Safetensors, SaysWhatOtherFilesAre) {
  const auto expected = [&](const std::string& kind) {
    return HasSubstr("[load_safetensors] " + path() + ": expected a safetensors file, got " + kind);
  };
  EXPECT_THAT(
      load_error("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
      expected("a Git LFS pointer. "));
  EXPECT_THAT(load_error("<!DOCTYPE html>\n<html></html>\n"), expected("an HTML page. "));
  EXPECT_THAT(load_error("PK\x03\x04 and the rest of an archive"), expected("a zip archive"));
  EXPECT_THAT(
      load_error(R"({"metadata": {}, "weight_map": {"w": "model-1.safetensors"}})"),
      expected("the index of a model in several files. Pass these instead: model-1.safetensors"));
  EXPECT_THAT(load_error("some text, longer than a few bytes"), HasSubstr("Is this a safetensors"));
  EXPECT_THAT(error_of([&] { load_safetensors(folder_ / ""); }),
              HasSubstr("expected a safetensors file, got a directory. Pass its files instead: "
                        "a.safetensors"));
}

TEST_F(Safetensors, ANulByteDoesNotEndTheHeader) {
  const std::string header = R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  EXPECT_EQ(load_error(file_of(header + "  ", "x")), "(no error)");
  for (const std::string& rest : {std::string(1, '\0'), std::string("\0, anything", 11)}) {
    EXPECT_THAT(load_error(file_of(header + rest, "x")),
                HasSubstr("expected a header in JSON, got a NUL byte at byte " +
                          std::to_string(header.size()) + " of it"));
  }
}

TEST_F(Safetensors, OpensDtypesWithoutTensors) {
  folder_.write("a.safetensors",
                file_of(R"({"six":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]},)"
                        R"("four":{"dtype":"F4","shape":[2,1],"data_offsets":[3,4]}})",
                        "abcd"));
  const SafetensorsReader reader(path());
  EXPECT_THAT(reader.entries()[0].shape, ElementsAre(4));
  EXPECT_THAT(error_of([&] { reader.tensor("six"); }),
              HasSubstr("\"six\": expected a dtype that LibTorch has, got F6_E2M3"));
  EXPECT_THAT(error_of([&] { reader.tensor("four"); }),
              HasSubstr("multiple of 2 for F4, got shape [2, 1]"));
}

// ---- hostile files ----------------------------------------------------------
std::string tensor_header(const std::string& dtype, const std::string& shape,
                          const std::string& offsets) {
  return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

struct Hostile {
  std::string file;
  std::string message;
};

TEST_F(Safetensors, RefusesBrokenLengths) {
  const Hostile table[] = {
      {"", "expected at least 8 bytes, got 0"},
      {"1234567", "expected at least 8 bytes, got 7"},
      {length_bytes(0), "expected a header that starts with {, got an empty one"},
      {length_bytes(3) + "{}",
       "expected a header of 3 bytes, got a file of 10 bytes. Is the file cut off?"},
      {length_bytes(100000001) + "{}",
       "expected a header of at most 100000000 bytes, got 100000001"},
      {length_bytes(~uint64_t{0}) + "{}", "got 18446744073709551615"},
      {length_bytes(~uint64_t{0} - 7) + "{}", "expected a header of at most 100000000 bytes"},
      {"PK\x05\x06 this is no kind of file", "Is this a safetensors file?"}};
  for (const Hostile& one : table) EXPECT_THAT(load_error(one.file), HasSubstr(one.message));
}

TEST_F(Safetensors, RefusesBrokenJson) {
  const std::string name_with_nul("{\"a\0b\":1}", 9);
  const Hostile table[] = {
      {" {}", "starts with {, got \" {}\""},
      {"\xef\xbb\xbf{}", "starts with {"},
      {"[]", "starts with {, got \"[]\""},
      {"{", "expected a header in JSON, got an error at byte 2"},
      {"{}{}", "got an error at byte 3"},
      {"{} x", "got an error at byte 4"},
      {"{'a':1}", "got an error at byte 2"},
      {R"({"a")", "got an error at byte 5"},
      {"{} // comment", "got an error"},
      {"{\"\xff\":{}}", "ill-formed UTF-8 byte"},
      {"{\"\xc0\xaf\":{}}", "ill-formed UTF-8 byte"},
      {"{\"\\ud800\":{}}", "surrogate"},
      {name_with_nul, "got a NUL byte at byte 3 of it"},
      {R"({"a":1e999})", "number overflow"},
      {R"({"a":)" + std::string(100000, '['), "\"a\": expected an object, got an array"},
      {R"({"a":{"shape":)" + std::string(100000, '['), "as shape, got an array"},
      {std::string(R"({"a":{"dtype":)") + R"({"a":)" + std::string(100000, '{'),
       "as dtype, got an object"}};
  for (const Hostile& one : table)
    EXPECT_THAT(load_error(file_of(one.file)), HasSubstr(one.message));
}

TEST_F(Safetensors, RefusesWrongFields) {
  const Hostile table[] = {
      {R"({"a":1})", "tensor \"a\": expected an object, got 1"},
      {R"({"a":null})", "tensor \"a\": expected an object, got null"},
      {R"({"a":"x"})", "tensor \"a\": expected an object, got \"x\""},
      {R"({"a":{}})", "got no dtype"},
      {R"({"a":{"dtype":"U8","data_offsets":[0,4]}})", "got no shape"},
      {R"({"a":{"dtype":"U8","shape":[4]}})", "got no data_offsets"},
      {R"({"a":{"dtype":"U8","color":1}})",
       "expected dtype, shape and data_offsets, got \"color\""},
      {R"({"a":{"dtype":"U8","dtype":"I8"}})", "expected unique fields, got dtype twice"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}})",
       "expected unique names, got \"a\" twice"},
      {R"({"__metadata__":{},"__metadata__":{}})",
       "expected unique names, got \"__metadata__\" twice"},
      {R"({"__metadata__":{"k":"1","k":"2"}})",
       "__metadata__: expected unique keys, got \"k\" twice"},
      {R"({"__metadata__":{"k":1}})", "__metadata__ \"k\": expected a string, got 1"},
      {R"({"__metadata__":{"k":{}}})", "__metadata__ \"k\": expected a string, got an object"},
      {R"({"__metadata__":[]})", "__metadata__: expected an object, got an array"},
      {R"({"__metadata__":null})", "__metadata__: expected an object, got null"},
      {tensor_header("8", "[4]", "[0,4]"), "expected a string as dtype, got 8"},
      {tensor_header("true", "[4]", "[0,4]"), "expected a string as dtype, got true"},
      {tensor_header(R"("u8")", "[4]", "[0,4]"), "expected a dtype of BOOL, U8"},
      {tensor_header(R"("Q\n8")", "[4]", "[0,4]"), R"(got "Q\n8")"},
      {tensor_header(R"("U8")", "4", "[0,4]"), "as shape, got 4"},
      {tensor_header(R"("U8")", R"(["4"])", "[0,4]"), "as shape, got \"4\""},
      {tensor_header(R"("U8")", "[4.0]", "[0,4]"), "as shape, got 4.0"},
      {tensor_header(R"("U8")", "[-4]", "[0,4]"), "as shape, got -4"},
      {tensor_header(R"("U8")", "[[4]]", "[0,4]"), "as shape, got an array"},
      {tensor_header(R"("U8")", "[9223372036854775808]", "[0,4]"),
       "as shape, got 9223372036854775808"},
      {tensor_header(R"("U8")", "[99999999999999999999]", "[0,4]"),
       "as shape, got 99999999999999999999"},
      {tensor_header(R"("U8")", "[4" + std::string(128, ' ') + "]", R"({"a":1})"),
       "as data_offsets, got an object"},
      {tensor_header(R"("U8")", "[4]", "[0]"), "expected two integers as data_offsets, got 1"},
      {tensor_header(R"("U8")", "[4]", "[]"), "expected two integers as data_offsets, got 0"},
      {tensor_header(R"("U8")", "[4]", "[0,4,4]"), "as data_offsets, got 4"},
      {tensor_header(R"("U8")", "[4]", "[0,null]"), "as data_offsets, got null"},
      {tensor_header(R"("U8")", "[4]", "[-1,4]"), "as data_offsets, got -1"}};
  for (const Hostile& one : table) {
    EXPECT_THAT(load_error(file_of(one.file, "abcd")), HasSubstr(one.message)) << one.file;
  }
  std::string dims = "[1";
  for (int i = 0; i < 64; ++i) dims += ",1";
  EXPECT_THAT(load_error(file_of(tensor_header(R"("U8")", dims + "]", "[0,1]"), "a")),
              HasSubstr("expected at most 64 integers"));
}

TEST_F(Safetensors, RefusesWrongSizes) {
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"a":{"dtype":"U8","shape":[2],"data_offsets":)" + first +
           R"(},"b":{"dtype":"U8","shape":[2],"data_offsets":)" + second + "}}";
  };
  const std::string u8 = R"("U8")";
  const Hostile table[] = {
      {tensor_header(u8, "[4]", "[4,0]"), "expected data_offsets in order, got 4 before 0"},
      {tensor_header(u8, "[5]", "[0,5]"),
       "within the 4 bytes of data, got 0 to 5. Is the file cut off?"},
      {tensor_header(u8, "[4]", "[18446744073709551612,18446744073709551615]"),
       "expected 4 bytes for U8"},
      {tensor_header(u8, "[3]", "[18446744073709551612,18446744073709551615]"),
       "within the 4 bytes"},
      {tensor_header(u8, "[3]", "[0,4]"),
       "expected 3 bytes for U8 of shape [3], got data_offsets 0 to 4"},
      {tensor_header(R"("F32")", "[4]", "[0,4]"), "expected 16 bytes for F32 of shape [4]"},
      {tensor_header(u8, "[]", "[0,4]"), "expected 1 bytes for U8 of shape []"},
      {tensor_header(u8, "[0]", "[0,4]"), "expected 0 bytes for U8 of shape [0]"},
      {tensor_header(R"("F6_E3M2")", "[2]", "[0,2]"),
       "expected whole bytes of F6_E3M2, got shape [2]"},
      {tensor_header(R"("F4")", "[3]", "[0,2]"), "expected whole bytes of F4, got shape [3]"},
      {tensor_header(u8, "[4294967296,4294967296]", "[0,0]"), "less than 2^63 bits"},
      {tensor_header(u8, "[4294967296,4294967296,0]", "[0,0]"), "less than 2^63 bits"},
      {tensor_header(u8, "[9223372036854775807]", "[0,4]"), "less than 2^63 bits"},
      {tensor_header(R"("F64")", "[2305843009213693952]", "[0,0]"), "less than 2^63 bits"},
      {tensor_header(u8, "[3]", "[0,3]"),
       "expected 3 bytes of data, got 4 (nothing describes the rest)"},
      {tensor_header(u8, "[3]", "[1,4]"), "\"a\": expected data from byte 0, got from 1 (a gap"},
      {"{}", "expected 0 bytes of data, got 4"},
      {two("[0,2]", "[0,2]"), "\"b\": expected data from byte 2, got from 0 (overlaps"},
      {two("[0,2]", "[1,3]"), "\"b\": expected data from byte 2, got from 1 (overlaps"},
      {two("[0,2]", "[3,5]"), "\"b\": expected data_offsets within the 4 bytes"}};
  for (const Hostile& one : table) {
    EXPECT_THAT(load_error(file_of(one.file, "abcd")), HasSubstr(one.message)) << one.file;
  }
  EXPECT_THAT(load_error(file_of(two("[0,2]", "[3,5]"), "abcde")), HasSubstr("got from 3 (a gap"));
  EXPECT_EQ(load_error(file_of(two("[2,4]", "[0,2]"), "abcd")), "(no error)") << "order is free";
  EXPECT_THAT(load_error(file_of(tensor_header(R"("BOOL")", "[2]", "[0,2]"), "\x01\x02")),
              HasSubstr("expected bytes 0 and 1 for BOOL"));
}

TEST_F(Safetensors, KeepsMessagesShort) {
  const std::string error = load_error(file_of("{\"" + std::string(1000000, 'n') + "\":1}"));
  EXPECT_THAT(error, HasSubstr("nnn\"...: expected an object, got 1"));
  EXPECT_LT(error.size(), 1000);
  EXPECT_LT(load_error(file_of("{\"a\":" + std::string(1000000, '9') + "}")).size(), 1000);
  EXPECT_LT(load_error(file_of("{\"" + std::string(1000000, 'n'))).size(), 1000);
}

TEST_F(Safetensors, RefusesWhatIsNoFile) {
  EXPECT_THAT(error_of([&] { load_safetensors(folder_ / ""); }), HasSubstr("got a directory"));
  EXPECT_THAT(error_of([&] { SafetensorsReader(folder_ / "none"); }),
              HasSubstr("none: expected a readable file, got: No such file or directory"));
}

TEST_F(Safetensors, NoticesAFileCutOffWhileOpen) {
  save_safetensors(path(), {{"a", torch::ones({100})}});
  const SafetensorsReader reader(path());
  std::filesystem::resize_file(path(), 200);
  EXPECT_THAT(error_of([&] { reader.tensor("a"); }), HasSubstr("the file became shorter"));
}

TEST_F(Safetensors, SurvivesMutations) {
  save_safetensors(path(),
                   {{"weight", torch::ones({4, 3})},
                    {"flag", torch::ones({5}, at::kBool)},
                    {"codes", bytes({2, 4}, 4).view(at::kFloat4_e2m1fn_x2)}},
                   {{"key", "value"}});
  const std::string valid[] = {folder_.read("a.safetensors"), reference_file()};
  std::mt19937 random(8);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  constexpr std::string_view kTokens[] = {"{",  "}",  "[",   "]",    ",", ":",
                                          "\"", "-1", "1e9", "null", "0", "99999999999"};
  int accepted = 0;
  constexpr int kRounds = 4000;
  for (int round = 0; round < kRounds; ++round) {
    std::string file = valid[round % 2];
    for (size_t edits = 1 + below(3); edits > 0 && !file.empty(); --edits) {
      const size_t at = below(file.size());
      switch (below(5)) {
        case 0:
          file[at] = static_cast<char>(file[at] ^ (1 << below(8)));
          break;
        case 1:
          file[at] = static_cast<char>(random());
          break;
        case 2:
          file.resize(at);
          break;
        case 3:
          file.erase(at, 1 + below(20));
          break;
        default:
          file.insert(at, kTokens[below(std::size(kTokens))]);
          break;
      }
    }
    const std::string error = load_error(file);  // anything but a c10::Error ends the test
    if (error == "(no error)") {
      ++accepted;
    } else {
      ASSERT_THAT(error, HasSubstr("[load_safetensors] ")) << "round " << round;
    }
  }
  EXPECT_GT(accepted, kRounds / 100) << "the mutations should leave some files valid";
  EXPECT_LT(accepted, kRounds / 2);
}

// ---- failed writes ----------------------------------------------------------
TEST_F(Safetensors, RefusesWhatItCannotSave) {
  const at::Tensor one = torch::ones({1});
  EXPECT_THAT(save_error({{"a", one}, {"a", one}}),
              HasSubstr("expected unique names, got \"a\" twice"));
  EXPECT_THAT(save_error({{"__metadata__", one}}), HasSubstr("which the format reserves"));
  EXPECT_THAT(save_error({{"a", {}}}), HasSubstr("\"a\": expected data, got an undefined tensor"));
  EXPECT_THAT(save_error({{"a", one.to(at::kComplexDouble)}}), HasSubstr("got ComplexDouble"));
  EXPECT_THAT(save_error({{"a", torch::ones({2, 2}).to_sparse()}}),
              HasSubstr("expected a dense tensor with data"));
  EXPECT_THAT(save_error({{"a", torch::ones({2}, at::kMeta)}}),
              HasSubstr("expected a dense tensor with data"));
  EXPECT_THAT(save_error({{"\xff", one}}), HasSubstr("expected UTF-8 in the name of tensor"));
  EXPECT_THAT(save_error({{"a", one}}, {{"k", "\xff"}}),
              HasSubstr("expected UTF-8 in the metadata"));
  EXPECT_TRUE(folder_.names().empty());
}

TEST_F(Safetensors, KeepsTheOldFileWhenTheDiskIsFull) {
  folder_.write("a.safetensors", reference_file());
  const at::Tensor large = torch::ones({1000});
  const std::string error = error_of([&] {
    const FullDisk full;
    save_safetensors(path(), {{"a", large}});
  });
  EXPECT_THAT(error, HasSubstr("[save_safetensors] " + path() + ": expected to write"));
  EXPECT_EQ(folder_.read("a.safetensors"), reference_file());
  EXPECT_THAT(folder_.names(), ElementsAre("a.safetensors"));
}

}  // namespace
}  // namespace moe8
