// SPDX-License-Identifier: BSD-3-Clause
#include "train/step_graph.h"

#include <ATen/ops/empty_like.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <array>

#include "base/log.h"
#include "base/plain_text.h"
#include "device/implementation.h"

namespace moe8 {
namespace {

// What a batch has: some parts of it are not always there.
std::array<at::Tensor Batch::*, 4> parts_of_batches() {
  return {&Batch::tokens, &Batch::targets, &Batch::documents, &Batch::counted};
}

void copy_into(Batch& to, const Batch& from) {
  for (at::Tensor Batch::*part : parts_of_batches()) {
    if ((from.*part).defined()) (to.*part).copy_(from.*part, /*non_blocking=*/true);
  }
}

Batch empty_like(const Batch& batch) {
  Batch made;
  for (at::Tensor Batch::*part : parts_of_batches()) {
    if ((batch.*part).defined()) made.*part = at::empty_like(batch.*part);
  }
  return made;
}

}  // namespace

void StepGraph::capture(const std::vector<Batch>& batches, const Work& work) {
  for (const Batch& batch : batches) inputs_.push_back(empty_like(batch));
  const c10::Device device = holders_.front().device();
  // What other steps left in the allocator's hands is of use to the graph only as free memory.
  c10::getDeviceAllocator(device.type())->emptyCache();
  graph_ = std::make_unique<CudaGraph>(device, [&] { loss_ = work(inputs_); });
  for (const at::Tensor& holder : holders_) grads_.push_back(holder.grad());
}

at::Tensor StepGraph::run(const std::vector<Batch>& batches, const Work& work) {
  if (!graph_) capture(batches, work);
  for (size_t i = 0; i < batches.size(); ++i) copy_into(inputs_[i], batches[i]);
  graph_->replay();
  for (size_t i = 0; i < holders_.size(); ++i) holders_[i].mutable_grad() = grads_[i];
  return loss_;
}

bool wants_graph(CudaGraphs mode, const c10::Device& device, int64_t step_bytes) {
  if (device.is_cpu() || mode == CudaGraphs::OFF) return false;
  if (mode == CudaGraphs::ON) return true;
  if (kernels_refusal(device)) return false;
  const auto [free, total] = c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index());
  const int64_t in_use = c10::getDeviceAllocator(device.type())
                             ->getDeviceStats(device.index())
                             .allocated_bytes[0]
                             .current;
  const bool fits = in_use + 2 * step_bytes <= static_cast<int64_t>(total) / 2;
  log_info(concat("CUDA graph of a step: ", fits ? "on" : "off", ", a step takes ",
                  step_bytes >> 20, " MiB beside ", in_use >> 20, " of ", total >> 20));
  return fits;
}

TrainingStream::TrainingStream(const c10::Device& device) {
  if (device.is_cpu()) return;
  static const c10::Stream stream =
      c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
  guard_.emplace(stream);
}

}  // namespace moe8
