// SPDX-License-Identifier: BSD-3-Clause
// How kernels follow one another in a stream (programmatic dependent launch): the blocks of a
// kernel take their places while the kernel before it ends, and wait there. That saves the one to
// three microseconds that lie between two kernels otherwise.
//
// The rules that make it safe, for every kernel that launch_early() starts:
// 1. Every thread that touches global memory calls wait_for_stream() before, and no block ends
//    without it. So all that came earlier in the stream is complete and visible, and a kernel that
//    waits for this one need not know about the ones before.
// 2. let_next_start() only after wait_for_stream(). So where a kernel has started, all kernels but
//    the one just before it are complete.
// A kernel launched in the usual way starts when all before it is complete, as ever.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/launch_status.h"

namespace moe8::cuda {

/// Until all kernels before this one in the stream are complete and what they wrote is visible.
__device__ __forceinline__ void wait_for_stream() {
  cudaGridDependencySynchronize();
}

/// The next kernel may take its places as soon as all blocks of this one have called or ended.
__device__ __forceinline__ void let_next_start() {
  cudaTriggerProgrammaticLaunchCompletion();
}

/// What most kernels begin with.
__device__ __forceinline__ void follow_stream() {
  wait_for_stream();
  let_next_start();
}

/// kernel<<<blocks, threads, shared_bytes, stream>>>(args...), which may start early.
template <typename... Params>
LaunchStatus launch_early(void (*kernel)(Params...), int64_t blocks, int threads,
                          size_t shared_bytes, cudaStream_t stream,
                          const std::type_identity_t<Params>&... args) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args...);
  return {error, error == cudaSuccess ? nullptr : "the kernel launch"};
}

/// Multiprocessors of the current device; 1 when it does not say.
inline int multiprocessor_count() {
  int device = 0, count = 0;
  const bool told =
      cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
  return told && count > 0 ? count : 1;
}

}  // namespace moe8::cuda
