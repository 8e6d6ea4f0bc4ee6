// SPDX-License-Identifier: BSD-3-Clause
#include "models/quantized_weights.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ldexp.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "base/check.h"
#include "io/safetensors_header.h"
#include "models/config_json.h"
#include "moe8/float8.h"
#include "moe8/formats.h"
#include "moe8/mx.h"

namespace moe8 {
namespace {

constexpr const char* kBlocks = "_blocks";       // of MXFP4: uint8 [..., blocks, 16]
constexpr const char* kBlockScales = "_scales";  // uint8 [..., blocks], E8M0
constexpr const char* kScaleInv = "_scale_inv";  // of FP8: [rows / 128, columns / 128]
constexpr const char* kScale = "_scale";         // of FP8: [rows, 1], or bytes [rows, columns / 32]
constexpr const char* kFp8 = "F8_E4M3";
constexpr int64_t kFp8Block = 128;

std::string shape_text(const std::vector<int64_t>& shape) {
  return concat(at::IntArrayRef(shape));
}

void check_shape(const HfFiles& files, const std::string& name, const std::vector<int64_t>& shape) {
  if (files.entry(name).shape != shape) wrong_tensor(files, name, shape_text(shape));
}

int64_t blocks_of(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}

// ---- MXFP4 --------------------------------------------------------------------
// Two codes in a byte, the first in its low half. [rows, columns] bf16, exact.
at::Tensor dequantized_mxfp4(const at::Tensor& blocks, const at::Tensor& scales) {
  constexpr int kBias = 127;
  const at::Tensor values = at::tensor(
      {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0},
      at::kFloat);
  const at::Tensor codes = at::stack({blocks.bitwise_and(15), blocks.bitwise_right_shift(4)}, -1);
  const at::Tensor exponents = scales.to(at::kInt).sub_(kBias).unsqueeze(-1);
  const at::Tensor elements =
      values.index_select(0, codes.flatten().to(at::kInt)).view({-1, kMxBlock});
  return at::ldexp(elements, exponents.view({-1, 1})).to(at::kBFloat16).view({blocks.size(0), -1});
}

// ---- FP8 ----------------------------------------------------------------------
// Each scale for `rows` x `columns` codes; the last ones may have fewer.
at::Tensor dequantized_fp8(const at::Tensor& codes, const at::Tensor& scales, int64_t rows,
                           int64_t columns) {
  const at::Tensor spread =
      scales.to(at::kFloat).repeat_interleave(rows, 0).repeat_interleave(columns, 1);
  return (codes.to(at::kFloat) * spread.narrow(0, 0, codes.size(0)).narrow(1, 0, codes.size(1)))
      .to(at::kBFloat16);
}

at::Tensor read_fp8(const HfFiles& files, const std::string& name,
                    const std::vector<int64_t>& shape) {
  const int64_t out = shape[0], in = shape[1];
  if (files.contains(name + kScaleInv)) {
    check_shape(files, name + kScaleInv, {blocks_of(out, kFp8Block), blocks_of(in, kFp8Block)});
    return dequantized_fp8(files.tensor(name), files.tensor(name + kScaleInv), kFp8Block,
                           kFp8Block);
  }
  const std::string scales = name + kScale;
  const std::string& dtype = files.entry(scales).dtype;
  if (dtype == "U8") {
    check_shape(files, scales, {out, blocks_of(in, kMxBlock)});
    return dequantized_fp8(files.tensor(name), files.tensor(scales).view(at::kFloat8_e8m0fnu), 1,
                           kMxBlock);
  }
  if (dtype != "F32" && dtype != "BF16") wrong_tensor(files, scales, "F32, BF16 or U8");
  check_shape(files, scales, {out, 1});
  return dequantized_fp8(files.tensor(name), files.tensor(scales), 1, in);
}

bool is_mx(ExportedWeights weights) {
  return weights == ExportedWeights::MXFP8_FLOOR || weights == ExportedWeights::MXFP8_RCEIL;
}

// Of which products are made in low precision; routers and embeddings are never.
bool is_matrix_of_products(std::string_view ours) {
  constexpr std::array<std::string_view, 4> kOwners{".attention.w", ".feed_forward.w",
                                                    ".shared_experts.w", ".moe.experts.w"};
  return !ours.ends_with(".bias") && std::ranges::any_of(kOwners, [&](std::string_view owner) {
    return ours.find(owner) != std::string_view::npos;
  });
}

}  // namespace

void wrong_tensor(const HfFiles& files, const std::string& name, const std::string& expected) {
  const SafetensorsEntry& entry = files.entry(name);
  fail(kPretrained, files.folder(),
       concat("tensor ", shown(name), ": expected ", expected, ", got ", entry.dtype, " ",
              shape_text(entry.shape), ". Does config.json belong to these files?"));
}

at::Tensor read_plain(const HfFiles& files, const std::string& name,
                      const std::vector<int64_t>& shape) {
  check_shape(files, name, shape);
  const std::string& dtype = files.entry(name).dtype;
  const bool has_scales = files.contains(name + kScaleInv) || files.contains(name + kScale);
  if (dtype == kFp8 && shape.size() == 2 && has_scales) return read_fp8(files, name, shape);
  if (dtype != "BF16" && dtype != "F32" && dtype != "F16") {
    wrong_tensor(files, name, "BF16, F16 or F32");
  }
  return files.tensor(name);
}

StackedRows::StackedRows(const HfFiles& files, const std::string& name, int64_t experts,
                         int64_t out, int64_t in) {
  if (!files.contains(name + kBlocks)) {
    rows_ = read_plain(files, name, {experts, in, out}).transpose(1, 2);
    return;
  }
  if (in % kMxBlock != 0) wrong_tensor(files, name + kBlocks, "rows of whole blocks of 32");
  const int64_t blocks = in / kMxBlock;
  for (const char* part : {kBlocks, kBlockScales}) {
    const std::string of_part = name + part;
    if (!files.contains(of_part)) {
      fail(kPretrained, files.folder(),
           concat("tensor ", shown(of_part), ": expected beside ", shown(name + kBlocks),
                  ", got none"));
    }
    if (files.entry(of_part).dtype != "U8") wrong_tensor(files, of_part, "U8");
  }
  check_shape(files, name + kBlocks, {experts, out, blocks, kMxBlock / 2});
  check_shape(files, name + kBlockScales, {experts, out, blocks});
  blocks_ = files.tensor(name + kBlocks);
  scales_ = files.tensor(name + kBlockScales);
}

at::Tensor StackedRows::of(int64_t expert) const {
  return rows_.defined() ? rows_.select(0, expert)
                         : dequantized_mxfp4(blocks_.select(0, expert), scales_.select(0, expert));
}

std::string held_name(const HfFiles& files, const std::string& name) {
  return files.contains(name + kBlocks) ? name + kBlocks : name;
}

bool is_quantized_part(const std::string& name, const HfFiles& files) {
  const auto without = [&](std::string_view suffix) {
    return name.ends_with(suffix) ? name.substr(0, name.size() - suffix.size()) : std::string();
  };
  const auto is_of_codes = [&](const std::string& matrix) {
    return files.contains(matrix) && files.entry(matrix).dtype == kFp8;
  };
  return is_of_codes(without(kScaleInv)) || is_of_codes(without(kScale)) ||
         (name.ends_with(kBlockScales) && files.contains(without(kBlockScales) + kBlocks));
}

// ---- writing ------------------------------------------------------------------
bool is_quantized(const HfTensor& tensor, ExportedWeights weights) {
  return weights != ExportedWeights::PLAIN && is_matrix_of_products(tensor.parts.front().first);
}

uint64_t bytes_of(const HfTensor& tensor, ExportedWeights weights, at::ScalarType dtype) {
  const auto elements = static_cast<uint64_t>(tensor.elements);
  const auto itemsize = static_cast<uint64_t>(c10::elementSize(dtype));
  if (!is_quantized(tensor, weights)) return itemsize * elements;
  return elements + (is_mx(weights) ? elements / kMxBlock
                                    : itemsize * elements / static_cast<uint64_t>(tensor.in));
}

std::vector<std::pair<std::string, at::Tensor>> quantized(const std::string& name,
                                                          const at::Tensor& matrix,
                                                          ExportedWeights weights) {
  if (is_mx(weights)) {
    const bool floors = weights == ExportedWeights::MXFP8_FLOOR;
    const MXTensor made =
        quantize_mx(matrix, ElemDtype::E4M3,
                    floors ? ScaleCalculationMode::FLOOR : ScaleCalculationMode::RCEIL);
    return {{name, made.data}, {name + kScale, made.scale.view(at::kByte)}};
  }
  const Float8Tensor made =
      quantize_float8(matrix, Float8Granularity::axiswise(-1), ElemDtype::E4M3,
                      /*round_scales_to_power_of_2=*/true);
  return {{name, made.data}, {name + kScale, made.scale.reciprocal().to(matrix.scalar_type())}};
}

void check_can_quantize(const std::vector<HfTensor>& tensors, ExportedWeights weights) {
  for (const HfTensor& tensor : tensors) {
    if (!is_quantized(tensor, weights)) continue;
    const TensorLayout layout = tensor.parts.front().second;
    MOE8_CHECK(layout == TensorLayout::SAME || layout == TensorLayout::EXPERTS, kPretrained,
               "weights", "expected a family whose files hold a matrix per expert, got ",
               shown(tensor.name),
               ", which is a stack of them: no names of scales are known for it. Export without "
               "quantization.");
    MOE8_CHECK(!is_mx(weights) || tensor.in % kMxBlock == 0, kPretrained, "weights",
               "expected rows of whole blocks of 32 elements, got ", tensor.in, " in ",
               shown(tensor.name), ". fp8_rowwise takes rows of any length.");
  }
}

}  // namespace moe8
