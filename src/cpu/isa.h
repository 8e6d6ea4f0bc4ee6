// SPDX-License-Identifier: BSD-3-Clause
// Instruction sets of the CPU kernels. A kernel is plain C++ that the compiler turns into vector
// code, once per instruction set (PerIsa): an entry point carries the target, and flatten pulls the
// templates it calls into it, so that nothing compiled for a newer CPU can be shared with an older
// one.
#pragma once

#include <string_view>

#if defined(__x86_64__)
#define MOE8_TARGET_AVX2 [[gnu::target("arch=x86-64-v3"), gnu::flatten]]
#if defined(__clang__)
#define MOE8_TARGET_AVX512 \
  [[gnu::target("arch=x86-64-v4"), clang::min_vector_width(512), gnu::flatten]]
#else
#define MOE8_TARGET_AVX512 [[gnu::target("arch=x86-64-v4,prefer-vector-width=512"), gnu::flatten]]
#endif
#else
#define MOE8_TARGET_AVX2
#define MOE8_TARGET_AVX512
#endif

namespace moe8::cpu {

enum class Isa { PORTABLE, AVX2, AVX512 };

std::string_view to_string(Isa isa);

/// The best one that this CPU has; MOE8_CPU_ISA=portable|avx2|avx512 asks for a lesser one.
Isa best_isa();

/// What this CPU has, whatever MOE8_CPU_ISA says.
bool has_isa(Isa isa);

/// avx512_bf16: this CPU multiplies bf16 in hardware.
bool has_bf16_products();

/// Whether products of bf16 values are to be computed in bf16, not float32: where the hardware does,
/// or as MOE8_CPU_GEMM=bf16|float32 asks.
bool prefers_bf16_products();

/// A kernel, compiled once per instruction set: PerIsa<kernel>::run(isa, arguments...). It must be
/// of an unnamed namespace, so that these belong to one file.
template <auto kKernel>
struct PerIsa;

template <typename Result, typename... Args, Result (*kKernel)(Args...)>
struct PerIsa<kKernel> {
  [[gnu::flatten]] static Result portable(Args... args) { return kKernel(args...); }
  MOE8_TARGET_AVX2 static Result avx2(Args... args) { return kKernel(args...); }
  MOE8_TARGET_AVX512 static Result avx512(Args... args) { return kKernel(args...); }

  static Result run(Isa isa, Args... args) {
    constexpr Result (*kOf[])(Args...) = {portable, avx2, avx512};  // in the order of Isa
    return kOf[static_cast<int>(isa)](args...);
  }
};

}  // namespace moe8::cpu
