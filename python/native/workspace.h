// SPDX-License-Identifier: BSD-3-Clause
// Memory of a request to the CUDA kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "device/check_launch.h"
#include "formats/code_pitch.h"
#include "formats/float_type.h"

namespace moe8::native {

/// Of the interface's `type`.
inline FloatType type_of(int32_t type) {
  return type == 0 ? FloatType::BF16 : FloatType::F32;
}

inline int64_t size_of(FloatType type) {
  return type == FloatType::BF16 ? 2 : 4;
}

/// Pieces of a workspace. A quiet one launches nothing: it only counts, or finds again where an
/// earlier call of the same request put things. All work is on one stream, so that a piece may be
/// given back as soon as the last kernel that reads it is launched.
class Workspace {
 public:
  /// Without memory it is quiet; its pieces then have addresses of the same alignment that nothing
  /// may be read from.
  Workspace(void* memory, void* stream) : Workspace(memory, stream, memory == nullptr) {}
  Workspace(void* memory, void* stream, bool is_quiet)
      : base_(memory == nullptr ? kNowhere : reinterpret_cast<uintptr_t>(memory)),
        stream_(static_cast<cudaStream_t>(stream)),
        is_quiet_(is_quiet) {}

  template <typename T>
  T* take(int64_t count) {
    const int64_t bytes = std::max<int64_t>(count * static_cast<int64_t>(sizeof(T)), 1);
    const int64_t begin = place_for((bytes + kAlignment - 1) / kAlignment * kAlignment);
    return reinterpret_cast<T*>(base_ + static_cast<uintptr_t>(begin));
  }
  /// What no kernel launched from now on reads. Null, and what is not of this workspace: nothing.
  void give(const void* piece) {
    const auto address = reinterpret_cast<uintptr_t>(piece);
    const auto is_it = [&](const Piece& p) {
      return base_ + static_cast<uintptr_t>(p.begin) == address;
    };
    const auto found = std::find_if(pieces_.begin(), pieces_.end(), is_it);
    if (found != pieces_.end()) pieces_.erase(found);
  }

  bool is_quiet() const { return is_quiet_; }
  void set_quiet(bool is_quiet) { is_quiet_ = is_quiet; }
  /// The most bytes that were taken at a time.
  int64_t used() const { return used_ > 0 ? used_ : kAlignment; }
  cudaStream_t stream() const { return stream_; }

 private:
  static constexpr int64_t kAlignment = 256;
  static constexpr uintptr_t kNowhere = uintptr_t{1} << 60;  // where no pointer of a request points
  struct Piece {
    int64_t begin, end;
  };

  // The first gap that is large enough.
  int64_t place_for(int64_t bytes) {
    int64_t begin = 0;
    auto next = pieces_.begin();
    for (; next != pieces_.end() && next->begin - begin < bytes; ++next) begin = next->end;
    pieces_.insert(next, {begin, begin + bytes});
    used_ = std::max(used_, begin + bytes);
    return begin;
  }

  uintptr_t base_;
  cudaStream_t stream_;
  bool is_quiet_;
  std::vector<Piece> pieces_;  // by address
  int64_t used_ = 0;
};

/// The current device of the process is another one's business: it is as before afterwards.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    (void)cudaGetDevice(&before_);
    if (device != before_) check_launch("moe8", {cudaSetDevice(device), "cudaSetDevice"});
    device_ = device;
  }
  ~OnDevice() {
    if (device_ != before_) (void)cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0, device_ = 0;
};

}  // namespace moe8::native
