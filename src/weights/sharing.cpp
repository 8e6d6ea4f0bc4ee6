// SPDX-License-Identifier: BSD-3-Clause
// LibTorch counts the tensors over a storage, and those that share a version counter. Where the two
// numbers are the same, no tensor writes the storage uncounted. The second number is private
// (public is only whether it is one); an explicit instantiation may name private members.
#include "weights/sharing.h"

#include <c10/core/Allocator.h>
#include <c10/core/TensorImpl.h>

namespace moe8 {
namespace {

size_t tensors_sharing(const c10::VariableVersion& version);

template <auto counter>
struct PrivateCounter {
  friend size_t tensors_sharing(const c10::VariableVersion& version) {
    return (version.*counter).use_count();
  }
};
template struct PrivateCounter<&c10::VariableVersion::version_counter_>;

bool fills_storage(const at::TensorBase& weight) {
  return weight.storage_offset() == 0 && weight.is_non_overlapping_and_dense() &&
         weight.storage().nbytes() == weight.nbytes();
}

bool is_memory_of_libtorch(const c10::Storage& storage) {
  const c10::Allocator* allocator = storage.allocator();
  if (!allocator) allocator = c10::GetAllocator(storage.device_type());  // as of torch::load
  return storage.data_ptr().get_deleter() == allocator->raw_deleter();
}

}  // namespace

bool counts_all_writes(const at::TensorBase& weight) {
  const c10::VariableVersion& version = weight.unsafeGetTensorImpl()->version_counter();
  return version.enabled() && fills_storage(weight) && is_memory_of_libtorch(weight.storage()) &&
         weight.storage().use_count() == tensors_sharing(version);
}

}  // namespace moe8
