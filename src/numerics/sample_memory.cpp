// SPDX-License-Identifier: BSD-3-Clause
#include "numerics/sample_memory.h"

#include <ATen/ops/empty.h>
#include <c10/core/StreamGuard.h>
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

// A stream of its own, which what is computed next does not wait for.
class CopyStream {
 public:
  // Follows what the current stream has so far.
  explicit CopyStream(const at::Device& device)
      : device_(device.type()), stream_(device_.getStreamFromGlobalPool(device)) {
    c10::Event made(device.type());
    made.record(device_.getStream(device));
    made.block(stream_);
  }
  void copy(const at::Tensor& from, const at::Tensor& to) const {
    const c10::StreamGuard on(stream_);
    to.copy_(from, /*non_blocking=*/true);
    from.record_stream(stream_);  // its memory is not used again before
  }
  // After all copies so far.
  c10::Event event() const {
    c10::Event copied(stream_.device_type());
    copied.record(stream_);
    return copied;
  }

 private:
  c10::impl::VirtualGuardImpl device_;
  c10::Stream stream_;
};

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
  std::unordered_map<at::Device, CopyStream> streams;
  for (at::Tensor* x : tensors) {
    at::Tensor& host = blocks_[x->storage().data()];
    if (!host.defined()) {
      const at::Tensor block = block_of(*x);
      host = at::empty(block.sizes(), block.options().device(at::kCPU).pinned_memory(true));
      streams.try_emplace(x->device(), x->device()).first->second.copy(block, host);
    }
    *x = at_same_place(host, *x);
  }
  for (const auto& [device, stream] : streams) ready_.push_back(stream.event());
}

void HostCopy::wait() const {
  for (const c10::Event& event : ready_) event.synchronize();
}

}  // namespace moe8
