// SPDX-License-Identifier: BSD-3-Clause
// The operations of moe8/model_ops.h on one GPU, forward and backward as a step runs them, beside
// LibTorch's; GB/s are of the bytes that an ideal implementation moves.
//
//   model_ops_cuda_bench [--rounds N] [--json FILE]
#include <torch/torch.h>

#include <cstdio>

#include "device/cuda_backend.h"
#include "harness.h"
#include "moe8/model_ops.h"
#include "moe8/transformer.h"

namespace moe8::bench {
namespace {

constexpr int64_t kTokens = 16384;
constexpr int kCalls = 10;  // of a run: what starts and ends it is small beside them

using torch::autograd::grad;
using torch::autograd::variable_list;

at::Tensor random(at::IntArrayRef sizes) {
  return at::randn(sizes, at::dtype(at::kBFloat16).device(at::kCUDA)).requires_grad_();
}

// One of the ways that are compared: results of inputs.
using Operation = std::function<variable_list(const variable_list&)>;

struct Case {
  std::string op, shape;
  double bytes;  // of forward and backward
  variable_list inputs;
  Operation moe8, libtorch;
};

void add_rows(std::vector<Row>& rows, const Case& c) {
  const auto row = [&](const char* who, const Operation& run, int baseline) {
    const variable_list out = run(c.inputs);
    variable_list upstream;
    for (const at::Tensor& x : out) upstream.push_back(at::ones_like(x));
    const auto step = [run, upstream, inputs = c.inputs] {
      for (int i = 0; i < kCalls; ++i) grad(run(inputs), inputs, upstream);
      torch::cuda::synchronize();
    };
    rows.push_back({.op = c.op,
                    .shape = c.shape,
                    .recipe = who,
                    .bytes = c.bytes,
                    .run = step,
                    .baseline = baseline,
                    .calls = kCalls});
  };
  const int first = static_cast<int>(rows.size());
  row("LibTorch", c.libtorch, -1);
  row("moe8", c.moe8, first);
}

std::string sizes(std::initializer_list<int64_t> all) {
  std::string text;
  for (const int64_t n : all) {
    if (!text.empty()) text += 'x';
    text += std::to_string(n);
  }
  return text;
}

void add_norms(std::vector<Row>& rows, int64_t dim) {
  const double pass = 2.0 * kTokens * double(dim);
  const at::Tensor x = random({kTokens, dim}), y = random({kTokens, dim}), w = random({dim});
  const std::string shape = sizes({kTokens, dim});
  add_rows(rows,
           {"rms_norm",
            shape,
            5 * pass,
            {x, w},
            [](const variable_list& in) -> variable_list { return {rms_norm(in[0], in[1], 1e-5)}; },
            [](const variable_list& in) -> variable_list {
              return {at::rms_norm(in[0], in[1].sizes(), in[1], 1e-5)};
            }});
  add_rows(rows, {"add_rms_norm",
                  shape,
                  8 * pass,
                  {x, y, w},
                  [](const variable_list& in) -> variable_list {
                    const NormedSum out = add_rms_norm(in[0], in[1], in[2], 1e-5);
                    return {out.sum, out.normed};
                  },
                  [](const variable_list& in) -> variable_list {
                    const at::Tensor sum = in[0] + in[1];
                    return {sum, at::rms_norm(sum, in[2].sizes(), in[2], 1e-5)};
                  }});
}

at::Tensor complex_rotation(const at::Tensor& x, const at::Tensor& freqs) {
  const at::Tensor pairs = x.to(at::kFloat).unflatten(3, {-1, 2});
  const at::Tensor rotated = at::view_as_complex(pairs) * freqs.unsqueeze(1);
  return at::view_as_real(rotated).flatten(3).to(x.scalar_type());
}

void add_rotary(std::vector<Row>& rows, int64_t positions, int64_t heads, int64_t width) {
  constexpr int64_t kKvHeads = 4;
  const int64_t batch = kTokens / positions;
  const at::Tensor freqs = rotary_frequencies(width, positions, 10000.0).to(at::kCUDA);
  add_rows(rows,
           {"rotary_embedding",
            sizes({batch, positions, heads, width}),
            8.0 * kTokens * double((heads + kKvHeads) * width),
            {random({batch, positions, heads, width}), random({batch, positions, kKvHeads, width})},
            [freqs](const variable_list& in) -> variable_list {
              const RotatedHeads out = rotary_embedding(in[0], in[1], freqs);
              return {out.q, out.k};
            },
            [freqs](const variable_list& in) -> variable_list {
              return {complex_rotation(in[0], freqs), complex_rotation(in[1], freqs)};
            }});
}

void add_gate(std::vector<Row>& rows, int64_t hidden) {
  add_rows(rows,
           {"swiglu",
            sizes({kTokens, hidden}),
            16.0 * kTokens * double(hidden),
            {random({kTokens, hidden}), random({kTokens, hidden})},
            [](const variable_list& in) -> variable_list { return {swiglu(in[0], in[1])}; },
            [](const variable_list& in) -> variable_list { return {at::silu(in[0]) * in[1]}; }});
}

void add_loss(std::vector<Row>& rows, int64_t columns) {
  const at::Tensor targets =
      at::randint(columns, {kTokens}, at::dtype(at::kLong).device(at::kCUDA));
  add_rows(rows, {"cross_entropy",
                  sizes({kTokens, columns}),
                  6.0 * kTokens * double(columns),
                  {random({kTokens, columns})},
                  [targets](const variable_list& in) -> variable_list {
                    return {cross_entropy(in[0], targets)};
                  },
                  [targets](const variable_list& in) -> variable_list {
                    return {at::cross_entropy_loss(in[0].to(at::kFloat), targets)};
                  }});
}

int run(int argc, char** argv) {
  if (const auto failure = load_cuda_backend()) {
    std::printf("skipped: %s\n", failure->c_str());
    return 0;
  }
  std::vector<Row> rows;
  for (const int64_t dim : {768, 2048}) add_norms(rows, dim);
  add_rotary(rows, 1024, 12, 64);
  add_rotary(rows, 4096, 32, 128);
  for (const int64_t hidden : {640, 1536}) add_gate(rows, hidden);
  for (const int64_t columns : {256, 32768, 50257}) add_loss(rows, columns);
  return run_table("operations of a model, forward and backward", rows, argc, argv);
}

}  // namespace
}  // namespace moe8::bench

int main(int argc, char** argv) {
  return moe8::bench::run(argc, argv);
}
