// SPDX-License-Identifier: BSD-3-Clause
// The MX kernel as codes and scales, and the packing of 4-bit codes.
#include "cuda/quantize/mx.cuh"

namespace moe8::cuda {
namespace {

template <typename T>
MxKernel of_elem(ElemDtype elem) {
  using enum ElemDtype;
  switch (elem) {
    case E4M3:
      return quantize_mx<T, Codes, E4M3>;
    case E5M2:
      return quantize_mx<T, Codes, E5M2>;
    case E2M3:
      return quantize_mx<T, Codes, E2M3>;
    case E3M2:
      return quantize_mx<T, Codes, E3M2>;
    case E2M1:
      return quantize_mx<T, Codes, E2M1>;
  }
  return nullptr;
}

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    pack_nibbles(const uint8_t* codes, int64_t count, uint8_t* packed) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count / 2; i += step) {
    packed[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
  }
}

}  // namespace

MxKernel mx_codes_kernel(FloatType x, ElemDtype elem) {
  return x == FloatType::BF16 ? of_elem<BFloat16>(elem) : of_elem<float>(elem);
}

cudaError_t launch_pack_nibbles(const uint8_t* codes, int64_t count, uint8_t* packed,
                                cudaStream_t stream) {
  if (count < 2) return cudaSuccess;
  constexpr int64_t kMostBlocks = 132 * 8;
  const int64_t blocks = (count / 2 + kThreads - 1) / kThreads;
  pack_nibbles<<<static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks), kThreads, 0,
                 stream>>>(codes, count, packed);
  return cudaGetLastError();
}

}  // namespace moe8::cuda
