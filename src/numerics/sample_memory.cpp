// SPDX-License-Identifier: BSD-3-Clause
#include "numerics/sample_memory.h"

#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

namespace moe8 {
namespace {

constexpr int64_t kBlockBytes = int64_t{8} << 20;
constexpr int64_t kAlignment = 16;

// Not by way of the dispatcher: a look at a model makes thousands.
at::Tensor tensor_in(const at::Tensor& block, int64_t begin, at::IntArrayRef sizes,
                     at::ScalarType dtype) {
  at::Tensor x = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(block.storage()), block.key_set(), c10::scalarTypeToTypeMeta(dtype));
  x.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  x.unsafeGetTensorImpl()->set_storage_offset(begin / static_cast<int64_t>(elementSize(dtype)));
  return x;
}

// All bytes of the block that x lies in.
at::Tensor block_of(const at::Tensor& x) {
  at::Tensor block = at::empty({0}, x.options().dtype(at::kByte));
  return block.set_(x.storage());
}

// The same place of another block.
at::Tensor at_same_place(const at::Tensor& block, const at::Tensor& x) {
  const int64_t begin = x.storage_offset() * static_cast<int64_t>(x.element_size());
  return tensor_in(block, begin, x.sizes(), x.scalar_type());
}

}  // namespace

at::Tensor SampleMemory::allot(const at::Device& device, at::IntArrayRef sizes,
                               at::ScalarType dtype) {
  if (device.is_cpu()) return at::empty(sizes, dtype);
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(elementSize(dtype));
  const std::lock_guard lock(mutex_);
  Block& block = open_[device];
  if (!block.bytes.defined() || block.used + bytes > block.bytes.numel()) {
    block = {at::empty({std::max(bytes, kBlockBytes)}, at::dtype(at::kByte).device(device))};
  }
  const at::Tensor x = tensor_in(block.bytes, block.used, sizes, dtype);
  block.used = (block.used + bytes + kAlignment - 1) / kAlignment * kAlignment;
  return x;
}

void SampleMemory::release() {
  const std::lock_guard lock(mutex_);
  open_.clear();
}

HostCopy::HostCopy(const std::vector<at::Tensor*>& tensors) {
  for (at::Tensor* x : tensors) {
    at::Tensor& host = blocks_[x->storage().data()];
    if (!host.defined()) {
      const at::Tensor block = block_of(*x);
      host = at::empty(block.sizes(), block.options().device(at::kCPU).pinned_memory(true));
      host.copy_(block, /*non_blocking=*/true);
      const at::Device device = x->device();
      ready_.emplace_back(device.type());
      ready_.back().record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
    }
    *x = at_same_place(host, *x);
  }
}

void HostCopy::wait() const {
  for (const c10::Event& event : ready_) event.synchronize();
}

}  // namespace moe8
