// SPDX-License-Identifier: BSD-3-Clause
// The gated activation, forward and backward. What is rounded to bf16 may differ from the reference
// by one unit, as exponentials do; codes, scales and maxima must be those of the kernel's own bf16
// rows, bit for bit.
#include "cuda/experts/swiglu.h"

#include <algorithm>

#include "cuda/experts_check/gate_problem.h"
#include "formats/integers.h"
#include "reference/float8.h"

namespace moe8::cuda {
namespace {

// ---- outputs
// Everything that can be made of a matrix of rows.
struct RowOutputs {
  RowOutputs(const Layer& layer, int64_t width, int64_t pitch_more)
      : columns(width),
        pitch(round_up(width, 16) + pitch_more),
        values(static_cast<size_t>(layer.rows() * columns * 2)),
        codes(static_cast<size_t>(layer.rows() * pitch)),
        inverse(static_cast<size_t>(layer.rows() * 4)),
        amax(static_cast<size_t>(layer.groups * columns * 4)) {}

  ActivationRows args(bool with_values, bool with_codes, bool with_amax) const {
    ActivationRows a;
    if (with_values) a.values = values.get();
    if (with_codes) {
      a.codes = codes.as<uint8_t>();
      a.pitch = pitch;
      a.inverse_scale = inverse.as<float>();
    }
    if (with_amax) a.column_amax = amax.as<uint32_t>();
    return a;
  }

  int64_t columns, pitch;
  DeviceBytes values, codes, inverse, amax;
};

// Codes, scales and maxima of bf16 rows, by the references of the quantizers.
struct RowsExpected {
  RowsExpected(const GateProblem& p, const RowOutputs& out);
  Bytes values, codes, inverse, amax;
};

RowsExpected::RowsExpected(const GateProblem& p, const RowOutputs& out)
    : values(out.values.host()) {
  const Values x = from_device(out.values);
  const int64_t rows = p.layer.rows(), width = out.columns;
  const Float8Set whole{0, width};
  std::vector<float> scale(static_cast<size_t>(rows));
  Bytes packed(x.size());
  Float8QuantizeArgs a{};
  a.elem = p.source.elem;
  a.round_scales_to_power_of_2 = p.source.round_scales_to_power_of_2;
  a.x = x.data();
  a.x_type = FloatType::BF16;
  a.outer = rows;
  a.length = width;
  a.inner = 1;
  a.sets = &whole;
  a.set_count = 1;
  a.scale = scale.data();
  a.data = packed.data();
  reference::quantize_float8(a, 0, a.work_items());
  for (float& s : scale) s = 1.0f / s;
  inverse = bytes_of(scale);
  codes.resize(static_cast<size_t>(rows * out.pitch));
  std::vector<uint32_t> maxima(static_cast<size_t>(p.layer.groups * width));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < width; ++c) {
      const auto at = static_cast<size_t>(r * width + c);
      codes[static_cast<size_t>(r * out.pitch + c)] = packed[at];
      if (!p.is_grouped(r)) continue;
      uint32_t& m = maxima[static_cast<size_t>(p.group_of(r) * width + c)];
      m = std::max(m, magnitude_bits(x[at]));
    }
  }
  amax = bytes_of(maxima);
}

using Expected = std::vector<std::pair<DeviceBytes*, const Bytes*>>;

// Source and gradients a few bytes further on, where no 16-byte access may go.
struct Shifted {
  explicit Shifted(const Bytes& bytes) : memory(bytes.size() + 2) {
    require(cudaMemcpy(get(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "shifted copy");
  }
  void* get() const { return memory.as<uint8_t>() + 2; }
  DeviceBytes memory;
};

// ---- forward
void check_forward(const GateProblem& p, int64_t pitch_more) {
  const std::string what = p.name() + " forward";
  RowOutputs out(p.layer, p.layer.columns, pitch_more);
  SwigluArgs args{p.source, out.args(true, true, false)};
  require(launch_swiglu(args, nullptr), what.c_str());
  require(cudaDeviceSynchronize(), what.c_str());
  compare_forward(p, from_device(out.values));
  const RowsExpected e(p, out);
  const Expected codes{{&out.codes, &e.codes}, {&out.inverse, &e.inverse}};
  const Expected values{{&out.values, &e.values}};
  Expected all = codes;
  all.insert(all.end(), values.begin(), values.end());
  const auto launch = [&] { return launch_swiglu(args, nullptr); };
  run(what, all, launch);
  args.out = out.args(false, true, false);
  run(what + ", codes alone", codes, launch);
  args.out = out.args(true, false, false);
  run(what + ", values alone", values, launch);
  const Shifted hidden(bytes_of(p.hidden));
  args.out = out.args(true, true, false);
  args.hidden = hidden.get();
  expect(choose_swiglu(args).row_threads == 0, what + ": an unaligned source is read pair by pair");
  run(what + ", unaligned", all, launch);
}

// ---- backward
struct BackwardOutputs {
  BackwardOutputs(const Layer& layer, int64_t pitch_more)
      : hidden(layer, 2 * layer.columns, pitch_more),
        activation(layer, layer.columns, pitch_more),
        score(static_cast<size_t>(layer.rows() * 4)) {}
  RowOutputs hidden, activation;
  DeviceBytes score;
};

// The codes of hidden_grad in the memory of the gradients that they are made from.
void check_in_place(const GateProblem& p, SwigluBackwardArgs args, const RowsExpected& expected) {
  DeviceBytes both(expected.codes.size());
  args.grad = both.get();
  args.hidden_grad.codes = both.as<uint8_t>();
  if (choose_swiglu_backward(args).row_threads == 0) return;
  for (int time = 0; time < 2; ++time) {
    both.poison();
    const Bytes grad = bytes_of(p.grad);
    require(cudaMemcpy(both.get(), grad.data(), grad.size(), cudaMemcpyHostToDevice), "grad");
    require(launch_swiglu_backward(args, nullptr), "in place");
    require(cudaDeviceSynchronize(), "in place");
    expect_equal(p.name() + " backward in place", both, expected.codes);
  }
}

void check_backward(const GateProblem& p, int64_t pitch_more) {
  const std::string what = p.name() + " backward";
  BackwardOutputs out(p.layer, pitch_more);
  RowOutputs &h = out.hidden, &act = out.activation;
  SwigluBackwardArgs args{p.source, p.grad_bytes.get(), h.args(true, true, true),
                          act.args(true, true, true), out.score.as<float>()};
  const auto launch = [&] { return launch_swiglu_backward(args, nullptr); };
  require(launch(), what.c_str());
  require(cudaDeviceSynchronize(), what.c_str());
  compare_backward(p, from_device(h.values), from_device(act.values), floats_of(out.score));
  const RowsExpected eh(p, h), ea(p, act);
  const Bytes score = out.score.host();
  const Expected codes{{&h.codes, &eh.codes},   {&h.inverse, &eh.inverse},   {&h.amax, &eh.amax},
                       {&act.codes, &ea.codes}, {&act.inverse, &ea.inverse}, {&act.amax, &ea.amax}};
  const Expected values{{&h.values, &eh.values}, {&act.values, &ea.values}};
  Expected all = codes;
  all.insert(all.end(), values.begin(), values.end());
  Expected scored = all;
  scored.push_back({&out.score, &score});
  run(what, scored, launch);

  if (h.pitch == h.columns && h.columns % 16 == 0) check_in_place(p, args, eh);
  const Shifted hidden(bytes_of(p.hidden));
  args.hidden = hidden.get();
  expect(choose_swiglu_backward(args).row_threads == 0,
         what + ": an unaligned source is read pair by pair");
  run(what + ", unaligned", all, launch);
  args.hidden = p.source.hidden;
  args.score_grad = nullptr;
  args.hidden_grad = h.args(false, true, true);
  args.scored_activation = act.args(false, true, true);
  run(what + ", codes alone", codes, launch);
  args.hidden_grad = h.args(true, false, false);
  args.scored_activation = act.args(true, false, false);
  run(what + ", values alone", values, launch);
  args.hidden_grad = h.args(false, true, false);
  args.scored_activation = act.args(true, false, true);
  run(what + ", some of both",
      {{&h.codes, &eh.codes},
       {&h.inverse, &eh.inverse},
       {&act.values, &ea.values},
       {&act.amax, &ea.amax}},
      launch);
  args.hidden_grad = args.scored_activation = {};
  args.score_grad = out.score.as<float>();
  run(what + ", scores alone", {{&out.score, &score}}, launch);
}

}  // namespace

void check_swiglu(const Layer& layer, std::mt19937& rng) {
  for (const Fill fill : kFills) {
    const GateProblem p(layer, fill, rng);
    const int64_t pitch_more = rng() % 4 == 0 ? static_cast<int64_t>(16 * (rng() % 3)) : 0;
    check_forward(p, pitch_more);
    check_backward(p, pitch_more);
  }
}

// Rows of every number of packets and threads, and longer than threads can hold.
void check_swiglu_widths(std::mt19937& rng) {
  for (const int64_t columns : {8, 24, 264, 512, 768, 1000, 1544, 2048, 2880, 8192, 12288, 16400}) {
    const Layer layer = layer_of_sizes({3, 0, 9}, columns % 3, columns, rng);
    for (int time = 0; time < 2; ++time) {
      const GateProblem p(layer, Fill::WIDE, rng);
      check_forward(p, 0);
      check_backward(p, 0);
    }
  }
}

void check_swiglu_refusals() {
  const GroupMetadata metadata = group_metadata(nullptr, 64, 1, 32);
  SwigluBackwardArgs args{};
  args.columns = 40;
  args.groups = RowGroups::of(metadata);
  args.score_grad = reinterpret_cast<float*>(16);
  const auto launch = [&] { return launch_swiglu_backward(args, nullptr); };
  expect_refused(launch(), "a gradient of scores without slot_of_row");
  args.score_grad = nullptr;
  args.scores = reinterpret_cast<const float*>(16);
  expect_refused(launch(), "scores without slot_of_row");
  args.scores = nullptr;
  args.hidden_grad.codes = reinterpret_cast<uint8_t*>(16);
  args.hidden_grad.pitch = 80;
  expect_refused(launch(), "codes without scales");
  args.hidden_grad.inverse_scale = reinterpret_cast<float*>(16);
  args.hidden_grad.pitch = 64;
  expect_refused(launch(), "a pitch of codes that does not fit");
  args.hidden_grad.pitch = 80;
  args.elem = ElemDtype::E2M3;
  expect_refused(launch(), "a format that the hardware does not convert to");
  args.elem = ElemDtype::E4M3;
  args.groups = RowGroups::equal(2, 32);
  expect_refused(launch(), "groups of equal size instead of ragged ones");

  SwigluArgs forward{};
  forward.groups = RowGroups::of(metadata);
  forward.out.column_amax = reinterpret_cast<uint32_t*>(16);
  expect_refused(launch_swiglu(forward, nullptr), "column maxima of the activations forward");
}

}  // namespace moe8::cuda
