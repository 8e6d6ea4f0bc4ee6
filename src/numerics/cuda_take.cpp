// SPDX-License-Identifier: BSD-3-Clause
// The kernels of src/cuda/numerics/.
#include <algorithm>
#include <climits>

#include "cuda/numerics/samples.h"
#include "device/cuda_launch.h"
#include "device/implementation.h"
#include "numerics/sample_memory.h"
#include "numerics/take.h"
#include "quantize/check_input.h"

namespace moe8 {
namespace {

constexpr const char* kOp = "NumericsMonitor";
constexpr int64_t kRowsOfChunk = 128;
constexpr int64_t kMaxChunks = 64;    // of a group: what they add up to is brought to the host
constexpr int64_t kMostChunks = 128;  // of all groups

bool is_readable(const at::Tensor& x) {
  const bool fits = x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat;
  return x.is_cuda() && fits && holds_its_values(x) && !kernels_refusal(x.device());
}

bool is_takeable(const TensorPart& part) {
  return is_readable(part.from) && part.axes.size() <= cuda::kPieceAxes &&
         part.to.numel() <= INT_MAX && part.to.numel() > 0;
}

cuda::Piece piece_of(const TensorPart& part) {
  static constexpr PickedRun kOne{0, 1, 1};
  cuda::Piece piece{part.from.const_data_ptr(),
                    part.to.mutable_data_ptr(),
                    float_type(part.from.scalar_type()),
                    {}};
  const size_t missing = cuda::kPieceAxes - part.axes.size();
  for (size_t a = 0; a < cuda::kPieceAxes; ++a) {
    piece.axes[a] = a < missing
                        ? cuda::PieceAxis{0, {&kOne, 1}}
                        : cuda::PieceAxis{part.from.stride(static_cast<int64_t>(a - missing)),
                                          part.axes[a - missing]};
  }
  return piece;
}

}  // namespace

bool cuda_take_parts(const std::vector<TensorPart>& parts, double phase) {
  size_t runs = 0;
  for (const TensorPart& part : parts) {
    if (!is_takeable(part)) return false;
    runs += cuda::kPieceAxes - part.axes.size();
    for (const Picks& picks : part.axes) runs += picks.size();
  }
  if (parts.empty() || parts.size() > cuda::kMaxPieces || runs > cuda::kMaxRuns) return false;
  std::vector<cuda::Piece> pieces;
  pieces.reserve(parts.size());
  for (const TensorPart& part : parts) pieces.push_back(piece_of(part));
  const Launch launch(parts.front().from.device());
  check_launch(kOp, cuda::launch_take_pieces(pieces, phase, launch.stream));
  return true;
}

std::optional<at::Tensor> cuda_largest_magnitudes(const at::Tensor& x, SampleMemory& memory) {
  const bool is_dense = x.is_non_overlapping_and_dense();
  const bool has_rows = x.dim() == 2 && x.stride(1) == 1 && x.stride(0) >= x.size(1);
  if (!is_readable(x) || x.numel() == 0 || (!is_dense && !has_rows)) return std::nullopt;
  const FloatType type = float_type(x.scalar_type());
  const cuda::MagnitudeMatrix matrix =
      is_dense ? cuda::MagnitudeMatrix{x.const_data_ptr(), type, 1, x.numel(), x.numel()}
               : cuda::MagnitudeMatrix{x.const_data_ptr(), type, x.size(0), x.size(1), x.stride(0)};
  const Launch launch(x.device());
  at::Tensor parts = memory.allot(x.device(), {cuda::magnitude_parts(matrix)}, at::kFloat);
  check_launch(kOp, cuda::launch_largest_magnitudes(
                        matrix, static_cast<float*>(parts.mutable_data_ptr()), launch.stream));
  return parts;
}

std::optional<at::Tensor> cuda_products_of_rows(const at::Tensor& left, const at::Tensor& right,
                                                const Picks& groups, SampleMemory& memory) {
  const int64_t B = left.size(1), C = right.size(1);
  const auto count = static_cast<int64_t>(groups.size());
  if (!is_readable(left) || !is_readable(right) || !left.is_contiguous() ||
      !right.is_contiguous() || std::max(B, C) > cuda::kMaxBlockSide || count > cuda::kMaxRuns) {
    return std::nullopt;
  }
  int64_t longest = 0;
  for (const PickedRun& group : groups) longest = std::max(longest, group.size);
  const int64_t most = std::clamp<int64_t>(kMostChunks / count, 1, kMaxChunks);
  const int64_t chunks = std::clamp<int64_t>(longest / kRowsOfChunk, 1, most);
  const Launch launch(left.device());
  at::Tensor out = memory.allot(left.device(), {count, chunks, B, C}, at::kDouble);
  check_launch(
      kOp, cuda::launch_block_products(
               {left.const_data_ptr(), right.const_data_ptr(), float_type(left.scalar_type()),
                float_type(right.scalar_type()), static_cast<int32_t>(B), static_cast<int32_t>(C),
                static_cast<int32_t>(chunks), groups, static_cast<double*>(out.mutable_data_ptr())},
               launch.stream));
  return out;
}

}  // namespace moe8
