// SPDX-License-Identifier: BSD-3-Clause
// The CPU quantizers against the reference, bit for bit. Input: format, shape and groups; then the
// bits of the numbers. No Torch: this runs under valgrind.
#include <bit>
#include <cmath>
#include <vector>

#include "cpu/float8.h"
#include "cpu/mx.h"
#include "fuzz/fuzz_input.h"
#include "reference/float8.h"
#include "reference/mx.h"

namespace moe8 {
namespace {

using fuzz::FuzzInput;
using fuzz::require;

constexpr uint8_t kPoison = 0xA5;
constexpr cpu::Isa kIsas[] = {cpu::Isa::PORTABLE, cpu::Isa::AVX2, cpu::Isa::AVX512};
constexpr ElemDtype kElems[] = {ElemDtype::E4M3, ElemDtype::E5M2, ElemDtype::E2M3, ElemDtype::E3M2,
                                ElemDtype::E2M1};
constexpr ScaleCalculationMode kModes[] = {ScaleCalculationMode::FLOOR, ScaleCalculationMode::RCEIL,
                                           ScaleCalculationMode::CEIL, ScaleCalculationMode::EVEN};
constexpr FloatType kTypes[] = {FloatType::BF16, FloatType::F32};

int64_t size_of(FloatType type) {
  return type == FloatType::BF16 ? 2 : 4;
}

// Memory of exactly its size, so that a step past its end is noticed.
using Buffer = std::vector<uint8_t>;

struct Problem {
  ElemDtype elem{};
  ScaleCalculationMode mode{};
  bool pow2 = false;
  FloatType in{}, out{};
  int64_t outer = 0, length = 0, inner = 0;
  std::vector<int32_t> ends;  // of groups; none: the whole axis
  Buffer x;

  int64_t elements() const { return outer * length * inner; }
};

std::vector<int32_t> draw_groups(FuzzInput& input, int64_t length) {
  std::vector<int32_t> ends;
  int64_t end = 0;
  for (int64_t groups = input.integer(0, 6); groups > 0; --groups) {
    end = std::min(length, end + input.integer(0, 80));
    ends.push_back(static_cast<int32_t>(end));
  }
  return ends;
}

// Numbers from the input's bits where it has some; the rest repeats what is there with a twist, so
// that a short input fills a large tensor.
Buffer draw_numbers(FuzzInput& input, int64_t elements, FloatType type) {
  const std::string bits = input.rest();
  Buffer x(elements * size_of(type));
  uint32_t state = 0x9E3779B9U;
  for (size_t i = 0; i < x.size(); ++i) {
    state = state * 1664525U + 1013904223U;
    const auto noise = static_cast<uint8_t>(state >> 24);
    if (i < bits.size()) {
      x[i] = static_cast<uint8_t>(bits[i]);
    } else if (bits.empty()) {
      x[i] = noise;
    } else {
      x[i] = static_cast<uint8_t>(bits[i % bits.size()]) ^ (noise < 32 ? noise : 0);
    }
  }
  return x;
}

Problem draw_problem(FuzzInput& input) {
  Problem p;
  p.elem = input.pick(kElems);
  p.mode = input.pick(kModes);
  p.pow2 = input.flag();
  p.in = input.pick(kTypes);
  p.out = input.pick(kTypes);
  const bool grouped = input.flag();
  const bool along_rows = input.flag();
  p.outer = grouped ? 1 : input.integer(0, 4);
  p.length = input.integer(0, along_rows ? 600 : 200);
  p.inner = along_rows ? 1 : input.integer(0, 140);
  if (grouped) p.ends = draw_groups(input, p.length);
  p.x = draw_numbers(input, p.elements(), p.in);
  return p;
}

// Equal bit for bit, except that any NaN equals any NaN.
bool same_values(const Buffer& a, const Buffer& b, FloatType type) {
  if (type == FloatType::F32) {
    for (size_t i = 0; i < a.size(); i += 4) {
      float x = 0;
      float y = 0;
      std::memcpy(&x, &a[i], 4);
      std::memcpy(&y, &b[i], 4);
      if (std::bit_cast<uint32_t>(x) != std::bit_cast<uint32_t>(y) &&
          !(std::isnan(x) && std::isnan(y))) {
        return false;
      }
    }
    return true;
  }
  for (size_t i = 0; i < a.size(); i += 2) {
    const auto x = static_cast<uint16_t>(a[i] | a[i + 1] << 8);
    const auto y = static_cast<uint16_t>(b[i] | b[i + 1] << 8);
    if (x != y && !((x & 0x7FFF) > 0x7F80 && (y & 0x7FFF) > 0x7F80)) return false;
  }
  return true;
}

struct Outputs {
  Buffer data, scale, values, back;
};

void check_same(const Outputs& expected, const Outputs& got, FloatType type) {
  require(expected.data == got.data, "codes equal the reference's");
  require(expected.scale == got.scale, "scales equal the reference's");
  require(same_values(expected.values, got.values, type), "values equal the reference's");
  require(same_values(expected.back, got.back, type), "dequantized codes equal the reference's");
  require(same_values(got.values, got.back, type), "values are those of the codes");
}

// Work items must not depend on each other: a border somewhere in the middle.
template <typename Args, typename Kernel>
void in_two_parts(const Args& args, const Kernel& kernel) {
  const int64_t items = args.work_items();
  kernel(args, 0, items / 3);
  kernel(args, items / 3, items);
}

// ---- MX ---------------------------------------------------------------------
template <typename Quantize, typename Dequantize>
Outputs run_mx(const Problem& p, const Quantize& quantize, const Dequantize& dequantize) {
  const std::vector<MxBlock> blocks = mx_blocks(p.length, p.ends.empty() ? nullptr : p.ends.data(),
                                                static_cast<int64_t>(p.ends.size()));
  const auto count = static_cast<int64_t>(blocks.size());
  Outputs out{Buffer(p.elements(), kPoison), Buffer(p.outer * (count + 1) * p.inner, kPoison),
              Buffer(p.elements() * size_of(p.out), kPoison),
              Buffer(p.elements() * size_of(p.out), kPoison)};
  in_two_parts(MxQuantizeArgs{.elem = p.elem,
                              .mode = p.mode,
                              .x = p.x.data(),
                              .x_type = p.in,
                              .outer = p.outer,
                              .length = p.length,
                              .inner = p.inner,
                              .blocks = blocks.data(),
                              .block_count = count,
                              .scale_rows = count + 1,
                              .data = out.data.data(),
                              .scale = out.scale.data(),
                              .dequantized = out.values.data(),
                              .dequantized_type = p.out},
               quantize);
  in_two_parts(MxDequantizeArgs{.elem = p.elem,
                                .data = out.data.data(),
                                .scale = out.scale.data(),
                                .outer = p.outer,
                                .length = p.length,
                                .inner = p.inner,
                                .blocks = blocks.data(),
                                .block_count = count,
                                .scale_rows = count + 1,
                                .out = out.back.data(),
                                .out_type = p.out},
               dequantize);
  return out;
}

void check_mx(const Problem& p) {
  const Outputs expected = run_mx(p, reference::quantize_mx, reference::dequantize_mx);
  for (const cpu::Isa isa : kIsas) {
    if (!cpu::has_isa(isa)) continue;
    const Outputs got = run_mx(
        p, [&](const auto& a, int64_t b, int64_t e) { cpu::quantize_mx(a, b, e, isa); },
        [&](const auto& a, int64_t b, int64_t e) { cpu::dequantize_mx(a, b, e, isa); });
    check_same(expected, got, p.out);
  }
}

// ---- Float8 -----------------------------------------------------------------
std::vector<Float8Set> sets_of(const Problem& p) {
  if (p.ends.empty()) return {{0, p.length}};
  std::vector<Float8Set> sets;
  int64_t begin = 0;
  for (const int32_t end : p.ends) {
    sets.push_back({begin, end - begin});
    begin = end;
  }
  return sets;
}

template <typename Quantize, typename Dequantize>
Outputs run_float8(const Problem& p, const Quantize& quantize, const Dequantize& dequantize) {
  const std::vector<Float8Set> sets = sets_of(p);
  const auto count = static_cast<int64_t>(sets.size());
  std::vector<float> scale(p.outer * count * p.inner, -7.0F);
  Outputs out{Buffer(p.elements(), kPoison),
              {},
              Buffer(p.elements() * size_of(p.out), kPoison),
              Buffer(p.elements() * size_of(p.out), kPoison)};
  in_two_parts(Float8QuantizeArgs{.elem = p.elem,
                                  .round_scales_to_power_of_2 = p.pow2,
                                  .x = p.x.data(),
                                  .x_type = p.in,
                                  .outer = p.outer,
                                  .length = p.length,
                                  .inner = p.inner,
                                  .sets = sets.data(),
                                  .set_count = count,
                                  .scale = scale.data(),
                                  .scale_is_given = false,
                                  .data = out.data.data(),
                                  .dequantized = out.values.data(),
                                  .dequantized_type = p.out},
               quantize);
  in_two_parts(Float8DequantizeArgs{.elem = p.elem,
                                    .data = out.data.data(),
                                    .scale = scale.data(),
                                    .outer = p.outer,
                                    .length = p.length,
                                    .inner = p.inner,
                                    .sets = sets.data(),
                                    .set_count = count,
                                    .out = out.back.data(),
                                    .out_type = p.out},
               dequantize);
  const auto* bytes = reinterpret_cast<const uint8_t*>(scale.data());
  out.scale.assign(bytes, bytes + scale.size() * sizeof(float));
  return out;
}

// The largest magnitude of all numbers, as float32 bits: what a scale for a whole tensor is made
// of.
uint32_t amax_of(const Problem& p) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < p.elements(); ++i) {
    uint32_t bits = 0;
    if (p.in == FloatType::F32) {
      std::memcpy(&bits, &p.x[i * 4], 4);
    } else {
      bits = static_cast<uint32_t>(p.x[i * 2]) << 16 | static_cast<uint32_t>(p.x[i * 2 + 1]) << 24;
    }
    largest = std::max(largest, bits & 0x7FFFFFFFU);
  }
  return largest;
}

void check_float8(const Problem& p) {
  const Outputs expected = run_float8(p, reference::quantize_float8, reference::dequantize_float8);
  for (const cpu::Isa isa : kIsas) {
    if (!cpu::has_isa(isa)) continue;
    const Outputs got = run_float8(
        p, [&](const auto& a, int64_t b, int64_t e) { cpu::quantize_float8(a, b, e, isa); },
        [&](const auto& a, int64_t b, int64_t e) { cpu::dequantize_float8(a, b, e, isa); });
    check_same(expected, got, p.out);
    require(cpu::float8_amax(p.x.data(), p.in, 0, p.elements(), isa) == amax_of(p),
            "the amax of a tensor is its largest magnitude");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  fuzz::FuzzInput input(bytes, size);
  const bool mx = input.flag();
  Problem problem = draw_problem(input);
  if (mx) {
    check_mx(problem);
  } else {
    if (problem.elem != ElemDtype::E5M2) problem.elem = ElemDtype::E4M3;
    check_float8(problem);
  }
  return 0;
}

}  // namespace moe8
