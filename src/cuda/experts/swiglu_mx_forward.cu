// SPDX-License-Identifier: BSD-3-Clause
// The gated activation forward, of which the next product reads MX values: activations replace
// gates in the registers, and are written from there.
#include "cuda/experts/swiglu_mx.cuh"

namespace moe8::cuda {
namespace {

using Params = SwigluMxParams<SwigluMxArgs>;

// Thread blocks on a multiprocessor, which cap the registers.
template <typename Kind>
constexpr int kResident = Kind::kPlain ? 4 : 3;

template <typename Kind>
__global__ void __launch_bounds__(kMxThreads, kResident<Kind>)
    swiglu_mx(const __grid_constant__ Params p) {
  follow_stream();
  const SwigluMxArgs& a = p.args;
  const int32_t columns = p.tiles.columns;
  const MxPlace at = place_of(p);
  if (at.block.rows == 0) return;
  const PairColumns in = pair_columns<Kind>(at, columns);
  Packets16 first, second;
  MxMatrix{at, 2 * columns, in.first}.load(first, a.hidden);
  MxMatrix{at, 2 * columns, in.second}.load(second, a.hidden);
  const float score = Kind::kPlain ? 1.0f : score_of_lane(a, at);
  const PairsOf<Packet32> bias = biases_of<Kind>(a, at, in);
#pragma unroll
  for (int i = 0; i < kPacketRows; ++i) {
    const RowFactors factors(a, __shfl_sync(~0u, score, at.row_of(i)));
    const Pairs h{{first.packets[i], second.packets[i]}};
    first.packets[i] = activate_packet<Kind>(p.gate, factors, h, bias);
    if (!at.reads(i)) first.packets[i] = {};  // a bias makes something of zeros
  }
  store_rows(first, a.mode, {at, columns, at.column}, a.out);
}

}  // namespace

LaunchStatus launch_swiglu_mx(const SwigluMxArgs& a, cudaStream_t stream) {
  if (const char* why = swiglu_mx_refusal(a)) return refused(why);
  if (!is_wide(a) || !is_wide(a.out)) return refused("rows not 16-byte aligned");
  if (a.groups.rows * a.columns == 0 || !a.out.any()) return {};
  const Params p(a);
  const auto kernel = swiglu_mx_instance(
      a, []<typename Kind>(std::type_identity<Kind>) { return swiglu_mx<Kind>; });
  return launch_early(kernel, p.thread_blocks(), kMxThreads, 0, stream, p);
}

}  // namespace moe8::cuda
