// SPDX-License-Identifier: BSD-3-Clause
// Every grouped GEMM kernel against the float64 reference: ragged groups, odd sizes, poisoned
// outputs and paddings, twice for equal bits. A program without Torch, to be run where the GPU is.
// `gemm_check CASE` runs one case.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cuda/device_buffer.h"
#include "cuda/gemm/grouped_gemm.h"
#include "formats/elem.h"
#include "reference/grouped_gemm.h"

namespace moe8 {
namespace {

using cuda::GemmElement;
using cuda::GroupedGemmArgs;

using testing::DeviceBuffer;
using testing::require;

/// kOneSign: random numbers of one sign, whose sums lose most in short accumulators. These are
/// computed without fast accumulation.
enum class Fill { kIntegers, kRandom, kOneSign };
constexpr Fill kFills[] = {Fill::kIntegers, Fill::kRandom, Fill::kOneSign};
constexpr const char* kFillNames[] = {"integers", "random", "one sign"};

struct Case {
  const char* name;
  int64_t N, K;
  std::vector<int> sizes;  // of the groups
  int tail;                // rows of no group
};

/// The operands as numbers that their formats hold exactly, and what the reference makes of them.
struct Problem {
  int64_t M, N, K, E;
  Fill fill;
  std::vector<int32_t> offs;
  std::vector<float> A, W, dO;
  std::vector<float> row_scale, col_scale;  // long enough for every kind
};

float draw(std::mt19937& rng, Fill fill, ElemDtype elem) {
  if (fill == Fill::kIntegers) return static_cast<float>(static_cast<int>(rng() % 9) - 4);
  std::normal_distribution<float> normal(0.0f, 20.0f);
  // Every E5M2 number that comes out of an E4M3 number of this size is one, too.
  const float number = fill == Fill::kOneSign ? std::abs(normal(rng)) : normal(rng);
  const float x = decode(encode(number, ElemDtype::E4M3), ElemDtype::E4M3);
  return decode(encode(x, elem), elem);
}

/// `left`: the format of A and dO, which may lie left; A may lie right, too, as E4M3.
Problem make_problem(const Case& c, Fill fill, ElemDtype left) {
  std::mt19937 rng(static_cast<unsigned>(c.N * 31 + c.K + c.tail));
  Problem p;
  p.N = c.N;
  p.K = c.K;
  p.E = static_cast<int64_t>(c.sizes.size());
  p.fill = fill;
  int32_t end = 0;
  for (int size : c.sizes) p.offs.push_back(end += size);
  p.M = end + c.tail;
  auto some = [&](int64_t count, ElemDtype elem) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& x : values) x = draw(rng, fill, elem);
    return values;
  };
  p.A = some(p.M * p.K, left);
  p.W = some(p.E * p.N * p.K, ElemDtype::E4M3);
  p.dO = some(p.M * p.N, left);
  const int64_t scales = std::max(p.M, p.E * std::max(p.N, p.K));
  for (auto* s : {&p.row_scale, &p.col_scale}) {
    for (int64_t i = 0; i < scales; ++i) {
      s->push_back(
          std::ldexp(fill == Fill::kIntegers ? 1.0f : 1.25f, static_cast<int>(rng() % 7) - 3));
    }
  }
  return p;
}

struct Shape {
  int64_t rows, cols;
};
Shape out_shape(const Problem& p, Gemm kind) {
  if (kind == Gemm::OUT) return {p.M, p.N};
  if (kind == Gemm::GRAD_INPUT) return {p.M, p.K};
  return {p.E * p.N, p.K};
}

std::vector<double> reference_of(const Problem& p, Gemm kind) {
  const Shape shape = out_shape(p, kind);
  std::vector<double> out(static_cast<size_t>(shape.rows * shape.cols));
  const float* left = kind == Gemm::OUT ? p.A.data() : p.dO.data();
  const float* right = kind == Gemm::GRAD_WEIGHT ? p.A.data() : p.W.data();
  const reference::GroupedGemmArgs args{left, right, p.offs.data(), p.M, p.N, p.K, p.E, out.data()};
  if (kind == Gemm::OUT) reference::grouped_gemm_out(args);
  if (kind == Gemm::GRAD_INPUT) reference::grouped_gemm_grad_input(args);
  if (kind == Gemm::GRAD_WEIGHT) reference::grouped_gemm_grad_weight(args);
  return out;
}

/// Applies the scales as the kernels of codes do.
void scale(const Problem& p, Gemm kind, std::vector<double>& out) {
  const Shape shape = out_shape(p, kind);
  for (int64_t r = 0; r < shape.rows; ++r) {
    int64_t group = 0;
    if (kind == Gemm::GRAD_WEIGHT) {
      group = r / p.N;
    } else {
      group = std::upper_bound(p.offs.begin(), p.offs.end(), r) - p.offs.begin();
      if (group == p.E) continue;  // zeros
    }
    for (int64_t c = 0; c < shape.cols; ++c) {
      out[static_cast<size_t>(r * shape.cols + c)] *=
          double{p.row_scale[static_cast<size_t>(r)]} *
          p.col_scale[static_cast<size_t>(group * shape.cols + c)];
    }
  }
}

int64_t round_up(int64_t x, int64_t to) {
  return (x + to - 1) / to * to;
}

/// What one operand is stored as: FP8 codes of a format, or bf16.
using Storage = std::optional<ElemDtype>;
constexpr Storage kBf16 = std::nullopt;

Storage left_storage(GemmElement element) {
  if (!cuda::is_fp8(element)) return kBf16;
  return element == GemmElement::E5M2_E4M3 ? ElemDtype::E5M2 : ElemDtype::E4M3;
}
Storage right_storage(GemmElement element) {
  return cuda::is_fp8(element) ? Storage(ElemDtype::E4M3) : kBf16;
}

/// Elements of one format on the device, rows of `pitch`, everything outside (rows, cols) NaN.
struct Operand {
  std::vector<uint16_t> elements;  // bf16 bits, or codes
  int64_t pitch;
};

uint16_t element_of(float x, Storage storage) {
  if (storage) return static_cast<uint16_t>(encode(x, *storage));
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(bits >> 16);
}

template <typename At>
Operand lay_out(int64_t rows, int64_t cols, Storage storage, At at) {
  const int64_t pitch = round_up(std::max<int64_t>(cols, 1), storage ? 16 : 8);
  Operand o{std::vector<uint16_t>(static_cast<size_t>(rows * pitch), element_of(NAN, storage)),
            pitch};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      o.elements[static_cast<size_t>(r * pitch + c)] = element_of(at(r, c), storage);
    }
  }
  return o;
}

/// (cols, padded tokens): the transposed copy of x (M, cols).
Operand transposed_copy(const Problem& p, const std::vector<float>& x, int64_t cols,
                        const std::vector<int32_t>& starts, int64_t padded, Storage storage) {
  std::vector<int64_t> token(static_cast<size_t>(padded), -1);
  for (size_t e = 0; e < starts.size(); ++e) {
    const int begin = e > 0 ? p.offs[e - 1] : 0;
    for (int m = begin; m < p.offs[e]; ++m) token[static_cast<size_t>(starts[e] + m - begin)] = m;
  }
  return lay_out(cols, padded, storage, [&](int64_t r, int64_t c) {
    const int64_t m = token[static_cast<size_t>(c)];
    return m < 0 ? 0.0f : x[static_cast<size_t>(m * cols + r)];
  });
}

std::vector<uint8_t> bytes_of(const Operand& o, GemmElement element) {
  std::vector<uint8_t> bytes;
  for (uint16_t x : o.elements) {
    bytes.push_back(static_cast<uint8_t>(x));
    if (!cuda::is_fp8(element)) bytes.push_back(static_cast<uint8_t>(x >> 8));
  }
  return bytes;
}

struct Operands {
  Operand left, right;
  std::vector<int32_t> starts;
  int64_t padded = 0;
};

Operands operands_of(const Problem& p, Gemm kind, GemmElement element) {
  const Storage left = left_storage(element), right = right_storage(element);
  auto matrix = [&](const std::vector<float>& x, int64_t rows, int64_t cols, Storage storage) {
    return lay_out(rows, cols, storage,
                   [&](int64_t r, int64_t c) { return x[static_cast<size_t>(r * cols + c)]; });
  };
  if (kind == Gemm::OUT)
    return {matrix(p.A, p.M, p.K, left), matrix(p.W, p.E * p.N, p.K, right), {}};
  if (!cuda::is_fp8(element)) {
    if (kind == Gemm::GRAD_INPUT) {
      return {matrix(p.dO, p.M, p.N, left), matrix(p.W, p.E * p.N, p.K, right), {}};
    }
    return {matrix(p.dO, p.M, p.N, left), matrix(p.A, p.M, p.K, right), {}};
  }
  if (kind == Gemm::GRAD_INPUT) {
    return {matrix(p.dO, p.M, p.N, left),
            lay_out(p.E * p.K, p.N, right,
                    [&](int64_t r, int64_t n) {
                      return p.W[static_cast<size_t>((r / p.K * p.N + n) * p.K + r % p.K)];
                    }),
            {}};
  }
  Operands o;
  int32_t previous = 0;
  for (int32_t end : p.offs) {
    o.starts.push_back(static_cast<int32_t>(o.padded));
    o.padded += round_up(end - previous, cuda::kGroupPadding);
    previous = end;
  }
  o.left = transposed_copy(p, p.dO, p.N, o.starts, o.padded, left);
  o.right = transposed_copy(p, p.A, p.K, o.starts, o.padded, right);
  return o;
}

double to_double(const std::vector<uint8_t>& out, int64_t index, FloatType output) {
  float x = 0;
  if (output == FloatType::F32) {
    std::memcpy(&x, &out[static_cast<size_t>(index * 4)], 4);
  } else {
    uint16_t bits;
    std::memcpy(&bits, &out[static_cast<size_t>(index * 2)], 2);
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    std::memcpy(&x, &wide, 4);
  }
  return x;
}

double rounded(double x, FloatType output) {
  const float f = static_cast<float>(x);
  return output == FloatType::F32 ? f : double{__bfloat162float(__float2bfloat16(f))};
}

int failures = 0;

/// The largest relative error, as norms, of random numbers.
double limit_of(Fill fill, Gemm kind, GemmElement element, FloatType output) {
  // bf16 rounding alone gives 1.7e-3; FP8 accumulators add up to 4e-3 over these lengths.
  if (fill != Fill::kOneSign || output == FloatType::BF16) return 6e-3;
  // Promoted sums of numbers of one sign lose as much as one of their parts does, whatever the
  // length (tensor cores throughout: 0.1): 6e-4 measured with 128 products, 1.9e-3 with 256.
  const bool short_parts = kind != Gemm::GRAD_WEIGHT && element == GemmElement::E4M3;
  return short_parts ? 8e-4 : 2.2e-3;
}

/// Compares one result; integers must be exact, random numbers within `limit`.
double check(const Problem& p, Gemm kind, const std::vector<uint8_t>& out, int64_t pitch,
             const std::vector<double>& expected, FloatType output, double limit,
             const std::string& what) {
  const Shape shape = out_shape(p, kind);
  auto must_be_zero = [&](int64_t row) {  // rows of no group, weights of empty groups
    if (kind != Gemm::GRAD_WEIGHT) return row >= p.offs.back();
    const auto group = static_cast<size_t>(row / p.N);
    return p.offs[group] == (group > 0 ? p.offs[group - 1] : 0);
  };
  double error = 0, norm = 0;
  int wrong = 0;
  for (int64_t r = 0; r < shape.rows; ++r) {
    for (int64_t c = 0; c < pitch; ++c) {
      const double got = to_double(out, r * pitch + c, output);
      if (c >= shape.cols) {  // the poison of the pitch must be left alone
        wrong += !std::isnan(got);
        continue;
      }
      const double want = expected[static_cast<size_t>(r * shape.cols + c)];
      const bool exact = p.fill == Fill::kIntegers || must_be_zero(r);
      const bool bad = exact ? got != rounded(want, output) : std::isnan(got);
      if (bad && wrong++ == 0) {
        std::printf("  %s: [%ld, %ld] is %g, expected %g\n", what.c_str(), static_cast<long>(r),
                    static_cast<long>(c), got, want);
      }
      error += (got - want) * (got - want);
      norm += want * want;
    }
  }
  const double relative = norm > 0 ? std::sqrt(error / norm) : 0;
  const bool passed = wrong == 0 && relative < limit;
  if (!passed) {
    ++failures;
    std::printf("FAILED %s: %d wrong, relative error %.2e\n", what.c_str(), wrong, relative);
  }
  return relative;
}

const char* kind_name(Gemm kind) {
  return kind == Gemm::OUT ? "out" : kind == Gemm::GRAD_INPUT ? "grad_input" : "grad_weight";
}

/// The output of a kernel that ran twice into poisoned memory, the second time with operands that
/// are ready, behind another run that may still be at work.
std::vector<uint8_t> run_twice(const cuda::GroupedGemmVariant& variant, const GroupedGemmArgs& args,
                               DeviceBuffer<uint8_t>& out, const std::string& what) {
  alarm(20);  // a kernel that hangs must not hold the machine
  const cuda::VariantChoice choice{.chosen = &variant};
  const auto launch = [&](const GroupedGemmArgs& a) {
    const cuda::LaunchStatus status = cuda::launch_grouped_gemm(choice, a);
    require(status.error, status.failed ? (what + ": " + status.failed).c_str() : "");
  };
  std::vector<uint8_t> results[2];
  DeviceBuffer<uint8_t> other(out.size());
  GroupedGemmArgs to_other = args;
  to_other.out = other.get();
  GroupedGemmArgs ready = args;
  ready.operands_are_ready = true;
  for (auto& result : results) {
    const bool again = &result == &results[1];
    out.fill(0xFF);
    if (again) launch(to_other);
    launch(again ? ready : args);
    require(cudaDeviceSynchronize(), what.c_str());
    result = out.host();
  }
  alarm(0);
  if (results[0] != results[1]) {
    ++failures;
    std::printf("FAILED %s: two runs differ\n", what.c_str());
  }
  return results[0];
}

/// In how many slices of its contraction a product is computed.
std::vector<int> slices_of(Gemm kind) {
  return kind == Gemm::GRAD_WEIGHT ? std::vector<int>{1, 2, 7} : std::vector<int>{1};
}

/// A product added to numbers that are there must be those numbers plus the product by itself, each
/// in float32; `product` is the latter, with NaN in the pitch, which is to be left alone.
void check_adding(const cuda::GroupedGemmVariant& variant, GroupedGemmArgs args, int64_t rows,
                  const std::vector<uint8_t>& product, const std::string& what) {
  const auto count = static_cast<size_t>(rows * args.out_pitch);
  std::vector<float> expected(count), before(count);
  std::memcpy(expected.data(), product.data(), product.size());
  std::mt19937 rng(9);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < count; ++i) {
    before[i] = std::isnan(expected[i]) ? expected[i] : 100 * normal(rng);
    if (!std::isnan(expected[i])) expected[i] = before[i] + expected[i];
  }
  std::vector<uint8_t> bytes(product.size());
  std::memcpy(bytes.data(), before.data(), bytes.size());
  const DeviceBuffer<uint8_t> sum(bytes);
  args.out = sum.get();
  args.adds = true;
  alarm(20);
  const cuda::LaunchStatus status = cuda::launch_grouped_gemm({.chosen = &variant}, args);
  require(status.error, status.failed ? (what + ": " + status.failed).c_str() : "");
  require(cudaDeviceSynchronize(), what.c_str());
  alarm(0);
  const std::vector<uint8_t> got = sum.host();
  if (std::memcmp(got.data(), expected.data(), got.size()) == 0) return;
  ++failures;
  std::printf("FAILED %s: the sum is not what was there plus the product\n", what.c_str());
}

template <class Variant>
std::string name_of(const Case& c, const Variant& variant, const GroupedGemmArgs& args) {
  return std::string(c.name) + " " + kind_name(args.kind) + " " + variant.name +
         (args.output == FloatType::BF16 ? " bf16" : " float32") + " pitch " +
         std::to_string(args.out_pitch) + " in " + std::to_string(args.slices);
}

/// Runs every kernel that takes this product, twice into differently poisoned outputs.
void check_kind(const Case& c, const Problem& p, Gemm kind, GemmElement element,
                std::vector<double> expected, double& worst, int& runs) {
  if (cuda::is_fp8(element)) scale(p, kind, expected);
  const Operands o = operands_of(p, kind, element);
  const DeviceBuffer<uint8_t> left(bytes_of(o.left, element)), right(bytes_of(o.right, element));
  const DeviceBuffer<int32_t> offs(p.offs), starts(o.starts);
  const DeviceBuffer<float> row_scale(p.row_scale), col_scale(p.col_scale);
  const Shape shape = out_shape(p, kind);
  for (FloatType output : {FloatType::BF16, FloatType::F32}) {
    const int64_t bytes = output == FloatType::BF16 ? 2 : 4;
    for (int64_t pitch : {shape.cols, round_up(shape.cols, 8) + 8}) {
      DeviceBuffer<uint8_t> out(static_cast<size_t>(shape.rows * pitch * bytes));
      const GroupedGemmArgs args{.kind = kind,
                                 .element = element,
                                 .output = output,
                                 .M = p.M,
                                 .N = p.N,
                                 .K = p.K,
                                 .E = p.E,
                                 .left = left.get(),
                                 .left_pitch = o.left.pitch,
                                 .right = right.get(),
                                 .right_pitch = o.right.pitch,
                                 .offs = offs.get(),
                                 .padded_starts = starts.get(),
                                 .padded_tokens = o.padded,
                                 .use_fast_accum = p.fill != Fill::kOneSign,
                                 .row_scale = row_scale.get(),
                                 .col_scale = col_scale.get(),
                                 .out = out.get(),
                                 .out_pitch = pitch,
                                 .stream = nullptr};
      const auto run = [&](const auto& variant, int slices) {
        const DeviceBuffer<float> partial(static_cast<size_t>(slices * shape.rows * shape.cols));
        GroupedGemmArgs sliced = args;
        sliced.slices = slices;
        sliced.partial = partial.get();
        const std::string which = name_of(c, variant, sliced);
        const std::vector<uint8_t> result = run_twice(variant, sliced, out, which);
        worst = std::max(worst, check(p, kind, result, pitch, expected, output,
                                      limit_of(p.fill, kind, element, output), which));
        ++runs;
        if (kind != Gemm::GRAD_WEIGHT || output != FloatType::F32) return;
        check_adding(variant, sliced, shape.rows, result, which + " added");
        ++runs;
      };
      for (const auto& variant : cuda::grouped_gemm_variants()) {
        if (variant.refuses(args) != nullptr) continue;
        for (const int slices : slices_of(kind)) run(variant, slices);
      }
    }
  }
}

std::vector<Case> cases() {
  std::vector<int> many(512);
  std::mt19937 rng(7);
  for (int& size : many) size = static_cast<int>(rng() % 4);
  std::vector<int> forty(40, 0);
  for (size_t i = 0; i < forty.size(); i += 3) forty[i] = static_cast<int>(rng() % 70);
  return {
      {"ragged", 256, 256, {0, 1, 31, 32, 33, 127, 128, 129}, 0},
      {"ragged, tail", 272, 400, {33, 0, 129, 127, 1, 0, 128, 0}, 37},
      {"odd N and K", 77, 131, {65, 0, 64, 63, 1, 190}, 5},
      {"N and K of 8", 136, 72, {100, 300, 0}, 0},
      {"all in one", 160, 520, {0, 0, 700, 0}, 0},
      {"one group", 520, 144, {600}, 1},
      {"forty groups", 64, 96, forty, 3},
      {"512 groups", 48, 40, many, 9},
      {"no tokens in groups", 64, 64, {0, 0, 0}, 50},
      {"one of all", 1, 1, {1}, 0},
      {"long groups", 96, 80, {1500, 17, 1031}, 0},
      {"one very long group", 72, 48, {6000}, 0},
      {"long contraction", 6000, 48, {64, 0, 70}, 0},
  };
}

/// The list's choice, which needs no GPU: what a shape gets, and that nothing is left without.
void check_choice() {
  struct Expected {
    Gemm kind;
    GemmElement element;
    int64_t M, N, K, E;
    const char* name;
    bool use_fast_accum = true;
  };
  constexpr auto kOut = Gemm::OUT;
  constexpr auto kGradInput = Gemm::GRAD_INPUT;
  constexpr auto kGradWeight = Gemm::GRAD_WEIGHT;
  constexpr auto kCodes = GemmElement::E4M3;
  constexpr auto kMixed = GemmElement::E5M2_E4M3;
  constexpr auto kValues = GemmElement::BF16;
  const Expected list[] = {
      {kOut, kCodes, 131072, 8192, 5120, 8, "sm90_fp8_rows_128x256"},
      {kGradInput, kCodes, 131072, 2048, 7168, 8, "sm90_fp8_rows_pingpong_128x192"},
      {kOut, kCodes, 65536, 768, 2048, 128, "sm90_fp8_rows_pingpong_128x192"},
      {kGradInput, kCodes, 65536, 768, 2048, 128, "sm90_fp8_rows_pingpong_128x128"},
      {kGradWeight, kCodes, 65536, 768, 2048, 128, "sm90_fp8_depth_256x128"},
      {kOut, kValues, 131072, 8192, 5120, 8, "sm90_bf16_128x256"},
      {kGradWeight, kValues, 32768, 2880, 2880, 32, "sm90_bf16_pingpong_128x192"},
      {kOut, kValues, 1, 1, 1, 1, "sm90_bf16_pingpong_128x128"},
      {kGradWeight, kValues, 7, 256, 256, 0, "sm90_bf16_pingpong_128x128"},
      {kGradWeight, kCodes, 0, 0, 0, 0, "sm90_fp8_depth_256x128"},
      {kOut, kCodes, 16384, 8192, 8192, 1, "sm90_fp8_rows_promoted_256x128", false},
      {kGradWeight, kCodes, 16384, 8192, 8192, 1, "sm90_fp8_depth_256x128", false},
      {kGradInput, kMixed, 16384, 8192, 8192, 1, "sm90_fp8_rows_promoted_256x128"},
      {kGradWeight, kMixed, 16384, 8192, 8192, 1, "sm90_fp8_depth_256x128"},
  };
  for (const Expected& e : list) {
    const float scale = 1;
    const int32_t start = 0;
    GroupedGemmArgs args{};
    args.kind = e.kind;
    args.element = e.element;
    args.use_fast_accum = e.use_fast_accum;
    args.M = e.M;
    args.N = e.N;
    args.K = e.K;
    args.E = e.E;
    args.row_scale = args.col_scale = &scale;
    args.padded_starts = &start;
    const auto* chosen = cuda::choose_grouped_gemm(args).chosen;
    if (chosen == nullptr || std::string(chosen->name) != e.name) {
      ++failures;
      std::printf("FAILED choice: %s, expected %s\n", chosen ? chosen->name : "none", e.name);
    }
    if (e.kind != kGradWeight && cuda::choose_slices(args) != 1) {
      ++failures;
      std::printf("FAILED choice: slices of what is no gradient of weights\n");
    }
    args.left_pitch = 1;
    if (cuda::choose_grouped_gemm(args).chosen != nullptr) {
      ++failures;
      std::printf("FAILED choice: %s for a pitch that TMA cannot read\n", e.name);
    }
  }
}

/// Slices are for products that leave multiprocessors idle, and no others.
void check_slices() {
  struct Expected {
    int64_t M, N, K, E;
    bool in_slices;
  };
  const Expected list[] = {
      {16384, 768, 768, 1, true},     {16384, 256, 768, 1, true},    {16384, 512, 2048, 1, true},
      {16384, 4096, 2048, 1, false},  {16384, 8192, 8192, 1, false}, {65536, 320, 768, 32, false},
      {131072, 8192, 5120, 8, false}, {256, 64, 64, 1, false},       {16384, 0, 64, 1, false},
      {0, 64, 64, 1, false},          {100, 64, 64, 0, false},
  };
  for (const Expected& e : list) {
    GroupedGemmArgs args{};
    args.kind = Gemm::GRAD_WEIGHT;
    args.element = GemmElement::E4M3;
    args.M = e.M;
    args.N = e.N;
    args.K = e.K;
    args.E = e.E;
    const int slices = cuda::choose_slices(args);
    if (slices >= 1 && (slices > 1) == e.in_slices) continue;
    ++failures;
    std::printf("FAILED choice: %d slices of M %ld N %ld K %ld E %ld\n", slices,
                static_cast<long>(e.M), static_cast<long>(e.N), static_cast<long>(e.K),
                static_cast<long>(e.E));
  }
}

/// Products whose input is the output of the one before, and whose output overwrites what that one
/// read: the same bits whether each may start early or the host waits between them.
void check_chain() {
  constexpr int64_t kRows = 700, kWidth = 128, kGroups = 5;
  constexpr int kSteps = 64;
  std::mt19937 rng(11);
  std::vector<uint16_t> x(kRows * kWidth), w(kGroups * kWidth * kWidth);
  const auto random = [&] { return draw(rng, Fill::kRandom, ElemDtype::E4M3); };
  for (uint16_t& e : x) e = element_of(random(), kBf16);
  for (uint16_t& e : w) e = element_of(random() / 256, kBf16);
  const DeviceBuffer<uint16_t> right(w);
  const DeviceBuffer<int32_t> offs(std::vector<int32_t>{100, 100, 133, 600, 690});
  std::vector<uint16_t> results[2];
  for (auto& result : results) {
    const DeviceBuffer<uint16_t> first(x), second(x);
    const DeviceBuffer<uint16_t>* from = &first;
    const DeviceBuffer<uint16_t>* to = &second;
    for (int step = 0; step < kSteps; ++step) {
      const GroupedGemmArgs args{.kind = Gemm::OUT,
                                 .element = GemmElement::BF16,
                                 .output = FloatType::BF16,
                                 .M = kRows,
                                 .N = kWidth,
                                 .K = kWidth,
                                 .E = kGroups,
                                 .left = from->get(),
                                 .left_pitch = kWidth,
                                 .right = right.get(),
                                 .right_pitch = kWidth,
                                 .offs = offs.get(),
                                 .out = to->get(),
                                 .out_pitch = kWidth};
      require(cuda::launch_grouped_gemm(cuda::choose_grouped_gemm(args), args),
              "a product of a chain");
      if (&result == &results[0]) require(cudaDeviceSynchronize(), "a chain");
      std::swap(from, to);
    }
    require(cudaDeviceSynchronize(), "a chain");
    result = from->host();
  }
  if (results[0] != results[1]) {
    ++failures;
    std::printf("FAILED chain: products that start early differ from products that wait\n");
  }
}

void check_case(const Case& c, Fill fill) {
  double worst = 0;
  int runs = 0;
  const Problem p = make_problem(c, fill, ElemDtype::E4M3);
  const Problem mixed = make_problem(c, fill, ElemDtype::E5M2);
  for (Gemm kind : {Gemm::OUT, Gemm::GRAD_INPUT, Gemm::GRAD_WEIGHT}) {
    const std::vector<double> expected = reference_of(p, kind);
    for (GemmElement element : {GemmElement::E4M3, GemmElement::BF16}) {
      check_kind(c, p, kind, element, expected, worst, runs);
    }
    check_kind(c, mixed, kind, GemmElement::E5M2_E4M3, reference_of(mixed, kind), worst, runs);
  }
  std::printf("%-22s %-8s %3d runs, largest relative error %.1e\n", c.name,
              kFillNames[static_cast<int>(fill)], runs, worst);
  std::fflush(stdout);
}

/// `only`: the name of one case, for tools that slow kernels down a thousandfold; empty: all.
int check_all(const std::string& only) {
  check_choice();
  check_slices();
  std::vector<Case> chosen = cases();
  if (!only.empty()) std::erase_if(chosen, [&](const Case& c) { return c.name != only; });
  if (chosen.empty()) {
    std::printf("expected the name of a case, got '%s'; the cases are:\n", only.c_str());
    for (const Case& c : cases()) std::printf("  %s\n", c.name);
    return 2;
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no GPU\n");
    return failures == 0 ? 77 : 1;
  }
  check_chain();
  for (const Case& c : chosen) {
    for (Fill fill : kFills) check_case(c, fill);
  }
  std::printf(failures == 0 ? "all passed\n" : "%d FAILED\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace moe8

int main(int argc, char** argv) {
  return moe8::check_all(argc > 1 ? argv[1] : "");
}
