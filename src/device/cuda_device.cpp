// SPDX-License-Identifier: BSD-3-Clause
#include "device/cuda_device.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <array>
#include <atomic>

#include "base/plain_text.h"
#include "device/cuda_driver.h"

namespace moe8 {
namespace {

// The driver's handle; -1 where it knows no such GPU.
int handle_of(const c10::Device& device) {
  const int index = device.has_index()
                        ? static_cast<int>(device.index())
                        : c10::impl::VirtualGuardImpl(device.type()).getDevice().index();
  int handle = -1;
  const CudaDriver* const driver = cuda_driver();
  return driver && driver->device_get(&handle, index) == 0 ? handle : -1;
}

int ask_capability(const c10::Device& device) {
  const int handle = handle_of(device);
  if (handle < 0) return 0;
  int major = 0, minor = 0;
  cuda_driver()->device_get_attribute(&major, CudaDriver::kCapabilityMajor, handle);
  cuda_driver()->device_get_attribute(&minor, CudaDriver::kCapabilityMinor, handle);
  return 10 * major + minor;
}

}  // namespace

StreamId current_stream(const c10::Device& device) {
  if (!device.is_cuda()) return {};
  void* const stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
  const CudaDriver* const driver = cuda_driver();
  if (!driver || !stream) return {stream, 0};  // the default stream cannot be captured
  int status = 0;
  uint64_t capture = 0;
  const bool answered = driver->stream_get_capture_info(stream, &status, &capture) == 0;
  return {stream, answered && status == CudaDriver::kCaptureActive ? capture : 0};
}

std::string device_name(const c10::Device& device) {
  if (!device.is_cuda()) return "";
  const int handle = handle_of(device);
  char name[256] = "";
  if (handle >= 0) cuda_driver()->device_get_name(name, sizeof name, handle);
  return name;
}

int compute_capability(const c10::Device& device) {
  if (!device.is_cuda()) return 0;
  static std::array<std::atomic<int>, 64> known{};  // 0: not asked yet
  if (!device.has_index() || device.index() >= static_cast<int>(known.size())) {
    return ask_capability(device);
  }
  int capability = known[device.index()].load(std::memory_order_relaxed);
  if (capability == 0) {
    capability = ask_capability(device);
    known[device.index()].store(capability, std::memory_order_relaxed);
  }
  return capability;
}

std::string describe_capability(const c10::Device& device) {
  const int capability = compute_capability(device);
  return concat(capability / 10, ".", capability % 10);
}

}  // namespace moe8
