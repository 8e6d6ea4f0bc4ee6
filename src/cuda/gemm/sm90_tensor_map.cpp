// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/gemm/sm90_tensor_map.h"

#include <cuda_runtime_api.h>

namespace moe8::cuda::sm90 {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

// Asked of the runtime, so that the library does not link against the driver, which machines
// without a GPU lack.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess
             ? reinterpret_cast<Encode>(function)
             : nullptr;
}

}  // namespace

bool encode_tensor_map(CUtensorMap& map, const TensorMapSpec& spec) {
  static const Encode encode = find_encode();
  if (encode == nullptr) return false;
  constexpr int kRank = 3;
  constexpr int kSwizzleBytes = 128;
  const auto bytes = static_cast<cuuint64_t>(spec.element_bytes);
  const auto pitch = static_cast<cuuint64_t>(spec.pitch) * bytes;
  const cuuint64_t sizes[kRank] = {static_cast<cuuint64_t>(spec.inner),
                                   static_cast<cuuint64_t>(spec.middle),
                                   static_cast<cuuint64_t>(spec.outer)};
  const cuuint64_t strides[kRank - 1] = {pitch, pitch * static_cast<cuuint64_t>(spec.middle)};
  const cuuint32_t box[kRank] = {static_cast<cuuint32_t>(kSwizzleBytes / spec.element_bytes),
                                 static_cast<cuuint32_t>(spec.box_middle), 1};
  const cuuint32_t every[kRank] = {1, 1, 1};
  const auto succeeds = [&] {
    return encode(&map,
                  spec.element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                          : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                  kRank, const_cast<void*>(spec.data), sizes, strides, box, every,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
  };
  // The driver needs a context in this thread, which the runtime binds when one of its calls needs
  // it: where a product is the first work of a thread (of a backward, say), none has yet.
  return succeeds() || (cudaFree(nullptr) == cudaSuccess && succeeds());
}

}  // namespace moe8::cuda::sm90
