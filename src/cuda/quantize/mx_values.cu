// SPDX-License-Identifier: BSD-3-Clause
// The MX kernel as quantize-dequantize (codes are never stored), and the launch of both kinds.
#include "cuda/quantize/mx.cuh"

namespace moe8::cuda {
namespace {

template <typename T, typename Value>
MxKernel of_elem(ElemDtype elem) {
  using enum ElemDtype;
  using Out = Packet<Value>;
  switch (elem) {
    case E4M3:
      return quantize_mx<T, Out, E4M3>;
    case E5M2:
      return quantize_mx<T, Out, E5M2>;
    case E2M3:
      return quantize_mx<T, Out, E2M3>;
    case E3M2:
      return quantize_mx<T, Out, E3M2>;
    case E2M1:
      return quantize_mx<T, Out, E2M1>;
  }
  return nullptr;
}

bool is_aligned_to(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

bool may_access_packets(const MxArgs& a) {
  bool aligned = a.columns % 8 == 0 && is_aligned_to(a.x, 16);
  for (const MxOutputs* o : {&a.row_blocks, &a.column_blocks}) {
    aligned &= is_aligned_to(o->values, 16) && is_aligned_to(o->codes, 8);
  }
  return aligned && is_aligned_to(a.column_blocks.scale, 8);
}

}  // namespace

MxKernel mx_values_kernel(FloatType x, FloatType values, ElemDtype elem) {
  if (x == FloatType::BF16) {
    return values == FloatType::BF16 ? of_elem<BFloat16, BFloat16>(elem)
                                     : of_elem<BFloat16, float>(elem);
  }
  return values == FloatType::BF16 ? of_elem<float, BFloat16>(elem) : of_elem<float, float>(elem);
}

LaunchStatus launch_mx(const MxArgs& a, cudaStream_t stream) {
  const bool values = a.row_blocks.values != nullptr || a.column_blocks.values != nullptr;
  const bool codes = a.row_blocks.codes != nullptr || a.column_blocks.codes != nullptr;
  Mx p{a, blocks_of(a.groups), 0, 0, may_access_packets(a)};
  if (!a.groups.is_valid()) return refused("more rows than 32 bits count");
  if (values && codes) return refused("values and codes in one call");
  if (a.column_scale_rows > p.blocks.count) return refused("more scale rows than blocks");
  if (!a.joined.fits(a.groups)) return refused("rows that do not fit the joined result");
  if (a.groups.groups * a.joined.group_rows > INT32_MAX) {
    return refused("more joined rows than 32 bits count");
  }
  if (a.joined.is_joined() && (codes || a.row_blocks.scale || a.column_blocks.scale)) {
    return refused("codes or scales of joined rows");
  }
  constexpr int64_t kColumns = kMxWarps * kWarpColumns;
  p.wide = static_cast<int32_t>((a.columns + kColumns - 1) / kColumns * kMxWarps);
  p.warps = p.blocks.count * p.wide;
  if (p.warps == 0) return {};
  const MxKernel kernel = values ? mx_values_kernel(a.x_type, a.values_type, a.elem)
                                 : mx_codes_kernel(a.x_type, a.elem);
  return launch_early(kernel, p.warps / kMxWarps, kMxThreads, 0, stream, p);
}

}  // namespace moe8::cuda
