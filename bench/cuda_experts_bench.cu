// SPDX-License-Identifier: BSD-3-Clause
// Time and GB/s of the kernels of src/cuda/experts/ on expert layers, against a copy kernel and
// cudaMemcpy of the same run, all of them interleaved. Stand-alone, without Torch.
//   cuda_experts_bench [zipf] [LAYER...]    zipf: some experts get far more than others
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cuda/experts/combine.h"
#include "cuda/experts/gather.h"
#include "cuda/experts/mx_rows.h"
#include "cuda/experts/routing.h"
#include "cuda/experts/swiglu.h"
#include "cuda/experts/transpose_codes.h"
#include "cuda/groups/group_metadata.h"
#include "cuda/quantize/float8.h"
#include "cuda_rows.cuh"
#include "shapes.h"

namespace moe8::cuda {
namespace {

using testing::require;

size_t bytes_for(int64_t count, int64_t element_bytes = 1) {
  return static_cast<size_t>(count * element_bytes);
}

/// k different experts per token; expert e is as likely as 1 / (e + 1)^skew.
std::vector<int64_t> choose_experts(const bench::LayerShape& s, double skew) {
  std::mt19937 rng(3);
  std::uniform_real_distribution<double> uniform(1e-9, 1.0);
  const auto groups = static_cast<size_t>(s.experts), k = static_cast<size_t>(s.top_k);
  std::vector<std::pair<double, int64_t>> drawn(groups);
  std::vector<int64_t> experts;
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (size_t e = 0; e < groups; ++e) {  // the k first arrivals of E exponential clocks
      const double rate = std::pow(static_cast<double>(e + 1), -skew);
      drawn[e] = {-std::log(uniform(rng)) / rate, static_cast<int64_t>(e)};
    }
    std::partial_sort(drawn.begin(), drawn.begin() + static_cast<int64_t>(k), drawn.end());
    for (size_t j = 0; j < k; ++j) experts.push_back(drawn[j].second);
  }
  return experts;
}

/// A layer that has been routed: what all rows of the table read.
struct RoutedLayer {
  RoutedLayer(const bench::LayerShape& shape, double skew)
      : s(shape),
        rows(s.tokens * s.top_k),
        experts(bytes_for(rows, 8)),
        workspace(bytes_for(expert_order_workspace_bytes(rows, s.experts))),
        offs(bytes_for(s.experts, 4)),
        counts(bytes_for(s.experts, 4)),
        slot_of_row(bytes_for(rows, 4)),
        row_of_slot(bytes_for(rows, 4)),
        scores(bytes_for(rows, 4)),
        metadata_memory(bytes_for(group_metadata_bytes(rows, s.experts, kPadding))),
        metadata(group_metadata(metadata_memory.get(), rows, s.experts, kPadding)),
        groups(RowGroups::of(metadata)) {
    const std::vector<int64_t> chosen = choose_experts(s, skew);
    require(cudaMemcpy(experts.get(), chosen.data(), experts.size(), cudaMemcpyHostToDevice),
            "experts");
    fill_normal<<<2048, 256>>>(scores.as<float>(), rows);
    require(launch_expert_order(order(), nullptr), "order");
    require(launch_group_metadata(offs.as<int32_t>(), metadata, nullptr), "metadata");
  }

  ExpertOrderArgs order() const {
    return {experts.get(),
            IndexType::I64,
            rows,
            s.experts,
            workspace.get(),
            offs.as<int32_t>(),
            counts.get(),
            IndexType::I32,
            slot_of_row.as<int32_t>(),
            row_of_slot.as<int32_t>()};
  }

  static constexpr int64_t kPadding = 32;
  const bench::LayerShape& s;
  int64_t rows;  // R = T * k
  Memory experts, workspace, offs, counts, slot_of_row, row_of_slot, scores, metadata_memory;
  GroupMetadata metadata;
  RowGroups groups;
};

/// Rows of bf16 values and their codes.
struct QuantizedRows {
  QuantizedRows(int64_t rows, int64_t columns, const RowGroups& groups)
      : values(bytes_for(rows * columns, 2)),
        codes(bytes_for(rows * columns)),
        inverse_scale(bytes_for(rows, 4)),
        amax(bytes_for(groups.groups * columns, 4)) {
    fill_normal<<<2048, 256>>>(values.as<BFloat16>(), rows * columns);
    require(launch_float8_rows(
                {values.get(), FloatType::BF16, columns, groups, ElemDtype::E4M3, true,
                 codes.as<uint8_t>(), columns, inverse_scale.as<float>(), amax.as<uint32_t>()},
                nullptr),
            "codes");
  }
  Memory values, codes, inverse_scale, amax;
};

struct Table {
  std::vector<Row> rows;
  void add(std::string name, double bytes, std::function<LaunchStatus()> launch) {
    rows.push_back({std::move(name), bytes, std::move(launch), {}});
  }
};

void measure(const RoutedLayer& l) {
  const auto& s = l.s;
  const int64_t d = s.columns, padded = l.metadata.padded_rows();
  const RowGroups one = RowGroups::equal(1, s.tokens);
  const QuantizedRows tokens(s.tokens, d, one), packed(l.rows, d, l.groups);
  const Memory gathered(bytes_for(l.rows * d, 2)), gathered_scale(bytes_for(l.rows, 4)),
      amax(bytes_for(s.experts * d, 4)), turned(bytes_for(padded * std::max(d, 2 * s.hidden))),
      column_scale(bytes_for(s.experts * std::max(d, 2 * s.hidden), 4)),
      combined(bytes_for(s.tokens * d, 4)), mx_rows(bytes_for(l.rows * d, 2)),
      mx_columns(bytes_for(l.rows * d, 2));
  const QuantizedRows hidden(l.rows, 2 * s.hidden, l.groups);

  const RowCodes through{tokens.codes.as<uint8_t>(),
                         tokens.inverse_scale.as<float>(),
                         ElemDtype::E4M3,
                         d,
                         d,
                         l.groups,
                         l.slot_of_row.as<int32_t>(),
                         s.top_k};
  const RowCodes plain{packed.codes.as<uint8_t>(),
                       packed.inverse_scale.as<float>(),
                       ElemDtype::E4M3,
                       d,
                       d,
                       l.groups};
  const RowCodes wide{hidden.codes.as<uint8_t>(),
                      hidden.inverse_scale.as<float>(),
                      ElemDtype::E4M3,
                      2 * s.hidden,
                      2 * s.hidden,
                      l.groups};
  const auto gather = [&](uint32_t* maxima) {
    return GatherCodesArgs{through, l.row_of_slot.as<int32_t>(), gathered.as<uint8_t>(),
                           gathered_scale.as<float>(), maxima};
  };
  const auto combine = [&](bool scores, bool bias) {
    return CombineArgs{packed.values.get(),
                       FloatType::BF16,
                       s.tokens,
                       s.top_k,
                       d,
                       l.row_of_slot.as<int32_t>(),
                       l.groups.jagged.begins + s.experts,
                       scores ? l.scores.as<float>() : nullptr,
                       bias ? hidden.values.get() : nullptr,
                       FloatType::BF16,
                       l.experts.get(),
                       IndexType::I64,
                       combined.get(),
                       FloatType::BF16};
  };
  const auto transpose = [&](const RowCodes& in, const Memory& maxima) {
    return launch_transpose_codes(
        {in, maxima.as<uint32_t>(), turned.as<uint8_t>(), column_scale.as<float>()}, nullptr);
  };

  Table table;
  const auto T = static_cast<double>(s.tokens * d), R = static_cast<double>(l.rows * d);
  const auto H = static_cast<double>(l.rows * 2 * s.hidden);
  add_copies(table.rows, packed.values, gathered, 4 * R);
  table.add("order", 16 * static_cast<double>(l.rows),
            [&] { return launch_expert_order(l.order(), nullptr); });
  table.add("metadata", 0,
            [&] { return launch_group_metadata(l.offs.as<int32_t>(), l.metadata, nullptr); });
  table.add("gather rows, bf16", 2 * (T + R), [&] {
    return launch_gather_rows(
        {tokens.values.get(), s.tokens, 2 * d, s.top_k, l.row_of_slot.as<int32_t>(),
         l.groups.jagged.begins + s.experts, gathered.get()},
        nullptr);
  });
  const auto gather_mx = [&](void* by_rows, void* by_columns) {
    return launch_gather_mx({tokens.values.get(),
                             d,
                             l.groups,
                             l.slot_of_row.as<int32_t>(),
                             l.row_of_slot.as<int32_t>(),
                             s.top_k,
                             ScaleCalculationMode::RCEIL,
                             {nullptr, by_rows, by_columns}},
                            nullptr);
  };
  table.add("gather mx values, rows", 2 * (T + R),
            [&] { return gather_mx(mx_rows.get(), nullptr); });
  table.add("gather mx values, columns", 2 * (T + R),
            [&] { return gather_mx(nullptr, mx_columns.get()); });
  table.add("gather mx values, both", 2 * (T + 2 * R),
            [&] { return gather_mx(mx_rows.get(), mx_columns.get()); });
  table.add("gather codes", T + R, [&] { return launch_gather_codes(gather(nullptr), nullptr); });
  table.add("gather codes + column amax", T + R,
            [&] { return launch_gather_codes(gather(amax.as<uint32_t>()), nullptr); });
  table.add("codes turned, d", 2 * R, [&] { return transpose(plain, packed.amax); });
  table.add("codes turned through gather, d", T + R,
            [&] { return transpose(through, packed.amax); });
  table.add("codes turned, 2h", 2 * H, [&] { return transpose(wide, hidden.amax); });
  table.add("combine, scores", 2 * (T + R),
            [&] { return launch_combine(combine(true, false), nullptr); });
  table.add("combine, scores and bias", 2 * (T + R),
            [&] { return launch_combine(combine(true, true), nullptr); });
  table.add("combine", 2 * (T + R), [&] { return launch_combine(combine(false, false), nullptr); });
  time_rows(table.rows);
  print_rows(s.name, table.rows);
}

/// Everything that the gated activation can make of a matrix of rows.
struct GatedRows {
  GatedRows(int64_t rows, int64_t width, int64_t groups)
      : columns(width),
        values(bytes_for(rows * width, 2)),
        codes(bytes_for(rows * width)),
        inverse_scale(bytes_for(rows, 4)),
        amax(bytes_for(groups * width, 4)) {}

  ActivationRows as_values() const { return {values.get()}; }
  MxRows as_mx_rows() const { return {nullptr, values.get()}; }
  MxRows as_mx_columns() const { return {nullptr, nullptr, values.get()}; }
  ActivationRows as_codes(bool maxima) const {
    return {nullptr, codes.as<uint8_t>(), columns, inverse_scale.as<float>(),
            maxima ? amax.as<uint32_t>() : nullptr};
  }
  ActivationRows as_both() const {
    ActivationRows both = as_codes(true);
    both.values = values.get();
    return both;
  }

  int64_t columns;
  Memory values, codes, inverse_scale, amax;
};

/// SwiGLU by halves, and what gpt-oss has: clamped, interleaved, with a bias.
void measure_gate(const RoutedLayer& l, bool clamped) {
  const int64_t h = l.s.hidden;
  const Memory hidden(bytes_for(l.rows * 2 * h, 2)), grad(bytes_for(l.rows * h, 2)),
      bias(bytes_for(l.s.experts * 2 * h, 2)), score_grad(bytes_for(l.rows, 4));
  fill_normal<<<2048, 256>>>(hidden.as<BFloat16>(), l.rows * 2 * h);
  fill_normal<<<2048, 256>>>(grad.as<BFloat16>(), l.rows * h);
  fill_normal<<<2048, 256>>>(bias.as<BFloat16>(), l.s.experts * 2 * h);
  const GatedRows hidden_grad(l.rows, 2 * h, l.s.experts), activation(l.rows, h, l.s.experts);

  SwigluSource source{hidden.get(), h, l.groups, {}};
  source.scores = l.scores.as<float>();
  source.slot_of_row = l.slot_of_row.as<int32_t>();
  if (clamped) {
    source.activation = {GateFunction::CLAMPED, GateLayout::INTERLEAVED, 1.702f, 7.0f};
    source.bias = bias.get();
  }
  const auto backward = [&](const ActivationRows& of_hidden, const ActivationRows& again) {
    return launch_swiglu_backward({source, grad.get(), of_hidden, again, score_grad.as<float>()},
                                  nullptr);
  };

  const GatedRows mx_columns(l.rows, 2 * h, 1);
  const Memory score_parts(bytes_for(swiglu_mx_score_parts(h) * l.rows, 4));
  const auto backward_mx = [&] {
    const MxRows of_hidden{nullptr, hidden_grad.values.get(), mx_columns.values.get()};
    return launch_swiglu_mx_backward(
        {source, ScaleCalculationMode::RCEIL, grad.get(), of_hidden, activation.as_mx_columns(),
         score_grad.as<float>(), score_parts.as<float>()},
        nullptr);
  };

  Table table;
  const auto n = static_cast<double>(l.rows * h);
  const std::string name = clamped ? "clamped, interleaved, bias" : "swiglu";
  add_copies(table.rows, hidden, hidden_grad.values, 8 * n);
  table.add(name + " codes", 5 * n, [&] {
    return launch_swiglu({source, activation.as_codes(false)}, nullptr);
  });
  table.add(name + " bf16", 6 * n, [&] {
    return launch_swiglu({source, activation.as_values()}, nullptr);
  });
  table.add(name + " mx values", 6 * n, [&] {
    return launch_swiglu_mx({source, ScaleCalculationMode::RCEIL, activation.as_mx_rows()},
                            nullptr);
  });
  table.add(name + " backward, mx values", 16 * n, backward_mx);
  table.add(name + " backward, codes", 9 * n,
            [&] { return backward(hidden_grad.as_codes(true), activation.as_codes(true)); });
  table.add(name + " backward, bf16", 12 * n,
            [&] { return backward(hidden_grad.as_values(), activation.as_values()); });
  table.add(name + " backward, codes and bf16", 15 * n,
            [&] { return backward(hidden_grad.as_both(), activation.as_both()); });
  time_rows(table.rows);
  print_rows(l.s.name, table.rows);
}

}  // namespace
}  // namespace moe8::cuda

int main(int argc, char** argv) {
  using namespace moe8;
  cudaDeviceProp device{};
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::printf("no CUDA device\n");
    return 1;
  }
  const bool zipf = argc > 1 && std::strcmp(argv[1], "zipf") == 0;
  const std::vector<std::string> wanted(argv + (zipf ? 2 : 1), argv + argc);
  std::printf(
      "%s; e4m3, power-of-two scales; GB/s of the bytes that an ideal kernel moves, "
      "%% of the copy kernel | of cudaMemcpy\n",
      device.name);
  for (const bench::LayerShape& shape : bench::kGpuLayerShapes) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), shape.name) == wanted.end()) {
      continue;
    }
    const cuda::RoutedLayer layer(shape, zipf ? 1.0 : 0.0);
    cuda::measure(layer);
    for (const bool clamped : {false, true}) cuda::measure_gate(layer, clamped);
  }
  return 0;
}
