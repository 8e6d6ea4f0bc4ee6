// SPDX-License-Identifier: BSD-3-Clause
// Compares the CUDA quantizers with src/reference/, byte for byte: fixed shapes with every format,
// then random ones. A program of its own, without Torch: `quantize_check [RANDOM_SHAPES]`.
// Outputs lie poisoned between guards; each launch is done twice.
#include <algorithm>

#include "cuda/quantize_check/check.h"

namespace moe8::cuda {
namespace {

using enum ElemDtype;
using enum ScaleCalculationMode;

constexpr ElemDtype kElems[] = {E4M3, E5M2, E2M3, E3M2, E2M1};
constexpr ScaleCalculationMode kModes[] = {FLOOR, RCEIL, CEIL, EVEN};

const std::vector<int32_t> kRagged = {0, 1, 31, 32, 33, 127, 128, 129, 0, 5};

// All formats of one problem.
void check_formats(const Problem& p) {
  check_metadata(p, 32);
  check_metadata(p, 128);
  const Metadata metadata(p, 32);
  const Placed jagged = place_jagged(p, metadata.m);
  for (const ElemDtype elem : {E4M3, E5M2}) {
    for (const bool pow2 : {true, false}) {
      check_float8(p, jagged, elem, pow2);
      check_tensorwise(p, elem, pow2);
    }
  }
  for (const ElemDtype elem : kElems) {
    for (const ScaleCalculationMode mode : kModes) {
      check_mx(p, jagged.groups, 0, elem, mode, FloatType::BF16);
      check_mx(p, jagged.groups, 0, elem, mode, FloatType::F32);
    }
  }
}

void check_fixed_shapes(std::mt19937& rng) {
  const std::vector<int32_t> many = [&] {
    std::vector<int32_t> sizes(1024);
    for (int32_t& size : sizes) size = static_cast<int32_t>(rng() % 3);
    return sizes;
  }();
  struct Case {
    std::vector<int32_t> sizes;
    int64_t tail;
    int64_t columns;
  };
  const Case cases[] = {{kRagged, 7, 40},        {kRagged, 0, 101}, {kRagged, 70, 64},
                        {many, 3, 24},           {{300}, 0, 33},    {{0, 0, 0}, 5, 16},
                        {{0, 200, 0}, 100, 136}, {{1}, 0, 1}};
  for (const Case& c : cases) {
    const auto ends = ends_of(c.sizes);
    for (const FloatType type : {FloatType::BF16, FloatType::F32}) {
      for (const Fill fill : kFills) {
        check_formats(make_problem(type, c.columns, ends, ends.back() + c.tail, fill, rng));
      }
    }
  }
}

// Rows of every length that has a kernel of its own, and weights.
void check_long_rows(std::mt19937& rng) {
  for (const int64_t columns :
       {1000, 2048, 2880, 4096, 5120, 6144, 7168, 8192, 8200, 16384, 17000}) {
    for (const FloatType type : {FloatType::BF16, FloatType::F32}) {
      const auto ends = ends_of({1, 0, 66, 3});
      const Problem p = make_problem(type, columns, ends, 72, Fill::WIDE, rng);
      const Metadata metadata(p, 32);
      check_float8(p, place_jagged(p, metadata.m), E4M3, true);
      check_float8(p, place_equal(p, 3, 16), E4M3, true);
      check_tensorwise(p, E5M2, false);
      check_mx(p, RowGroups::equal(3, 24), 3, E4M3, RCEIL, FloatType::BF16);
    }
  }
}

// Weights joined from parts that end at 16-byte pieces of the transposed codes, or anywhere.
void check_joined_weights(std::mt19937& rng) {
  struct Case {
    int64_t groups;
    std::vector<int64_t> parts;
    int64_t padding;
  };
  const Case cases[] = {{3, {64, 64}, 16},     {2, {32, 40}, 32}, {4, {100, 100}, 16},
                        {1, {1, 1}, 16},       {5, {7, 30}, 16},  {2, {48, 16, 5}, 128},
                        {2, {3, 2, 40, 1}, 32}};
  for (const Case& c : cases) {
    int64_t group_rows = 0;
    for (const int64_t rows : c.parts) group_rows += rows;
    for (const int64_t columns : {8, 33, 40, 104, 1000, 17000}) {
      if (columns > 1000 && group_rows > 64) continue;
      for (const FloatType type : {FloatType::BF16, FloatType::F32}) {
        const Fill fill = kFills[rng() % 3];
        const Problem p = make_problem(type, columns, {}, c.groups * group_rows, fill, rng);
        check_joined(p, c.parts, c.padding, rng() % 2 ? E4M3 : E5M2, rng() % 2);
        const bool whole_blocks = std::all_of(c.parts.begin(), std::prev(c.parts.end()),
                                              [](int64_t rows) { return rows % kMxBlock == 0; });
        if (whole_blocks) check_joined_mx(p, c.parts, E4M3, RCEIL, FloatType::BF16);
      }
    }
  }
}

void check_random_shape(std::mt19937& rng) {
  std::vector<int32_t> sizes(1 + rng() % (rng() % 8 == 0 ? 200 : 12));
  for (int32_t& size : sizes) {
    size = static_cast<int32_t>(rng() % 3 == 0 ? kRagged[rng() % kRagged.size()]
                                               : rng() % (1 + 300 / sizes.size()));
  }
  const auto ends = ends_of(sizes);
  const int64_t columns = static_cast<int64_t>(rng() % 2 ? 1 + rng() % 150 : 8 * (1 + rng() % 20));
  const int64_t rows = ends.back() + static_cast<int64_t>(rng() % 2 ? rng() % 100 : 0);
  const FloatType type = rng() % 2 ? FloatType::BF16 : FloatType::F32;
  const Problem p =
      make_problem(type, columns, ends, std::max<int64_t>(rows, 1), kFills[rng() % 3], rng);
  const Metadata metadata(p, rng() % 2 ? 32 : 128);
  const Placed jagged = place_jagged(p, metadata.m);
  check_float8(p, jagged, rng() % 2 ? E4M3 : E5M2, rng() % 2);
  check_mx(p, jagged.groups, 0, kElems[rng() % 5], kModes[rng() % 4],
           rng() % 2 ? FloatType::BF16 : FloatType::F32);
  const int64_t equal = p.rows % 3 == 0 ? 3 : p.rows % 2 == 0 ? 2 : 1;
  check_float8(p, place_equal(p, equal, 16), rng() % 2 ? E4M3 : E5M2, rng() % 2);
  check_mx(p, RowGroups::equal(equal, p.rows / equal), equal, kElems[rng() % 5], kModes[rng() % 4],
           FloatType::BF16);
}

void check_all(int random_shapes) {
  std::mt19937 rng(1);
  check_invalid_offs();
  check_graph(rng);
  if (random_shapes >= 100) {
    check_fixed_shapes(rng);
    check_long_rows(rng);
    check_joined_weights(rng);
  }
  for (const int64_t columns : {1, 4, 7, 64, 130}) {
    const auto ends = ends_of(kRagged);
    check_blocked(ends.back() + 3, columns, ends, rng);
  }
  for (int i = 0; i < random_shapes; ++i) check_random_shape(rng);
}

}  // namespace
}  // namespace moe8::cuda

int main(int argc, char** argv) {
  return moe8::cuda::run_checks(argc, argv, 200, "bytes", "shapes", moe8::cuda::check_all);
}
