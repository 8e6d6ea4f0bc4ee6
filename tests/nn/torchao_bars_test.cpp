// SPDX-License-Identifier: BSD-3-Clause
// The bars of torchao's own test of MoE training, on its layer at a size for a CPU.
#include "experts/torchao_layer.h"

namespace moe8 {
namespace {

TEST(TorchaoBars, ConvertedLayersReachThem) {
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil"}) {
    testing::expect_torchao_bars(name, /*tokens=*/512, /*dim=*/512, /*hidden=*/1024, at::kCPU);
  }
}

}  // namespace
}  // namespace moe8
