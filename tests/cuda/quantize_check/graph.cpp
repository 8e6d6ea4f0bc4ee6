// SPDX-License-Identifier: BSD-3-Clause
// Quantizers in a CUDA graph.
#include <cuda_runtime_api.h>

#include "cuda/quantize/float8.h"
#include "cuda/quantize/mx.h"
#include "cuda/quantize_check/check.h"

namespace moe8::cuda {
using enum ElemDtype;
using enum ScaleCalculationMode;

// One graph, captured once, replayed with other groups: nothing may have been read on the host.
void check_graph(std::mt19937& rng) {
  Problem p = make_problem(FloatType::BF16, 104, ends_of({100, 50, 150}), 310, Fill::WIDE, rng);
  const Metadata metadata(p, 32);
  const DeviceBytes x(p.x);
  const auto count = p.x.size() / 2;
  constexpr size_t kRows = 310, kColumns = size_t{3} * 104;  // of three groups
  DeviceBytes codes(kRows * 112), inverse(kRows * 4), amax(kColumns * 4),
      column_scale(kColumns * 4);
  DeviceBytes xt(static_cast<size_t>(metadata.m.padded_rows() * p.columns)), values(2 * count);
  const RowGroups groups = RowGroups::of(metadata.m);
  MxArgs mx{x.get(), p.type, p.columns, groups, E4M3, RCEIL, {}, {}, 0, FloatType::BF16};
  mx.column_blocks.values = values.get();

  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  require(cudaStreamCreate(&stream), "stream");
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  require(launch_group_metadata(metadata.offs.as<int32_t>(), metadata.m, stream), "metadata");
  require(launch_float8_rows({x.get(), p.type, p.columns, groups, E4M3, true, codes.as<uint8_t>(),
                              112, inverse.as<float>(), amax.as<uint32_t>()},
                             stream),
          "rows");
  require(
      launch_float8_transposed({x.get(), p.type, p.columns, groups, E4M3, true, amax.as<uint32_t>(),
                                false, xt.as<uint8_t>(), column_scale.as<float>()},
                               stream),
      "transposed");
  require(launch_mx(mx, stream), "mx");
  require(cudaStreamEndCapture(stream, &graph), "capture");
  require(cudaGraphInstantiate(&replay, graph, 0), "instantiate");

  for (const std::vector<int32_t>& offs :
       {std::vector<int32_t>{100, 150, 300}, {0, 310, 310}, {33, 34, 99}}) {
    p.offs = offs;
    require(cudaMemcpy(metadata.offs.get(), offs.data(), 12, cudaMemcpyHostToDevice), "offs");
    xt.poison();
    values.poison();
    require(cudaGraphLaunch(replay, stream), "replay");
    require(cudaStreamSynchronize(stream), "replay");
    const Placed placed = place_jagged(p, metadata.m);
    const Float8Expected e = reference_float8(p, E4M3, true, 1, p.rows, p.columns, placed.sets);
    expect_equal("replayed graph: transposed", xt, transposed(p, e.codes, placed));
    expect_equal("replayed graph: scales", column_scale, inverses(e.scale));
    const auto blocks = mx_blocks(p.rows, offs.data(), 3);
    expect_equal("replayed graph: mx", values,
                 reference_mx(p, E4M3, RCEIL, FloatType::BF16, 1, p.rows, p.columns, blocks,
                              static_cast<int64_t>(blocks.size()))
                     .values);
  }
  require(cudaGraphExecDestroy(replay), "graph");
  require(cudaGraphDestroy(graph), "graph");
  require(cudaStreamDestroy(stream), "stream");
}

}  // namespace moe8::cuda
