// SPDX-License-Identifier: BSD-3-Clause
// The shapes that benchmarks use, in one place.
#pragma once

#include <array>
#include <cstdint>

namespace moe8::bench {

/// A grouped product: M tokens, N out-features, K in-features, E experts.
struct GroupedShape {
  const char* name;
  int64_t M, N, K, E;
};

/// Sizes that a CPU finishes in well under a second: a small expert layer, and many small experts.
inline constexpr std::array<GroupedShape, 2> kCpuGroupedShapes = {{
    {"C1", 4096, 1024, 512, 8},
    {"C2", 4096, 256, 512, 64},
}};

/// Expert layers of published models, for one GPU.
inline constexpr std::array<GroupedShape, 4> kGpuGroupedShapes = {{
    {"S1", 131072, 8192, 5120, 8},
    {"S2", 131072, 2048, 7168, 8},
    {"S3", 65536, 768, 2048, 128},
    {"S4", 32768, 2880, 2880, 32},
}};

/// An expert layer of a published model: T tokens to k of E experts, widths d and h.
struct LayerShape {
  const char* name;
  int64_t tokens, columns, hidden, experts, top_k;
};

inline constexpr std::array<LayerShape, 4> kGpuLayerShapes = {{
    {"Scout", 131072, 5120, 8192, 8, 1},
    {"DSv3", 16384, 7168, 2048, 8, 8},
    {"Qwen3", 8192, 2048, 768, 128, 8},
    {"gpt-oss", 8192, 2880, 2880, 32, 4},
}};

/// A mixture-of-experts layer: T tokens of width d, E experts of width h, k of them for each token.
struct ExpertLayerShape {
  const char* name;
  int64_t T, d, h, E, k;
};
/// Of published models, for one GPU.
inline constexpr std::array<ExpertLayerShape, 4> kGpuExpertLayerShapes = {{
    {"scout", 131072, 5120, 8192, 8, 1},
    {"dsv3", 16384, 7168, 2048, 8, 8},
    {"qwen3-30b", 8192, 2048, 768, 128, 8},
    {"gpt-oss", 8192, 2880, 2880, 32, 4},
}};

/// A dense layer: M tokens, N out-features, K in-features.
struct LinearShape {
  int64_t M, N, K;
};
inline constexpr std::array<LinearShape, 3> kGpuLinearShapes = {{
    {16384, 8192, 8192},
    {16384, 14336, 4096},
    {8192, 2048, 2048},
}};

/// Of one product of a layer, whether grouped or dense.
template <class Shape>
double multiplications(const Shape& s) {
  return static_cast<double>(s.M) * static_cast<double>(s.N) * static_cast<double>(s.K);
}

/// A matrix to quantize, larger than the last-level cache of a server core.
struct MatrixShape {
  const char* name;
  int64_t rows, cols;
};

inline constexpr std::array<MatrixShape, 1> kCpuMatrixShapes = {{{"8192x4096", 8192, 4096}}};

}  // namespace moe8::bench
