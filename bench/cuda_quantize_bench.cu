// SPDX-License-Identifier: BSD-3-Clause
// GB/s of the CUDA quantizers on the shapes of docs/benchmarking.md, against a copy kernel and
// cudaMemcpy of the same run, all of them interleaved. Stand-alone, without Torch.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cuda/groups/group_metadata.h"
#include "cuda/quantize/float8.h"
#include "cuda/quantize/mx.h"
#include "cuda_rows.cuh"
#include "shapes.h"

namespace moe8::cuda {
namespace {

using testing::require;

template <typename T>
void measure(const std::string& shape, int64_t rows, int64_t columns, int64_t experts,
             bool weights) {
  const int64_t count = rows * columns;
  std::mt19937 rng(7);
  std::vector<int32_t> offs;
  for (int64_t g = 1; g <= experts; ++g) {  // ragged, as routing leaves them
    const int64_t wobble = g == experts ? 0 : static_cast<int64_t>(rng() % 200) - 100;
    offs.push_back(static_cast<int32_t>(rows * g / experts + wobble * rows / experts / 256));
  }
  const Memory x(count * sizeof(T)), y(count * sizeof(T)), z(count * 2);
  fill_normal<<<2048, 256>>>(x.as<T>(), count);
  const Memory device_offs(experts * 4), metadata_memory(group_metadata_bytes(rows, experts, 32));
  require(cudaMemcpy(device_offs.get(), offs.data(), offs.size() * 4, cudaMemcpyHostToDevice),
          "offs");
  const GroupMetadata m = group_metadata(metadata_memory.get(), rows, experts, 32);
  require(launch_group_metadata(device_offs.as<int32_t>(), m, nullptr), "metadata");
  const RowGroups groups = weights ? RowGroups::equal(experts, rows / experts) : RowGroups::of(m);

  const int64_t transposed = columns * groups.transposed_columns() * (weights ? experts : 1);
  const Memory codes(count), turned(transposed), inverse(rows * 4), amax(experts * columns * 4),
      column_inverse(experts * columns * 4), one(16);
  const int64_t across = (columns + 31) / 32, blocks = blocks_of(groups).count;
  const Memory row_scale(rows * across), column_scale(blocks * columns);

  constexpr FloatType type = sizeof(T) == 2 ? FloatType::BF16 : FloatType::F32;
  const auto rows_args = [&](bool amaxes) {
    return Float8RowsArgs{x.get(),
                          type,
                          columns,
                          groups,
                          ElemDtype::E4M3,
                          true,
                          codes.as<uint8_t>(),
                          columns,
                          inverse.as<float>(),
                          amaxes ? amax.as<uint32_t>() : nullptr};
  };
  const auto mx = [&](ElemDtype elem, bool values, bool both, ScaleCalculationMode mode) {
    MxArgs a{x.get(), type, columns, groups, elem, mode, {}, {}, blocks, FloatType::BF16};
    MxOutputs r, c;
    (values ? r.values : *reinterpret_cast<void**>(&r.codes)) = y.get();
    (values ? c.values : *reinterpret_cast<void**>(&c.codes)) = z.get();
    if (!values) r.scale = row_scale.as<uint8_t>(), c.scale = column_scale.as<uint8_t>();
    a.row_blocks = r;
    if (both) a.column_blocks = c;
    return a;
  };
  using enum ElemDtype;
  using enum ScaleCalculationMode;
  const double n = static_cast<double>(count), in = sizeof(T);
  std::vector<Row> table;
  const auto add = [&](std::string name, double bytes, std::function<LaunchStatus()> launch) {
    table.push_back({std::move(name), bytes * n, std::move(launch), {}});
  };
  add_copies(table, x, y, 2 * n * in);
  add("fp8 rows", in + 1, [&] { return launch_float8_rows(rows_args(false), nullptr); });
  add("fp8 rows + column amax", in + 1,
      [&] { return launch_float8_rows(rows_args(true), nullptr); });
  add("fp8 transposed", in + 1, [&] {
    return launch_float8_transposed(
        {x.get(), type, columns, groups, E4M3, true, amax.as<uint32_t>(), false,
         turned.as<uint8_t>(), column_inverse.as<float>()},
        nullptr);
  });
  add("mx values both, rceil", in + 4,
      [&] { return launch_mx(mx(E4M3, true, true, RCEIL), nullptr); });
  add("mx values both, floor", in + 4,
      [&] { return launch_mx(mx(E4M3, true, true, FLOOR), nullptr); });
  add("mx values rows, rceil", in + 2,
      [&] { return launch_mx(mx(E4M3, true, false, RCEIL), nullptr); });
  add("mx codes both, rceil", in + 2 + 2.0 / 32,
      [&] { return launch_mx(mx(E4M3, false, true, RCEIL), nullptr); });
  add("mx codes rows, rceil", in + 1 + 1.0 / 32,
      [&] { return launch_mx(mx(E4M3, false, false, RCEIL), nullptr); });
  add("mx codes both e2m1, rceil", in + 2 + 2.0 / 32,
      [&] { return launch_mx(mx(E2M1, false, true, RCEIL), nullptr); });
  if (!weights) {
    add("amax", in, [&] { return launch_amax(x.get(), type, count, one.as<uint32_t>(), nullptr); });
    add("fp8 tensor cast", in + 1, [&] {
      return launch_float8_tensor(
          {x.get(), type, columns, RowGroups::equal(1, rows), E4M3, false, one.as<uint32_t>(),
           codes.as<uint8_t>(), columns, nullptr, one.as<float>() + 1},
          nullptr);
    });
    add("fp8 both, one amax", in + 2, [&] {
      Float8TransposedArgs both{x.get(),
                                type,
                                columns,
                                groups,
                                E4M3,
                                false,
                                one.as<uint32_t>(),
                                true,
                                turned.as<uint8_t>(),
                                column_inverse.as<float>()};
      both.row_codes = codes.as<uint8_t>();
      both.row_pitch = columns;
      both.row_inverse_scale = inverse.as<float>();
      return launch_float8_transposed(both, nullptr);
    });
    add("metadata", 0,
        [&] { return launch_group_metadata(device_offs.as<int32_t>(), m, nullptr); });
  }
  time_rows(table);
  print_rows(shape, table);
}

template <typename T>
void bench_tokens(const bench::GroupedShape& s, const char* what, int64_t columns) {
  measure<T>(std::string(s.name) + " " + what + " " + std::to_string(s.M) + "x" +
                 std::to_string(columns) + " E" + std::to_string(s.E),
             s.M, columns, s.E, false);
}

void bench_weights(const bench::GroupedShape& s) {
  measure<BFloat16>(std::string(s.name) + " W " + std::to_string(s.E) + "x" + std::to_string(s.N) +
                        "x" + std::to_string(s.K),
                    s.E * s.N, s.K, s.E, true);
}

}  // namespace
}  // namespace moe8::cuda

int main() {
  using namespace moe8;
  cudaDeviceProp device{};
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::printf("no CUDA device\n");
    return 1;
  }
  std::printf("%s; e4m3 unless named, power-of-two scales; %% of the copy kernel | of cudaMemcpy\n",
              device.name);
  // Inputs, gradients and weights of the layers, those that differ in length of rows or in groups.
  const auto& [s1, s2, s3, s4] = bench::kGpuGroupedShapes;
  cuda::bench_tokens<BFloat16>(s1, "A", s1.K);
  cuda::bench_tokens<BFloat16>(s2, "A", s2.K);
  cuda::bench_tokens<BFloat16>(s1, "dO", s1.N);
  cuda::bench_tokens<BFloat16>(s2, "dO", s2.N);
  cuda::bench_weights(s1);
  cuda::bench_tokens<BFloat16>(s3, "A", s3.K);
  cuda::bench_weights(s3);
  cuda::bench_tokens<BFloat16>(s3, "dO", s3.N);
  cuda::bench_weights(s4);
  cuda::bench_tokens<BFloat16>(s4, "A", s4.K);
  cuda::bench_tokens<float>(s1, "f32", s1.K);
  return 0;
}
