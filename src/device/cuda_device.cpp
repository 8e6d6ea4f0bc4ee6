// SPDX-License-Identifier: BSD-3-Clause
#include "device/cuda_device.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/StringUtil.h>

#include <array>
#include <atomic>

namespace moe8 {
namespace {

constexpr int kHopper = 90;     // the kernels are built for sm_90a alone
constexpr int kBlackwell = 10;  // major; the quantizers are built for sm_100 too, which serves 10.x

int ask_capability(int index) {
  int major = 0, minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  return 10 * major + minor;
}

int index_of(const c10::Device& device) {
  return device.has_index() ? static_cast<int>(device.index()) : c10::cuda::current_device();
}

}  // namespace

StreamId current_stream(const c10::Device& device) {
  if (!device.is_cuda()) return {};
  cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device.index()).stream();
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long capture = 0;  // NOLINT(google-runtime-int): CUDA's type
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, &capture));
  return {stream, status == cudaStreamCaptureStatusActive ? capture : 0};
}

std::string device_name(const c10::Device& device) {
  if (!device.is_cuda()) return "";
  cudaDeviceProp properties{};
  const int index = index_of(device);
  C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  return properties.name;
}

int compute_capability(const c10::Device& device) {
  if (!device.is_cuda()) return 0;
  static std::array<std::atomic<int>, 64> known{};  // 0: not asked yet
  const int index = index_of(device);
  if (index >= static_cast<int>(known.size())) return ask_capability(index);
  int capability = known[index].load(std::memory_order_relaxed);
  if (capability == 0) {
    capability = ask_capability(index);
    known[index].store(capability, std::memory_order_relaxed);
  }
  return capability;
}

std::optional<std::string> quantizer_refusal(const c10::Device& device) {
  if (device.is_cpu()) return std::nullopt;
  if (!device.is_cuda()) return c10::str("moe8 has no kernels for ", device);
  const int capability = compute_capability(device);
  if (capability == kHopper || capability / 10 == kBlackwell) return std::nullopt;
  return c10::str(
      "moe8's CUDA kernels are built for compute capability 9.0 (H100, H200) and its "
      "quantizers for 10.x too; ",
      device, " has ", capability / 10, ".", capability % 10);
}

}  // namespace moe8
