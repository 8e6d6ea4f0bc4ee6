// SPDX-License-Identifier: BSD-3-Clause
#include "train/profile/profiler.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <set>

namespace moe8 {
namespace {

namespace kineto = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;

void wait_for(const c10::Device& device) {
  if (device.is_cpu()) return;
  c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

}  // namespace

Profiler::Profiler(const c10::Device& device, Record record) : device_(device) {
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  std::set<ActivityType> activities;
  if (device.is_cuda()) activities.insert(ActivityType::CUDA);
  if (device.is_cpu() || record == Record::OPERATIONS) activities.insert(ActivityType::CPU);
  wait_for(device_);
  kineto::prepareProfiler(config, activities);
  kineto::enableProfiler(
      config, activities,
      {at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION, at::RecordScope::USER_SCOPE});
}

Profiler::~Profiler() {
  if (is_running_) kineto::disableProfiler();
}

std::vector<ProfiledEvent> Profiler::stop(const std::string& trace) {
  wait_for(device_);
  is_running_ = false;
  const auto result = kineto::disableProfiler();
  std::vector<ProfiledEvent> events;
  for (const kineto::KinetoEvent& event : result->events()) {
    const bool is_on_gpu = event.deviceType() == c10::DeviceType::CUDA;
    events.push_back({.name = event.name(),
                      .is_on_gpu = is_on_gpu,
                      .place = is_on_gpu ? static_cast<uint64_t>(event.deviceResourceId())
                                         : event.startThreadId(),
                      .start_ns = static_cast<int64_t>(event.startNs()),
                      .end_ns = static_cast<int64_t>(event.endNs())});
  }
  if (!trace.empty()) result->save(trace);
  return events;
}

}  // namespace moe8
