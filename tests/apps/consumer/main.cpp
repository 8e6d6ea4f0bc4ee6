// SPDX-License-Identifier: BSD-3-Clause
// The smallest program that uses an installed moe8.
#include <ATen/ops/full.h>
#include <moe8/mx.h>
#include <moe8/version.h>

#include <iostream>

int main() {
  const moe8::MXTensor x = moe8::quantize_mx(at::full({2, 64}, 1.5));
  const double sum = moe8::dequantize(x).sum().item<double>();
  std::cout << "moe8 " << moe8::version() << ", sum " << sum << '\n';
  return sum == 192 ? 0 : 1;
}
