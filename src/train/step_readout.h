// SPDX-License-Identifier: BSD-3-Clause
// Numbers of a step on their way to the host.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <optional>
#include <vector>

namespace moe8 {

/// Reads tensors of one device without waiting for them. They may be written to afterwards.
class StepReadout {
 public:
  explicit StepReadout(std::vector<at::Tensor> tensors);

  /// The values, one tensor after the other. Waits until the device has come to them.
  std::vector<double> values() const;

 private:
  at::Tensor host_;                  // float64, pinned where a GPU writes it
  std::optional<c10::Event> ready_;  // of a GPU
};

}  // namespace moe8
