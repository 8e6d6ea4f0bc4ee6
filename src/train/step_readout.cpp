// SPDX-License-Identifier: BSD-3-Clause
#include "train/step_readout.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <utility>

#include "dist/activity.h"

namespace moe8 {

StepReadout::StepReadout(std::vector<at::Tensor> tensors) {
  for (at::Tensor& tensor : tensors) tensor = tensor.detach().to(at::kDouble).flatten();
  at::Tensor values = at::cat(tensors);  // a copy of its own
  if (values.is_cpu()) {
    host_ = std::move(values);
    return;
  }
  host_ = at::empty(values.sizes(), at::dtype(at::kDouble).pinned_memory(true));
  host_.copy_(values, /*non_blocking=*/true);
  const c10::Device device = values.device();
  ready_.emplace(device.type());
  ready_->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
}

std::vector<double> StepReadout::values() const {
  if (ready_) {
    const WaitsForOthers waits(WaitsForOthers::For::DEVICE);
    ready_->synchronize();
  }
  const auto* first = host_.const_data_ptr<double>();
  return {first, first + host_.numel()};
}

}  // namespace moe8
