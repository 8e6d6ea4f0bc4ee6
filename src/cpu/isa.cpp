// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/isa.h"

#include <cstdlib>

namespace moe8::cpu {

std::string_view to_string(Isa isa) {
  switch (isa) {
    case Isa::AVX512:
      return "avx512";
    case Isa::AVX2:
      return "avx2";
    case Isa::PORTABLE:
      break;
  }
  return "portable";
}

bool has_isa(Isa isa) {
  if (isa == Isa::PORTABLE) return true;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("fma");
  if (isa == Isa::AVX2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool has_bf16_products() {
#if defined(__x86_64__)
  return has_isa(Isa::AVX512) && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool prefers_bf16_products() {
  static const bool prefers = [] {
    const char* wanted = std::getenv("MOE8_CPU_GEMM");
    if (wanted && std::string_view(wanted) == "bf16") return true;
    if (wanted && std::string_view(wanted) == "float32") return false;
    return has_bf16_products();
  }();
  return prefers;
}

Isa best_isa() {
  static const Isa best = [] {
    const char* wanted = std::getenv("MOE8_CPU_ISA");
    for (Isa isa : {Isa::AVX512, Isa::AVX2}) {
      const bool lesser_wanted =
          wanted && (std::string_view(wanted) == "portable" ||
                     (std::string_view(wanted) == "avx2" && isa == Isa::AVX512));
      if (!lesser_wanted && has_isa(isa)) return isa;
    }
    return Isa::PORTABLE;
  }();
  return best;
}

}  // namespace moe8::cpu
