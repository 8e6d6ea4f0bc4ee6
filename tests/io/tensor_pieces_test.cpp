// SPDX-License-Identifier: BSD-3-Clause
// Tensors in pieces: read back whole, in other boxes, and what is refused.
#include "io/tensor_pieces.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include "testing/compare.h"
#include "testing/folder.h"

namespace moe8 {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::same_bits;
using testing::TemporaryFolder;

TEST(TensorPieces, ReadsEveryBoxHoweverTheTensorWasCut) {
  const TemporaryFolder folder;
  const at::Tensor x = at::rand({7, 6}).to(at::kBFloat16);
  // Rows 0 to 3, then the two halves of rows 3 to 7.
  save_pieces(folder / "a", {{"x", {0, 0}, x.narrow(0, 0, 3)}, {"n", {}, at::scalar_tensor(5L)}});
  save_pieces(folder / "b", {{"x", {3, 0}, x.narrow(0, 3, 4).narrow(1, 0, 2)}});
  save_pieces(folder / "c", {{"x", {3, 2}, x.narrow(0, 3, 4).narrow(1, 2, 4)}});
  const PieceReader reader({folder / "c", folder / "a", folder / "b"});
  EXPECT_EQ(reader.names(), (std::vector<std::string>{"n", "x"}));
  EXPECT_EQ(reader.sizes("x"), (std::vector<int64_t>{7, 6}));
  EXPECT_EQ(reader.dtype("x"), "BF16");
  EXPECT_TRUE(same_bits(x, reader.read("x")));
  EXPECT_TRUE(same_bits(at::scalar_tensor(5L), reader.read("n")));
  for (int64_t row = 0; row < 7; ++row) {
    for (int64_t column = 0; column < 6; ++column) {
      const Box box{{row, column}, {7 - row, 6 - column}};
      const at::Tensor part = x.narrow(0, row, 7 - row).narrow(1, column, 6 - column).contiguous();
      EXPECT_TRUE(same_bits(part, reader.read("x", box)));
      const at::Tensor there = at::full_like(part, NAN);
      reader.read_into("x", box, there);
      EXPECT_TRUE(same_bits(part, there));
    }
  }
}

// Of more bytes than one task of a thread reads.
TEST(TensorPieces, LargePiecesAreReadByAllThreads) {
  const TemporaryFolder folder;
  const at::Tensor x = at::rand({3000, 1000});
  save_pieces(folder / "a", {{"x", {0, 0}, x.narrow(0, 0, 1700)}});
  save_pieces(folder / "b", {{"x", {1700, 0}, x.narrow(0, 1700, 1300)}});
  const PieceReader reader({folder / "a", folder / "b"});
  EXPECT_TRUE(same_bits(x, reader.read("x")));
  const at::Tensor most = at::full({2900, 1000}, NAN);
  reader.read_into("x", {{50, 0}, {2900, 1000}}, most);
  EXPECT_TRUE(same_bits(x.narrow(0, 50, 2900), most));
}

TEST(TensorPieces, WritesWhatPyTorchWrites) {
  const TemporaryFolder folder;
  save_pieces(folder / "a", {{"x", {4, 0}, at::zeros({2, 3})}}, {{"step", "7"}});
  EXPECT_EQ(
      SafetensorsReader(folder / "a").metadata(),
      (std::map<std::string, std::string>{{"DCP_SHARDING_INFO", R"({"x":{"saved_offsets":[4,0]}})"},
                                          {"DCP_VERSION", "1.0"},
                                          {"format", "pt"},
                                          {"step", "7"}}));
  EXPECT_EQ(shard_file_name(0), "shard-00001-model-00001-of-00001.safetensors");
}

TEST(TensorPieces, AFileWithoutOffsetsHoldsWholeTensors) {
  const TemporaryFolder folder;
  const at::Tensor x = at::arange(12.0).view({4, 3});
  save_safetensors(folder / "a", {{"x", x}});
  const PieceReader reader({folder / "a"});
  EXPECT_TRUE(same_bits(x.narrow(0, 1, 2), reader.read("x", {{1, 0}, {2, 3}})));
}

TEST(TensorPieces, RefusesWhatIsMissingOrThereTwice) {
  const TemporaryFolder folder;
  const at::Tensor x = at::zeros({2, 3});
  save_pieces(folder / "a", {{"x", {0, 0}, x}});
  save_pieces(folder / "b", {{"x", {4, 0}, x}});
  save_pieces(folder / "c", {{"x", {1, 0}, x}});
  save_pieces(folder / "d", {{"x", {0, 0}, x.to(at::kBFloat16)}});
  const PieceReader gap({folder / "a", folder / "b"});
  EXPECT_THAT(error_of([&] { gap.check("x", {{0, 0}, {6, 3}}); }), HasSubstr("got 12 of 18"));
  EXPECT_THAT(error_of([&] { gap.read("x"); }),
              HasSubstr(" and 1 more: tensor \"x\": expected all of [6, 3] from [0, 0] on, got 12 "
                        "of 18 elements. Is a file missing?"));
  EXPECT_TRUE(same_bits(x, gap.read("x", {{4, 0}, {2, 3}}))) << "what is there can be read";
  const PieceReader twice({folder / "a", folder / "c"});
  EXPECT_THAT(error_of([&] { twice.read("x"); }),
              HasSubstr("/c: tensor \"x\": expected each element in one file, got some in two"));
  EXPECT_THAT(error_of([&] {
                PieceReader({folder / "a", folder / "d"});
              }),
              HasSubstr("/d: tensor \"x\": expected F32 of 2 dimensions, as in "));
  EXPECT_THAT(error_of([&] { gap.read("y"); }), HasSubstr("expected one of its 1 tensors"));
  EXPECT_THAT(error_of([&] { gap.read("x", {{0}, {1}}); }), HasSubstr("a box of 2 dimensions"));
}

TEST(TensorPieces, RefusesBadShardingInfo) {
  const TemporaryFolder folder;
  const auto error_with = [&](const std::string& info) {
    save_safetensors(folder / "a", {{"x", at::zeros({2, 3})}}, {{"DCP_SHARDING_INFO", info}});
    return error_of([&] { PieceReader({folder / "a"}); });
  };
  EXPECT_THAT(error_with("["), HasSubstr("/a: expected DCP_SHARDING_INFO to be a JSON object"));
  for (const char* info :
       {"{}", R"({"x":{}})", R"({"x":{"saved_offsets":[1]}})", R"({"x":{"saved_offsets":[-1,0]}})",
        R"({"x":{"saved_offsets":"1"}})", R"({"x":{"saved_offsets":[9000000000000000000,0]}})"}) {
    EXPECT_THAT(error_with(info), HasSubstr("tensor \"x\": expected 2 offsets in ")) << info;
  }
}

}  // namespace
}  // namespace moe8
