// SPDX-License-Identifier: BSD-3-Clause
// The kernels one after the other in a CUDA graph, and what they refuse.
#include <cuda_runtime_api.h>

#include "cuda/experts/combine.h"
#include "cuda/experts/transpose_codes.h"
#include "cuda/experts_check/check.h"
#include "formats/integers.h"

namespace moe8::cuda {
namespace {

Layer routed(int64_t tokens, int64_t top_k, int64_t groups, int64_t columns, std::mt19937& rng) {
  std::vector<int64_t> experts(static_cast<size_t>(tokens * top_k));
  const uint64_t used = 1 + rng() % static_cast<uint64_t>(groups + 1);
  for (int64_t& expert : experts) expert = static_cast<int64_t>(rng() % used);
  return make_layer(tokens, top_k, groups, columns, std::move(experts));
}

}  // namespace

// Captured once, replayed with other routings: nothing may have been read on the host.
void check_graph(std::mt19937& rng) {
  constexpr int64_t kTokens = 150, kTopK = 3, kGroups = 6, kColumns = 104;
  const reference::RowCodes tokens = random_codes(ElemDtype::E4M3, kTokens, kColumns, false, rng);
  const Layer first = routed(kTokens, kTopK, kGroups, kColumns, rng);
  const DeviceLayer d(first);
  const int64_t rows = first.rows(), padded = d.metadata.padded_rows();
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  const DeviceBytes codes(tokens.codes), scales(bytes_of(tokens.inverse_scale)),
      workspace(size(expert_order_workspace_bytes(rows, kGroups))),
      values(random_values(FloatType::BF16, rows * kColumns, rng));
  DeviceBytes gathered(size(rows * tokens.pitch)), inverse(size(rows * 4)),
      amax(size(kGroups * kColumns * 4)), turned(size(padded * kColumns)),
      column_inverse(size(kGroups * kColumns * 4)), combined(size(kTokens * kColumns * 2));
  const RowCodes in{codes.as<uint8_t>(),
                    scales.as<float>(),
                    ElemDtype::E4M3,
                    kColumns,
                    tokens.pitch,
                    d.groups,
                    d.slot_of_row.as<int32_t>(),
                    kTopK};

  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  require(cudaStreamCreate(&stream), "stream");
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  require(launch_expert_order({d.experts.get(), IndexType::I64, rows, kGroups, workspace.get(),
                               d.offs.as<int32_t>(), nullptr, IndexType::I64,
                               d.slot_of_row.as<int32_t>(), d.row_of_slot.as<int32_t>()},
                              stream),
          "order");
  require(launch_group_metadata(d.offs.as<int32_t>(), d.metadata, stream), "metadata");
  require(launch_gather_codes({in, d.row_of_slot.as<int32_t>(), gathered.as<uint8_t>(),
                               inverse.as<float>(), amax.as<uint32_t>()},
                              stream),
          "gather");
  require(launch_transpose_codes(
              {in, amax.as<uint32_t>(), turned.as<uint8_t>(), column_inverse.as<float>()}, stream),
          "transpose");
  require(
      launch_combine({values.get(), FloatType::BF16, kTokens, kTopK, kColumns,
                      d.row_of_slot.as<int32_t>(), d.rows_in_groups, nullptr, nullptr,
                      FloatType::BF16, nullptr, IndexType::I64, combined.get(), FloatType::BF16},
                     stream),
      "combine");
  require(cudaStreamEndCapture(stream, &graph), "capture");
  require(cudaGraphInstantiate(&replay, graph, 0), "instantiate");

  for (int time = 0; time < 8; ++time) {
    const Layer layer = routed(kTokens, kTopK, kGroups, kColumns, rng);
    const Bytes experts = bytes_of(layer.experts);
    require(cudaMemcpy(d.experts.get(), experts.data(), experts.size(), cudaMemcpyHostToDevice),
            "experts");
    for (DeviceBytes* out : {&gathered, &turned, &combined}) out->poison();
    require(cudaGraphLaunch(replay, stream), "replay");
    require(cudaStreamSynchronize(stream), "replay");

    const reference::RowCodes rows_now = reference::gather_codes(tokens, layer.order, kTopK);
    std::vector<int64_t> starts{0};
    for (const int64_t n : layer.order.counts) starts.push_back(starts.back() + round_up(n, 32));
    const reference::ColumnCodes columns = reference::transpose_codes(
        rows_now, layer.order.offs, reference::column_amax(rows_now, layer.order.offs), starts,
        padded, padded * kColumns);
    Bytes sums(combined.size());
    const Bytes rows_in = values.host();
    reference::combine({rows_in.data(), FloatType::BF16, kTokens, kTopK, kColumns, &layer.order,
                        nullptr, nullptr, FloatType::BF16, nullptr, sums.data(), FloatType::BF16});
    expect_equal("replayed graph: gathered", gathered, rows_now.codes);
    expect_equal("replayed graph: turned", turned, columns.codes);
    expect_equal("replayed graph: combined", combined, sums);
  }
  require(cudaGraphExecDestroy(replay), "graph");
  require(cudaGraphDestroy(graph), "graph");
  require(cudaStreamDestroy(stream), "stream");
}

void check_refusals() {
  ExpertOrderArgs order{};
  order.groups = kMaxGroups + 1;
  expect_refused(launch_expert_order(order, nullptr), "more experts than one block counts");
  order.groups = 1;
  order.slots = int64_t{1} << 31;
  expect_refused(launch_expert_order(order, nullptr), "more slots than 32 bits count");

  const GroupMetadata metadata = group_metadata(nullptr, 64, 1, 32);
  GatherCodesArgs gather{};
  gather.in = {nullptr, nullptr, ElemDtype::E4M3, 40, 48, RowGroups::of(metadata)};
  expect_refused(launch_gather_codes(gather, nullptr), "rows to gather without an order");
  TransposeCodesArgs transpose{};
  transpose.in = gather.in;
  transpose.in.pitch = 40;
  expect_refused(launch_transpose_codes(transpose, nullptr), "a pitch of codes that does not fit");
  transpose.in.pitch = 48;
  transpose.in.elem = ElemDtype::E2M3;
  expect_refused(launch_transpose_codes(transpose, nullptr),
                 "a format that the hardware does not convert from");
  transpose.in.elem = ElemDtype::E4M3;
  transpose.codes = reinterpret_cast<uint8_t*>(8);
  expect_refused(launch_transpose_codes(transpose, nullptr), "codes that are not 16-byte aligned");

  CombineArgs combine{};
  combine.tokens = int64_t{1} << 30;
  combine.top_k = 2;
  expect_refused(launch_combine(combine, nullptr), "more rows than 32 bits count");
}

}  // namespace moe8::cuda
