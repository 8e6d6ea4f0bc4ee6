// SPDX-License-Identifier: BSD-3-Clause
#include "models/quantized_weights.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
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
constexpr int64_t kBytesOfRun = int64_t{1}
                                << 20;  // of rows on their way: what a core's cache holds

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
struct Fp8Scales {
  at::Tensor scales;      // float32
  int64_t rows, columns;  // for which each is; the last ones may have fewer
};

Fp8Scales read_fp8_scales(const HfFiles& files, const std::string& name,
                          const std::vector<int64_t>& shape) {
  const int64_t out = shape[0], in = shape[1];
  if (files.contains(name + kScaleInv)) {
    check_shape(files, name + kScaleInv, {blocks_of(out, kFp8Block), blocks_of(in, kFp8Block)});
    return {files.tensor(name + kScaleInv).to(at::kFloat), kFp8Block, kFp8Block};
  }
  const std::string scales = name + kScale;
  const std::string& dtype = files.entry(scales).dtype;
  if (dtype == "U8") {
    check_shape(files, scales, {out, blocks_of(in, kMxBlock)});
    return {files.tensor(scales).view(at::kFloat8_e8m0fnu).to(at::kFloat), 1, kMxBlock};
  }
  if (dtype != "F32" && dtype != "BF16") wrong_tensor(files, scales, "F32, BF16 or U8");
  check_shape(files, scales, {out, 1});
  return {files.tensor(scales).to(at::kFloat), 1, in};
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

PlainRows::PlainRows(const HfFiles& files, const std::string& name,
                     const std::vector<int64_t>& shape)
    : files_(files), name_(name), shape_(shape) {
  check_shape(files, name, shape);
  const std::string& dtype = files.entry(name).dtype;
  const bool has_scales = files.contains(name + kScaleInv) || files.contains(name + kScale);
  const bool is_codes = dtype == kFp8 && shape.size() == 2 && has_scales;
  if (!is_codes && dtype != "BF16" && dtype != "F32" && dtype != "F16") {
    wrong_tensor(files, name, "BF16, F16 or F32");
  }
  type_ = find_safetensors_dtype(dtype)->type;
  if (!is_codes) return;
  const Fp8Scales found = read_fp8_scales(files, name, shape);
  scales_ = found.scales, scale_rows_ = found.rows, scale_columns_ = found.columns;
}

int64_t PlainRows::row_bytes() const {
  const SafetensorsEntry& entry = files_.entry(name_);
  return shape_[0] == 0 ? 0 : static_cast<int64_t>(entry.end - entry.begin) / shape_[0];
}

at::Tensor PlainRows::rows(int64_t first, int64_t count) const {
  std::vector<int64_t> sizes = shape_;
  sizes[0] = count;
  const at::Tensor bytes = at::empty(sizes, at::dtype(type_));
  files_.read_rows(name_, first, bytes);
  if (!scales_.defined()) return bytes;
  const int64_t above = first / scale_rows_, below = blocks_of(first + count, scale_rows_);
  const at::Tensor spread = scales_.narrow(0, above, below - above)
                                .repeat_interleave(scale_rows_, 0)
                                .narrow(0, first - above * scale_rows_, count)
                                .repeat_interleave(scale_columns_, 1)
                                .narrow(1, 0, sizes[1]);
  return (bytes.to(at::kFloat) * spread).to(at::kBFloat16);
}

void PlainRows::read(int64_t first, const at::Tensor& out) const {
  const bool is_as_it_lies =
      !scales_.defined() && out.scalar_type() == type_ && out.is_cpu() && out.is_contiguous();
  if (is_as_it_lies) {
    files_.read_rows(name_, first, out);
    return;
  }
  const int64_t count = out.size(0);
  const int64_t run = std::max<int64_t>(1, kBytesOfRun / std::max<int64_t>(1, row_bytes()));
  for (int64_t begin = 0; begin < count; begin += run) {
    const int64_t size = std::min(run, count - begin);
    out.narrow(0, begin, size).copy_(rows(first + begin, size));
  }
}

StackedRows::StackedRows(const HfFiles& files, const std::string& name, int64_t experts,
                         int64_t out, int64_t in)
    : files_(files), name_(name) {
  if (!files.contains(name + kBlocks)) {
    plain_.emplace(files, name, std::vector<int64_t>{experts, in, out});
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
}

at::Tensor StackedRows::part_of(const char* part, int64_t expert) const {
  std::vector<int64_t> sizes = files_.entry(name_ + part).shape;
  sizes[0] = 1;
  const at::Tensor bytes = at::empty(sizes, at::dtype(at::kByte));
  files_.read_rows(name_ + part, expert, bytes);
  return bytes.squeeze(0);
}

at::Tensor StackedRows::of(int64_t expert) const {
  if (plain_) return plain_->rows(expert, 1).squeeze(0).t();
  return dequantized_mxfp4(part_of(kBlocks, expert), part_of(kBlockScales, expert));
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
