// SPDX-License-Identifier: BSD-3-Clause
// What compare_transformers.py runs: DIR/model beside DIR/gradients and DIR/expected.safetensors, then
// written to DIR/exported. Exit status 1 when a difference is above 1e-4.
#include <cstdio>
#include <exception>

#include "base/check.h"
#include "models/hf_case.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    const std::string folder = argv[1];
    moe8::Transformer model = moe8::testing::pretrained(folder + "/model");
    constexpr double kMost = 1e-4;
    double worst = 0;
    for (const auto& [name, difference] : moe8::testing::differences(
             model, folder + "/gradients", folder + "/expected.safetensors")) {
      if (!(difference <= kMost)) std::printf("  %s differs by %.3g\n", name.c_str(), difference);
      worst = difference <= worst ? worst : difference;
    }
    std::printf("  worst of logits and gradients: %.3g\n", worst);
    std::fflush(stdout);
    moe8::testing::save(model, folder + "/exported");
    return worst <= kMost ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("  %s\n", moe8::message_of(error).c_str());
    return 1;
  }
}
