// SPDX-License-Identifier: BSD-3-Clause
// The quantizers of src/cpu over memory that Python owns: groups, threads, rows in no group.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <thread>
#include <variant>
#include <vector>

#include "base/check.h"
#include "cpu/float8.h"
#include "cpu/mx.h"
#include "format_code.h"
#include "guarded.h"
#include "interface.h"
#include "kernels/float8_args.h"
#include "kernels/mx_args.h"

namespace moe8::native {
namespace {

constexpr int64_t kTensorwiseChunk = 1 << 14;  // elements whose amax one work item finds

// kernel(begin, end) over [0, items) on at most `threads` threads, where the work is worth them.
template <typename Kernel>
void parallel(int64_t items, int64_t elements_per_item, int threads, const Kernel& kernel) {
  constexpr int64_t kElementsPerThread = 1 << 17;  // a thread that is started for it costs 20 us
  const int64_t grain =
      std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements_per_item));
  const int64_t parts = std::clamp<int64_t>(items / grain, 1, std::max(threads, 1));
  std::vector<std::jthread> helpers;
  for (int64_t part = 1; part < parts; ++part) {
    helpers.emplace_back([&, part] { kernel(items * part / parts, items * (part + 1) / parts); });
  }
  kernel(0, items / parts);
}

// What lies around the quantized axis, and its groups.
struct Axis {
  int64_t outer, length, inner;
  const int32_t* ends;  // null: no groups
  int64_t groups;

  int64_t end() const { return ends == nullptr ? length : groups == 0 ? 0 : ends[groups - 1]; }
  int64_t elements() const { return outer * length * inner; }

  void check(const char* op) const {
    int64_t previous = 0;
    for (int64_t e = 0; ends != nullptr && e < groups; ++e) {
      MOE8_CHECK(ends[e] >= previous, op, "offs",
                 "expected non-decreasing end rows from 0 on, got ", ends[e], " after ", previous,
                 " at index ", e);
      previous = ends[e];
    }
    MOE8_CHECK(previous <= length, op, "offs", "expected end rows of at most ", length,
               ", the rows there are, got ", previous);
  }

  // Zeros in the rows of no group; groups come with outer = 1.
  void clear_tail(void* result, int64_t element_bytes) const {
    if (result == nullptr || end() >= length) return;
    std::memset(static_cast<char*>(result) + end() * inner * element_bytes, 0,
                static_cast<size_t>((length - end()) * inner * element_bytes));
  }
};

size_t bytes_of(FloatType type) {
  return type == FloatType::BF16 ? 2 : 4;
}

// ---- MX -----------------------------------------------------------------------
std::vector<MxBlock> blocks_of(const Axis& axis) {
  if (axis.ends != nullptr && axis.groups == 0) return {};  // mx_blocks would see no groups
  return mx_blocks(axis.length, axis.ends, axis.groups);
}

void quantize_mx(const Axis& axis, MxQuantizeArgs args, int threads) {
  axis.check("quantize_mx");
  const std::vector<MxBlock> blocks = blocks_of(axis);
  args.outer = axis.outer;
  args.length = axis.length;
  args.inner = axis.inner;
  args.blocks = blocks.data();
  args.block_count = static_cast<int64_t>(blocks.size());
  parallel(args.work_items(), args.inner * kMxBlock, threads,
           [&](int64_t begin, int64_t end) { cpu::quantize_mx(args, begin, end); });
  axis.clear_tail(args.data, 1);
  axis.clear_tail(args.dequantized, static_cast<int64_t>(bytes_of(args.dequantized_type)));
  if (args.scale != nullptr && args.block_count < args.scale_rows) {
    std::memset(args.scale + args.block_count * args.inner, 0,
                static_cast<size_t>((args.scale_rows - args.block_count) * args.inner));
  }
}

// ---- FP8 ----------------------------------------------------------------------
std::vector<Float8Set> sets_of(const Axis& axis, bool tensorwise) {
  std::vector<Float8Set> sets;
  if (tensorwise) {
    for (int64_t at = 0; at < axis.length; at += kTensorwiseChunk) {
      sets.push_back({at, std::min(kTensorwiseChunk, axis.length - at)});
    }
    return sets;
  }
  if (axis.ends == nullptr) return {{0, axis.length}};
  int64_t begin = 0;
  for (int64_t group = 0; group < axis.groups; ++group) {
    sets.push_back({begin, axis.ends[group] - begin});
    begin = axis.ends[group];
  }
  return sets;
}

// Elements of one work item.
int64_t per_item(const Axis& axis, int64_t sets) {
  return std::min(axis.inner, Float8QuantizeArgs::kColumns) * axis.length /
         std::max<int64_t>(1, sets);
}

// The one scale of a tensor: its chunks' amax in parallel, then the largest.
float tensorwise_scale(const Float8QuantizeArgs& args, int threads) {
  std::vector<uint32_t> amax(static_cast<size_t>(args.set_count), 0);
  parallel(args.set_count, kTensorwiseChunk, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      amax[static_cast<size_t>(i)] =
          cpu::float8_amax(args.x, args.x_type, args.sets[i].begin, args.sets[i].size);
    }
  });
  const uint32_t largest = amax.empty() ? 0 : *std::max_element(amax.begin(), amax.end());
  return cpu::float8_scale_of(largest, args.elem, args.round_scales_to_power_of_2);
}

void quantize_float8(const Axis& axis, Float8QuantizeArgs args, bool tensorwise, int threads) {
  axis.check("quantize_float8");
  const std::vector<Float8Set> sets = sets_of(axis, tensorwise);
  args.outer = axis.outer;
  args.length = axis.length;
  args.inner = axis.inner;
  args.sets = sets.data();
  args.set_count = static_cast<int64_t>(sets.size());
  std::vector<float> repeated;
  if (tensorwise) {
    *args.scale = tensorwise_scale(args, threads);
    repeated.assign(sets.size(), *args.scale);
    args.scale = repeated.data();
    args.scale_is_given = true;
  }
  parallel(args.work_items(), per_item(axis, args.set_count), threads,
           [&](int64_t begin, int64_t end) { cpu::quantize_float8(args, begin, end); });
  axis.clear_tail(args.data, 1);
  axis.clear_tail(args.dequantized, static_cast<int64_t>(bytes_of(args.dequantized_type)));
}

FloatType type_of(int type) {
  return type == 0 ? FloatType::BF16 : FloatType::F32;
}

// ---- operands of products -------------------------------------------------------
void make_values(const Moe8Operand& o, const MxFormat& format, int threads) {
  MxQuantizeArgs args{};
  args.elem = format.elem;
  args.mode = format.mode;
  args.x = o.x;
  args.x_type = type_of(o.type);
  args.dequantized = o.values;
  args.dequantized_type = type_of(o.values_type);
  quantize_mx({o.outer, o.length, o.inner, o.ends, o.groups}, args, threads);
}

void make_values(const Moe8Operand& o, const Float8Format& format, int threads) {
  const bool tensorwise = format.granularity == ScalingGranularity::TENSORWISE;
  const Axis axis = tensorwise ? Axis{1, o.outer * o.length * o.inner, 1, nullptr, 0}
                               : Axis{o.outer, o.length, o.inner, o.ends, o.groups};
  const int64_t scales = axis.outer * std::max<int64_t>(axis.groups, 1) * axis.inner;
  std::vector<float> scale(static_cast<size_t>(scales));
  Float8QuantizeArgs args{};
  args.elem = format.elem;
  args.round_scales_to_power_of_2 = format.round_scales_to_power_of_2;
  args.x = o.x;
  args.x_type = type_of(o.type);
  args.scale = scale.data();
  args.dequantized = o.values;
  args.dequantized_type = type_of(o.values_type);
  quantize_float8(axis, args, tensorwise, threads);
}

void make_values(const Moe8Operand& o, const HighPrecision& /*format*/, int /*threads*/) {
  fail("moe8", "form", concat("expected a format of low precision, got ", o.form));
}

}  // namespace
}  // namespace moe8::native

using namespace moe8;          // NOLINT(google-build-using-namespace): C functions stand in none
using namespace moe8::native;  // NOLINT(google-build-using-namespace): C functions stand in none

int moe8_cpu_mx(int elem, int mode, const void* x, int type, int64_t outer, int64_t length,
                int64_t inner, const int32_t* ends, int64_t groups, uint8_t* data, uint8_t* scale,
                int64_t scale_rows, void* values, int values_type, int threads) {
  return guarded([&] {
    MxQuantizeArgs args{};
    args.elem = static_cast<ElemDtype>(elem);
    args.mode = static_cast<ScaleCalculationMode>(mode);
    args.x = x;
    args.x_type = type_of(type);
    args.scale_rows = scale_rows;
    args.data = data;
    args.scale = scale;
    args.dequantized = values;
    args.dequantized_type = type_of(values_type);
    quantize_mx({outer, length, inner, ends, groups}, args, threads);
  });
}

int moe8_cpu_mx_decode(int elem, const uint8_t* data, const uint8_t* scale, int64_t outer,
                       int64_t length, int64_t inner, const int32_t* ends, int64_t groups,
                       int64_t scale_rows, void* values, int values_type, int threads) {
  return guarded([&] {
    const Axis axis{outer, length, inner, ends, groups};
    axis.check("dequantize_mx");
    const std::vector<MxBlock> blocks = blocks_of(axis);
    const MxDequantizeArgs args{.elem = static_cast<ElemDtype>(elem),
                                .data = data,
                                .scale = scale,
                                .outer = outer,
                                .length = length,
                                .inner = inner,
                                .blocks = blocks.data(),
                                .block_count = static_cast<int64_t>(blocks.size()),
                                .scale_rows = scale_rows,
                                .out = values,
                                .out_type = type_of(values_type)};
    parallel(args.work_items(), inner * kMxBlock, threads,
             [&](int64_t begin, int64_t end) { cpu::dequantize_mx(args, begin, end); });
    axis.clear_tail(values, static_cast<int64_t>(bytes_of(args.out_type)));
  });
}

int moe8_cpu_float8(int elem, int power_of_2, int tensorwise, const void* x, int type,
                    int64_t outer, int64_t length, int64_t inner, const int32_t* ends,
                    int64_t groups, uint8_t* data, float* scale, void* values, int values_type,
                    int threads) {
  return guarded([&] {
    Float8QuantizeArgs args{};
    args.elem = static_cast<ElemDtype>(elem);
    args.round_scales_to_power_of_2 = power_of_2 != 0;
    args.x = x;
    args.x_type = type_of(type);
    args.scale = scale;
    args.data = data;
    args.dequantized = values;
    args.dequantized_type = type_of(values_type);
    quantize_float8({outer, length, inner, ends, groups}, args, tensorwise != 0, threads);
  });
}

int moe8_cpu_float8_decode(int elem, int tensorwise, const uint8_t* data, const float* scale,
                           int64_t outer, int64_t length, int64_t inner, const int32_t* ends,
                           int64_t groups, void* values, int values_type, int threads) {
  return guarded([&] {
    const Axis axis{outer, length, inner, ends, groups};
    axis.check("dequantize_float8");
    const std::vector<Float8Set> sets = sets_of(axis, tensorwise != 0);
    const std::vector<float> repeated(tensorwise != 0 ? sets.size() : 0,
                                      tensorwise != 0 ? *scale : 0.0f);
    const Float8DequantizeArgs args{.elem = static_cast<ElemDtype>(elem),
                                    .data = data,
                                    .scale = repeated.empty() ? scale : repeated.data(),
                                    .outer = outer,
                                    .length = length,
                                    .inner = inner,
                                    .sets = sets.data(),
                                    .set_count = static_cast<int64_t>(sets.size()),
                                    .out = values,
                                    .out_type = type_of(values_type)};
    parallel(args.work_items(), per_item(axis, args.set_count), threads,
             [&](int64_t begin, int64_t end) { cpu::dequantize_float8(args, begin, end); });
    axis.clear_tail(values, static_cast<int64_t>(bytes_of(args.out_type)));
  });
}

int moe8_cpu_values(const Moe8Operand* operands, int count, int threads) {
  return guarded([&] {
    for (const Moe8Operand& operand : std::span(operands, static_cast<size_t>(count))) {
      std::visit([&](const auto& format) { make_values(operand, format, threads); },
                 decode_format(operand.form));
    }
  });
}
