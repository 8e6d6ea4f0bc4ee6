// SPDX-License-Identifier: BSD-3-Clause
// The instances of the sm_90a kernel, for the list in grouped_gemm.cpp.
#pragma once

#include "cuda/gemm/grouped_gemm.h"

namespace moe8::cuda::sm90 {

const char* refuses_fp8_rows(const GroupedGemmArgs& args);
LaunchStatus launch_fp8_rows_128x256(const GroupedGemmArgs& args);
LaunchStatus launch_fp8_rows_pingpong_128(const GroupedGemmArgs& args);
LaunchStatus launch_fp8_rows_pingpong_192(const GroupedGemmArgs& args);
const char* refuses_fp8_rows_promoted(const GroupedGemmArgs& args);
LaunchStatus launch_fp8_rows_promoted(const GroupedGemmArgs& args);

const char* refuses_fp8_depth(const GroupedGemmArgs& args);
LaunchStatus launch_fp8_depth_256x128(const GroupedGemmArgs& args);

const char* refuses_bf16(const GroupedGemmArgs& args);
LaunchStatus launch_bf16_128x256(const GroupedGemmArgs& args);
LaunchStatus launch_bf16_pingpong_128(const GroupedGemmArgs& args);
LaunchStatus launch_bf16_pingpong_192(const GroupedGemmArgs& args);

}  // namespace moe8::cuda::sm90
