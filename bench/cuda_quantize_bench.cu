// SPDX-License-Identifier: BSD-3-Clause
// GB/s of the CUDA quantizers on the shapes of docs/benchmarking.md, against a copy kernel and
// cudaMemcpy of the same run, all of them interleaved. Stand-alone, without Torch.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cuda/device_buffer.h"
#include "cuda/groups/group_metadata.h"
#include "cuda/quantize/float8.h"
#include "cuda/quantize/mx.h"
#include "shapes.h"

namespace moe8::cuda {
namespace {

constexpr int kRounds = 25;
constexpr int kWarmup = 3;

using testing::DeviceBuffer;
using testing::require;
using Memory = DeviceBuffer<uint8_t>;

// Random normal numbers: zeros would let the chip run cooler and faster than data do.
template <typename T>
__global__ void fill_normal(T* x, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += step) {
    uint64_t z = static_cast<uint64_t>(i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z ^= z >> 27;
    const float u = (static_cast<float>(z & 0xFFFFFF) + 1.0f) / 16777216.0f;
    const float v = static_cast<float>(z >> 40) / 16777216.0f;
    x[i] = from_float<T>(sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * v));
  }
}

__global__ void __launch_bounds__(256) copy_kernel(const uint4* x, uint4* y, int64_t count) {
  const int64_t first = blockIdx.x * int64_t{1024} + threadIdx.x;
  uint4 v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (first + i * 256 < count) v[i] = __ldcs(x + first + i * 256);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (first + i * 256 < count) __stcs(y + first + i * 256, v[i]);
  }
}

struct Row {
  std::string name;
  double bytes;
  std::function<LaunchStatus()> launch;
  std::vector<float> ms;
};

/// Interleaves the rows, so that all see the same temperatures and clocks.
void time_rows(std::vector<Row>& rows) {
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "event");
  require(cudaEventCreate(&end), "event");
  for (int round = -kWarmup; round < kRounds; ++round) {
    for (Row& row : rows) {
      require(cudaEventRecord(begin), "record");
      require(row.launch(), row.name.c_str());
      require(cudaEventRecord(end), "record");
      require(cudaEventSynchronize(end), row.name.c_str());
      float ms = 0;
      require(cudaEventElapsedTime(&ms, begin, end), "elapsed");
      if (round >= 0) row.ms.push_back(ms);
    }
  }
  require(cudaEventDestroy(begin), "event");
  require(cudaEventDestroy(end), "event");
}

void print_rows(const std::string& shape, std::vector<Row>& rows) {
  const auto rate = [](Row& row) {
    std::sort(row.ms.begin(), row.ms.end());
    return row.bytes / row.ms[row.ms.size() / 2] * 1e-6;
  };
  const double memcpy_rate = rate(rows[0]), copy_rate = rate(rows[1]);
  for (Row& row : rows) {
    const double r = rate(row);
    std::printf("%-22s| %-30s| %8.4f (%.4f-%.4f) ms | %5.0f GB/s | %4.0f %% | %4.0f %%\n",
                shape.c_str(), row.name.c_str(), row.ms[row.ms.size() / 2],
                row.ms[row.ms.size() / 10], row.ms[row.ms.size() * 9 / 10], r, 100 * r / copy_rate,
                100 * r / memcpy_rate);
  }
}

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
  add("cudaMemcpy", 2 * in, [&] {
    return LaunchStatus{cudaMemcpyAsync(y.get(), x.get(), static_cast<size_t>(count) * sizeof(T),
                                        cudaMemcpyDeviceToDevice),
                        "cudaMemcpyAsync"};
  });
  add("copy kernel", 2 * in, [&] {
    const int64_t packets = count * static_cast<int64_t>(sizeof(T)) / 16;
    copy_kernel<<<static_cast<unsigned>((packets + 1023) / 1024), 256>>>(x.as<uint4>(),
                                                                         y.as<uint4>(), packets);
    return LaunchStatus{cudaGetLastError(), "the copy kernel"};
  });
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
