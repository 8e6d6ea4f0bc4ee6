// SPDX-License-Identifier: BSD-3-Clause
// The MX kernel as codes and scales.
#include "cuda/quantize/mx.cuh"

namespace moe8::cuda {
namespace {

template <typename T>
MxKernel of_elem(ElemDtype elem) {
  using enum ElemDtype;
  switch (elem) {
    case E4M3:
      return quantize_mx<T, Codes, E4M3>;
    case E5M2:
      return quantize_mx<T, Codes, E5M2>;
    case E2M3:
      return quantize_mx<T, Codes, E2M3>;
    case E3M2:
      return quantize_mx<T, Codes, E3M2>;
    case E2M1:
      return quantize_mx<T, Codes, E2M1>;
  }
  return nullptr;
}

}  // namespace

MxKernel mx_codes_kernel(FloatType x, ElemDtype elem) {
  return x == FloatType::BF16 ? of_elem<BFloat16>(elem) : of_elem<float>(elem);
}

}  // namespace moe8::cuda
