// SPDX-License-Identifier: BSD-3-Clause
// A token's rows summed up.
#include "cuda/experts/combine.h"

#include <cmath>

#include "cuda/experts_check/check.h"

namespace moe8::cuda {
namespace {

struct Kind {
  FloatType rows, out, bias;
  bool has_scores, has_bias, has_end;
};

// Rows past the last group hold NaN: nobody may add them.
Bytes rows_of(const Layer& layer, FloatType type, std::mt19937& rng) {
  Bytes rows = random_values(type, layer.rows() * layer.columns, rng);
  const size_t size = type == FloatType::BF16 ? 2 : 4;
  const auto end = static_cast<size_t>(layer.order.rows_in_groups() * layer.columns) * size;
  std::fill(rows.begin() + static_cast<int64_t>(end), rows.end(), 0xFF);
  return rows;
}

std::vector<float> scores_of(const Layer& layer, std::mt19937& rng) {
  std::uniform_real_distribution<float> uniform;
  std::vector<float> scores(static_cast<size_t>(layer.rows()));
  for (float& score : scores) {
    score = uniform(rng);
    if (rng() % 100 == 0) score = rng() % 2 ? HUGE_VALF : -0.0f;
  }
  return scores;
}

void check_kind(const Layer& layer, const Kind& kind, std::mt19937& rng) {
  const int64_t count = layer.tokens * layer.columns;
  const Bytes rows = rows_of(layer, kind.rows, rng);
  const Bytes bias = random_values(kind.bias, layer.groups * layer.columns, rng);
  const std::vector<float> scores = scores_of(layer, rng);
  Bytes expected(static_cast<size_t>(count) * (kind.out == FloatType::BF16 ? 2 : 4));
  reference::combine({rows.data(), kind.rows, layer.tokens, layer.top_k, layer.columns,
                      &layer.order, kind.has_scores ? scores.data() : nullptr,
                      kind.has_bias ? bias.data() : nullptr, kind.bias, layer.experts.data(),
                      expected.data(), kind.out});

  const DeviceLayer on_device(layer);
  const DeviceBytes rows_in(rows), bias_in(bias), scores_in(bytes_of(scores));
  DeviceBytes out(expected.size());
  const CombineArgs args{rows_in.get(),
                         kind.rows,
                         layer.tokens,
                         layer.top_k,
                         layer.columns,
                         on_device.row_of_slot.as<int32_t>(),
                         kind.has_end ? on_device.rows_in_groups : nullptr,
                         kind.has_scores ? scores_in.as<float>() : nullptr,
                         kind.has_bias ? bias_in.get() : nullptr,
                         kind.bias,
                         on_device.experts.get(),
                         IndexType::I64,
                         out.get(),
                         kind.out};
  for (int time = 0; time < 2; ++time) {
    out.poison();
    require(launch_combine(args, nullptr), "launch_combine");
    require(cudaDeviceSynchronize(), "launch_combine");
    expect_equal_values("combined rows of " + layer.name(), kind.out, out, expected);
  }
}

}  // namespace

void check_combine(const Layer& layer, std::mt19937& rng) {
  const auto any_type = [&] { return rng() % 2 ? FloatType::BF16 : FloatType::F32; };
  const bool all_in_groups = layer.order.rows_in_groups() == layer.rows();
  check_kind(layer, {FloatType::BF16, FloatType::BF16, FloatType::BF16, true, false, true}, rng);
  check_kind(layer, {FloatType::BF16, any_type(), any_type(), false, false, !all_in_groups}, rng);
  check_kind(layer, {any_type(), any_type(), any_type(), true, true, true}, rng);
}

}  // namespace moe8::cuda
