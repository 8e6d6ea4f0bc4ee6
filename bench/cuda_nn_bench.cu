// SPDX-License-Identifier: BSD-3-Clause
// Time and GB/s of the kernels of src/cuda/nn/, against a copy kernel and cudaMemcpy of the same
// run, all of them interleaved. Stand-alone, without Torch.
//   cuda_nn_bench [SHAPE...]    300m, 4b: parts of the trainer's configs; vocabulary: the loss
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "cuda/nn/cross_entropy.h"
#include "cuda/nn/gate.h"
#include "cuda/nn/rms_norm.h"
#include "cuda/nn/rotary.h"
#include "cuda_rows.cuh"

namespace moe8::cuda {
namespace {

using testing::require;

constexpr int64_t kTokens = 16384;
constexpr FloatType kType = FloatType::BF16;

/// bf16 memory full of normal numbers.
struct Values {
  Memory memory;
  explicit Values(int64_t count) : memory(static_cast<size_t>(count) * 2) {
    fill_normal<<<2048, 256>>>(memory.as<BFloat16>(), count);
  }
  void* get() const { return memory.get(); }
};
struct Floats {
  Memory memory;
  explicit Floats(int64_t count) : memory(static_cast<size_t>(count) * 4) {
    fill_normal<<<2048, 256>>>(memory.as<float>(), count);
  }
  float* get() const { return memory.as<float>(); }
};

struct Shape {
  const char* name;
  int64_t dim, heads, kv_heads, head_dim, hidden, positions;
};
constexpr Shape kShapes[] = {{"300m", 768, 12, 4, 64, 640, 1024},
                             {"4b", 2048, 32, 4, 128, 1536, 4096}};

// ---- norms
struct NormTensors {
  int64_t columns;
  Values x, added, grad, grad_sum, weight, out, sum, grad_x, grad_weight;
  Floats rstd, workspace;

  explicit NormTensors(int64_t n)
      : columns(n),
        x(kTokens * n),
        added(kTokens * n),
        grad(kTokens * n),
        grad_sum(kTokens * n),
        weight(n),
        out(kTokens * n),
        sum(kTokens * n),
        grad_x(kTokens * n),
        grad_weight(n),
        rstd(kTokens),
        workspace(rms_norm_workspace(backward(false))) {}

  RmsNormArgs forward(bool with_sum) const {
    return {x.get(),
            with_sum ? added.get() : nullptr,
            with_sum ? sum.get() : nullptr,
            weight.get(),
            kType,
            kTokens,
            columns,
            1e-5f,
            out.get(),
            rstd.get()};
  }
  RmsNormBackwardArgs backward(bool with_sum) const {
    RmsNormBackwardArgs a{};
    a.h = x.get(), a.weight = weight.get(), a.rstd = rstd.get(), a.grad = grad.get();
    a.grad_sum = with_sum ? grad_sum.get() : nullptr;
    a.type = kType, a.rows = kTokens, a.columns = columns;
    a.grad_x = grad_x.get(), a.grad_weight = grad_weight.get();
    return a;
  }
};

void add_norms(std::vector<Row>& rows, const NormTensors& t) {
  const auto bytes = [&](int accesses) { return 2.0 * accesses * kTokens * double(t.columns); };
  for (const bool with_sum : {false, true}) {
    const std::string what = with_sum ? "sum and norm" : "norm";
    rows.push_back({what,
                    bytes(with_sum ? 4 : 2),
                    [&t, with_sum] { return launch_rms_norm(t.forward(with_sum), nullptr); },
                    {}});
    rows.push_back({what + " backward",
                    bytes(with_sum ? 4 : 3),
                    [&t, with_sum] {
                      RmsNormBackwardArgs args = t.backward(with_sum);
                      args.workspace = t.workspace.get();
                      return launch_rms_norm_backward(args, nullptr);
                    },
                    {}});
  }
}

// ---- rotary
struct RotaryTensors {
  const Shape& s;
  Values q, k, q_out, k_out;
  Floats freqs;

  explicit RotaryTensors(const Shape& shape)
      : s(shape),
        q(kTokens * s.heads * s.head_dim),
        k(kTokens * s.kv_heads * s.head_dim),
        q_out(kTokens * s.heads * s.head_dim),
        k_out(kTokens * s.kv_heads * s.head_dim),
        freqs(s.positions * s.head_dim) {}

  RotaryArgs args(RotaryPairs pairs) const {
    const auto heads = [&](const Values& in, const Values& out, int64_t count) {
      return RotaryHeads{
          in.get(), s.positions * count * s.head_dim, count * s.head_dim, s.head_dim, count,
          out.get()};
    };
    return {heads(q, q_out, s.heads),
            heads(k, k_out, s.kv_heads),
            kType,
            kTokens / s.positions,
            s.positions,
            s.head_dim,
            freqs.get(),
            pairs};
  }
};

void add_rotary(std::vector<Row>& rows, const RotaryTensors& t) {
  const double bytes = 4.0 * kTokens * double((t.s.heads + t.s.kv_heads) * t.s.head_dim);
  rows.push_back({"rotary, neighbours",
                  bytes,
                  [&t] { return launch_rotary(t.args(RotaryPairs::NEIGHBOURS), nullptr); },
                  {}});
  rows.push_back({"rotary, halves",
                  bytes,
                  [&t] { return launch_rotary(t.args(RotaryPairs::HALVES), nullptr); },
                  {}});
}

// ---- gate
struct GateTensors {
  int64_t count;
  Values gate, up, grad, to_gate, to_up;

  explicit GateTensors(int64_t n) : count(n), gate(n), up(n), grad(n), to_gate(n), to_up(n) {}
};

void add_gate(std::vector<Row>& rows, const GateTensors& t) {
  rows.push_back(
      {"gate",
       6.0 * double(t.count),
       [&t] {
         return launch_gate({t.gate.get(), t.up.get(), kType, t.count, t.to_gate.get()}, nullptr);
       },
       {}});
  rows.push_back({"gate backward",
                  10.0 * double(t.count),
                  [&t] {
                    return launch_gate_backward({t.gate.get(), t.up.get(), t.grad.get(), kType,
                                                 t.count, t.to_gate.get(), t.to_up.get()},
                                                nullptr);
                  },
                  {}});
}

void run_shape(const Shape& s) {
  const NormTensors norms(s.dim);
  const RotaryTensors rotary(s);
  const GateTensors gate(kTokens * s.hidden);
  std::vector<Row> rows;
  add_copies(rows, norms.x.memory, norms.out.memory, 4.0 * kTokens * double(s.dim));
  add_norms(rows, norms);
  add_rotary(rows, rotary);
  add_gate(rows, gate);
  time_rows(rows);
  print_rows(s.name, rows);
}

// ---- loss
void run_loss(int64_t columns) {
  const Values logits(kTokens * columns);
  const Values copied(std::min<int64_t>(kTokens * columns, int64_t{1} << 29));
  const Floats lse(kTokens), losses(kTokens), scalars(4);
  std::vector<int64_t> chosen(kTokens);
  for (int64_t i = 0; i < kTokens; ++i) chosen[static_cast<size_t>(i)] = i * 7919 % columns;
  const testing::DeviceBuffer<int64_t> targets(chosen);
  CrossEntropyArgs forward{};
  forward.logits = logits.get(), forward.type = kType, forward.rows = kTokens;
  forward.columns = columns, forward.targets = targets.get(), forward.ignored = -100;
  forward.lse = lse.get(), forward.row_loss = losses.get();
  forward.loss = scalars.get(), forward.divisor = scalars.get() + 1;
  CrossEntropyBackwardArgs backward{};
  static_cast<CrossEntropyRows&>(backward) = forward;
  backward.lse = lse.get(), backward.divisor = forward.divisor;
  backward.grad_loss = scalars.get() + 2, backward.grad = logits.get();
  const double pass = 2.0 * kTokens * double(columns);
  const auto half = double(std::min(copied.memory.size(), logits.memory.size()));
  std::vector<Row> rows;
  add_copies(rows, logits.memory, copied.memory, 2 * half);
  rows.push_back({"loss", pass, [&] { return launch_cross_entropy(forward, nullptr); }, {}});
  rows.push_back({"loss backward, in place",
                  2 * pass,
                  [&] { return launch_cross_entropy_backward(backward, nullptr); },
                  {}});
  rows.push_back({"loss and backward",
                  3 * pass,
                  [&] {
                    const LaunchStatus status = launch_cross_entropy(forward, nullptr);
                    return status.ok() ? launch_cross_entropy_backward(backward, nullptr) : status;
                  },
                  {}});
  time_rows(rows);
  print_rows(std::to_string(columns) + " logits", rows);
}

}  // namespace
}  // namespace moe8::cuda

int main(int argc, char** argv) {
  using namespace moe8::cuda;
  const std::vector<std::string> wanted(argv + 1, argv + argc);
  const auto wants = [&](const char* name) {
    return wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end();
  };
  std::printf(
      "%lld tokens, bf16; median (p10-p90), share of the copy kernel's rate, of cudaMemcpy's\n",
      static_cast<long long>(kTokens));
  for (const Shape& s : kShapes) {
    if (wants(s.name)) run_shape(s);
  }
  for (const int64_t columns : {256, 32768, 50257, 151936}) {
    if (wants("vocabulary")) run_loss(columns);
  }
  return 0;
}
