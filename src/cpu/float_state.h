// SPDX-License-Identifier: BSD-3-Clause
// The floating-point state that the kernels are written for. The thread they run on may have
// another one: a library compiled with -ffast-math flushes subnormals in every thread that is
// started after it was loaded, and a caller may round another way or trap on a division by zero.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace moe8::cpu {

/// While it lives, this thread rounds to nearest, keeps subnormals and traps on nothing. Where that
/// is so already it costs the reading of a register. The compiler may move arithmetic across it,
/// but not calls of functions that it cannot see into.
class DefaultFloatState {
 public:
  DefaultFloatState() : saved_(read()) {
    if ((saved_ & kControl) != kDefault) write(kDefault);
  }
  ~DefaultFloatState() {
    if ((saved_ & kControl) != kDefault) write(saved_);
  }
  DefaultFloatState(const DefaultFloatState&) = delete;
  DefaultFloatState& operator=(const DefaultFloatState&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint64_t kControl = 0xFFC0;  // of MXCSR, without the flags of what happened
  static constexpr uint64_t kDefault = 0x1F80;
  static uint64_t read() {
    return _mm_getcsr();
  }
  static void write(uint64_t state) {
    _mm_setcsr(static_cast<unsigned>(state));
  }
#elif defined(__aarch64__)
  static constexpr uint64_t kControl = 0xFFFFFFFF;  // FPCR
  static constexpr uint64_t kDefault = 0;
  static uint64_t read() {
    uint64_t state = 0;
    asm volatile("mrs %0, fpcr" : "=r"(state));
    return state;
  }
  static void write(uint64_t state) {
    asm volatile("msr fpcr, %0" : : "r"(state) : "memory");
  }
#else
  static constexpr uint64_t kControl = 0;
  static constexpr uint64_t kDefault = 0;
  static uint64_t read() {
    return 0;
  }
  static void write(uint64_t) {}
#endif

  const uint64_t saved_;
};

}  // namespace moe8::cpu
