// SPDX-License-Identifier: BSD-3-Clause
// The gated activation, forward and backward. What is rounded to bf16 may differ from the reference
// by one unit, as exponentials do; codes, scales and maxima must be those of the kernel's own bf16
// rows, bit for bit.
#include "cuda/experts/swiglu.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "cuda/experts_check/check.h"
#include "formats/integers.h"
#include "reference/float8.h"
#include "reference/swiglu.h"

namespace moe8::cuda {
namespace {

using Values = std::vector<BFloat16>;

// ---- inputs
enum class Fill { NORMAL, WIDE, BROKEN };

float draw(Fill fill, int row_shift, std::mt19937& rng) {
  std::normal_distribution<float> normal(0.0f, 2.0f);
  const float x = normal(rng);
  if (fill == Fill::NORMAL) return x;
  if (fill == Fill::WIDE) return std::ldexp(x, row_shift - static_cast<int>(rng() % 12));
  constexpr float kBroken[] = {0.0f,   -0.0f,   HUGE_VALF, -HUGE_VALF, 1e-40f,
                               -87.5f, -88.25f, 3e38f,     -3e38f,     1e-30f};
  const uint32_t r = rng() % 2000;
  if (r == 0) return std::nanf("");
  return r < 40 ? kBroken[r % std::size(kBroken)] : x;
}

Values draw_rows(Fill fill, int64_t rows, int64_t columns, std::mt19937& rng) {
  Values values;
  for (int64_t r = 0; r < rows; ++r) {
    const int shift = static_cast<int>(rng() % 24) - 14;
    for (int64_t c = 0; c < columns; ++c) {
      values.push_back(from_float<BFloat16>(draw(fill, shift, rng)));
    }
  }
  return values;
}

Values from_device(const DeviceBytes& bytes) {
  const Bytes host = bytes.host();
  Values values(host.size() / sizeof(BFloat16));
  if (!values.empty()) std::memcpy(values.data(), host.data(), host.size());
  return values;
}

// Hidden rows of a layer, gradients of its activations, and how the one becomes the other.
struct Problem {
  Problem(const Layer& l, Fill f, std::mt19937& rng);

  std::string name() const;
  reference::SwigluRow row(int64_t r) const;
  bool is_grouped(int64_t r) const { return r < layer.order.rows_in_groups(); }
  int64_t group_of(int64_t r) const {
    const auto& offs = layer.order.offs;
    return std::upper_bound(offs.begin(), offs.end(), r) - offs.begin();
  }
  float score(int64_t r) const { return scores[static_cast<size_t>(slot(r))]; }
  int32_t slot(int64_t r) const { return layer.order.slot_of_row[static_cast<size_t>(r)]; }

  const Layer& layer;
  Fill fill;
  DeviceLayer on_device;
  Values hidden, grad;
  std::vector<float> bias;    // [groups, 2 * columns]; empty: none
  std::vector<float> scores;  // by slot; all 1 when there are none
  DeviceBytes hidden_bytes, grad_bytes;
  Bytes bias_host;
  DeviceBytes bias_bytes, score_bytes;
  SwigluSource source;
};

Bytes bias_as(FloatType type, std::vector<float>& bias) {
  if (type == FloatType::F32) return bytes_of(bias);
  Values halves;
  for (float& b : bias) {
    halves.push_back(from_float<BFloat16>(b));
    b = to_float(halves.back());
  }
  return bytes_of(halves);
}

std::vector<float> draw_floats(int64_t count, float low, float high, std::mt19937& rng) {
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> floats(static_cast<size_t>(count));
  for (float& f : floats) f = uniform(rng);
  return floats;
}

Problem::Problem(const Layer& l, Fill f, std::mt19937& rng)
    : layer(l),
      fill(f),
      on_device(l),
      hidden(draw_rows(f, l.rows(), 2 * l.columns, rng)),
      grad(draw_rows(f, l.rows(), l.columns, rng)),
      bias(rng() % 2 ? draw_floats(l.groups * 2 * l.columns, -2, 2, rng) : std::vector<float>{}),
      scores(draw_floats(l.rows(), 0, 1, rng)),
      hidden_bytes(bytes_of(hidden)),
      grad_bytes(bytes_of(grad)),
      bias_host(bias_as(rng() % 2 ? FloatType::F32 : FloatType::BF16, bias)),
      bias_bytes(bias_host),
      score_bytes(bytes_of(scores)),
      source{hidden_bytes.get(), l.columns, on_device.groups, {}} {
  if (!bias.empty()) {
    source.bias = bias_bytes.get();
    source.bias_type = bias_host.size() == 4 * bias.size() ? FloatType::F32 : FloatType::BF16;
  }
  GateActivation& a = source.activation;
  if (rng() % 2) a = {GateFunction::CLAMPED, a.layout, 1.702f, rng() % 2 ? 7.0f : 1.5f};
  if (rng() % 2) a.layout = GateLayout::INTERLEAVED;
  source.slot_of_row = on_device.slot_of_row.as<int32_t>();
  if (rng() % 3) {
    source.scores = score_bytes.as<float>();
  } else {
    std::fill(scores.begin(), scores.end(), 1.0f);
  }
  if (rng() % 3 == 0) source.placement = GateScores::INPUT;
  if (rng() % 3 == 0) source.elem = ElemDtype::E5M2;
  source.round_scales_to_power_of_2 = rng() % 3 != 0;
}

std::string Problem::name() const {
  const GateActivation& a = source.activation;
  return std::string("swiglu ") + (a.function == GateFunction::CLAMPED ? "clamped " : "") +
         (a.layout == GateLayout::INTERLEAVED ? "interleaved " : "") +
         (bias.empty() ? "" : "with a bias ") + (source.scores ? "scored " : "") +
         (source.placement == GateScores::INPUT ? "on the input, " : ", ") + layer.name() +
         ", fill " + std::to_string(static_cast<int>(fill));
}

reference::SwigluRow Problem::row(int64_t r) const {
  const int64_t width = 2 * layer.columns;
  return {source.activation,
          layer.columns,
          hidden.data() + r * width,
          bias.empty() ? nullptr : bias.data() + group_of(r) * width,
          score(r),
          source.placement};
}

// ---- what is compared
// How far a result may be from its reference beside one unit of bf16: where terms of this size
// cancel, and where a sigmoid vanishes (src/reference/swiglu.h).
struct Slack {
  double hidden_gate, hidden_up;
  double value, activation;  // before and after a score on the output
  double score;              // the sum of the terms of the score's gradient, in magnitude

  static constexpr double kCancelled = 0x1p-18;
  static constexpr double kVanished = 0x1p-118;
};

Slack slack_of(const Problem& p, const reference::SwigluRow& row, int64_t i, float d) {
  const bool interleaved = row.activation.layout == GateLayout::INTERLEAVED;
  const int64_t gate_at = interleaved ? 2 * i : i;
  const int64_t up_at = interleaved ? 2 * i + 1 : row.columns + i;
  const bool is_input = row.placement == GateScores::INPUT;
  const double input = is_input ? double{row.score} : 1.0, output = is_input ? 1.0 : row.score;
  const double h_gate = std::fabs(to_float(row.hidden[gate_at]));
  const double h_up = std::fabs(to_float(row.hidden[up_at]));
  const bool biased = !p.bias.empty();
  const double gate = input * h_gate + (biased ? std::fabs(row.bias[gate_at]) : 0.0);
  const double up = input * h_up + (biased ? std::fabs(row.bias[up_at]) : 0.0) + 1;
  const double grad = std::fabs(d);
  return {Slack::kCancelled * output * grad * up * input, Slack::kVanished * output * grad * input,
          Slack::kVanished * up, Slack::kVanished * output * up,
          is_input ? grad * (2 * up * h_gate + gate * h_up) : grad * gate * up};
}

int64_t ordered(BFloat16 x) {
  const int32_t magnitude = x.bits & 0x7FFF;
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

bool is_close(BFloat16 got, BFloat16 expected, double slack) {
  const float a = to_float(got), b = to_float(expected);
  if (std::isnan(b)) return std::isnan(a);
  if (std::isnan(a)) return !std::isfinite(slack);  // a vanished sigmoid times Inf
  return std::abs(ordered(got) - ordered(expected)) <= 1 ||
         std::fabs(static_cast<double>(a) - b) <= slack;
}

// Counts the values that are not close, and tells of the first.
class Comparison {
 public:
  explicit Comparison(std::string what) : what_(std::move(what)) {}
  ~Comparison() {
    expect(wrong_ == 0, what_ + ": " + std::to_string(wrong_) + " values differ, first " + first_);
  }
  Comparison(const Comparison&) = delete;
  Comparison& operator=(const Comparison&) = delete;

  void check(BFloat16 got, BFloat16 expected, double slack, int64_t row, int64_t column) {
    ++compared;
    if (is_close(got, expected, slack)) return;
    if (wrong_++ > 0) return;
    char text[100];
    std::snprintf(text, sizeof text, "row %d column %d: expected %.9g, got %.9g",
                  static_cast<int>(row), static_cast<int>(column),
                  static_cast<double>(to_float(expected)), static_cast<double>(to_float(got)));
    first_ = text;
  }

 private:
  std::string what_, first_;
  int64_t wrong_ = 0;
};

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
  RowsExpected(const Problem& p, const RowOutputs& out);
  Bytes values, codes, inverse, amax;
};

RowsExpected::RowsExpected(const Problem& p, const RowOutputs& out) : values(out.values.host()) {
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
void compare_forward(const Problem& p, const RowOutputs& out) {
  const Values got = from_device(out.values);
  Values expected(static_cast<size_t>(p.layer.columns));
  Comparison values(p.name() + " forward");
  for (int64_t r = 0; r < p.layer.rows(); ++r) {
    std::fill(expected.begin(), expected.end(), BFloat16{});
    if (p.is_grouped(r)) reference::swiglu(p.row(r), expected.data());
    for (int64_t c = 0; c < p.layer.columns; ++c) {
      const double slack = p.is_grouped(r) ? slack_of(p, p.row(r), c, 0).value : 0;
      values.check(got[static_cast<size_t>(r * p.layer.columns + c)],
                   expected[static_cast<size_t>(c)], slack, r, c);
    }
  }
}

void check_forward(const Problem& p, int64_t pitch_more) {
  const std::string what = p.name() + " forward";
  RowOutputs out(p.layer, p.layer.columns, pitch_more);
  SwigluArgs args{p.source, out.args(true, true, false)};
  require(launch_swiglu(args, nullptr), what.c_str());
  require(cudaDeviceSynchronize(), what.c_str());
  compare_forward(p, out);
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

void compare_scores(const Problem& p, const std::vector<float>& got, int64_t r, double expected,
                    double size) {
  const double actual = got[static_cast<size_t>(p.slot(r))];
  // Where a term or the sum may overflow, the order decides whether it does.
  if (!std::isfinite(size) || !std::isfinite(expected) || size > 1e38) return;
  expect(std::fabs(actual - expected) <= 0x1p-17 * size,
         p.name() + ": the score's gradient of row " + std::to_string(r) + ": expected " +
             std::to_string(expected) + ", got " + std::to_string(actual));
}

void compare_backward(const Problem& p, const BackwardOutputs& out) {
  const int64_t h = p.layer.columns;
  const Values hidden = from_device(out.hidden.values), act = from_device(out.activation.values);
  const Bytes score_bytes = out.score.host();
  std::vector<float> scores(static_cast<size_t>(p.layer.rows()));
  if (!scores.empty()) std::memcpy(scores.data(), score_bytes.data(), score_bytes.size());
  Comparison hidden_grad(p.name() + " hidden_grad"), activation(p.name() + " activation");
  for (int64_t r = 0; r < p.layer.rows(); ++r) {
    Values hidden_row(static_cast<size_t>(2 * h)), act_row(static_cast<size_t>(h));
    reference::SwigluGradient e{hidden_row.data(), act_row.data(), 0};
    const BFloat16* d = p.grad.data() + r * h;
    if (p.is_grouped(r)) reference::swiglu_backward(p.row(r), d, e);
    const bool interleaved = p.source.activation.layout == GateLayout::INTERLEAVED;
    double size = 0;
    for (int64_t i = 0; i < h; ++i) {
      const int64_t gate = interleaved ? 2 * i : i, up = interleaved ? 2 * i + 1 : h + i;
      const Slack s = p.is_grouped(r) ? slack_of(p, p.row(r), i, to_float(d[i])) : Slack{};
      const auto at = [&](int64_t c) { return static_cast<size_t>(r * 2 * h + c); };
      hidden_grad.check(hidden[at(gate)], e.hidden[gate], s.hidden_gate, r, gate);
      hidden_grad.check(hidden[at(up)], e.hidden[up], s.hidden_up, r, up);
      activation.check(act[static_cast<size_t>(r * h + i)], e.activation[i], s.activation, r, i);
      size += s.score;
    }
    compare_scores(p, scores, r, e.score, size);
  }
}

// The codes of hidden_grad in the memory of the gradients that they are made from.
void check_in_place(const Problem& p, SwigluBackwardArgs args, const RowsExpected& expected) {
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

void check_backward(const Problem& p, int64_t pitch_more) {
  const std::string what = p.name() + " backward";
  BackwardOutputs out(p.layer, pitch_more);
  RowOutputs &h = out.hidden, &act = out.activation;
  SwigluBackwardArgs args{p.source, p.grad_bytes.get(), h.args(true, true, true),
                          act.args(true, true, true), out.score.as<float>()};
  const auto launch = [&] { return launch_swiglu_backward(args, nullptr); };
  require(launch(), what.c_str());
  require(cudaDeviceSynchronize(), what.c_str());
  compare_backward(p, out);
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
  for (const Fill fill : {Fill::NORMAL, Fill::WIDE, Fill::BROKEN}) {
    const Problem p(layer, fill, rng);
    const int64_t pitch_more = rng() % 4 == 0 ? 16 * (rng() % 3) : 0;
    check_forward(p, pitch_more);
    check_backward(p, pitch_more);
  }
}

// Rows of every number of packets and threads, and longer than threads can hold.
void check_swiglu_widths(std::mt19937& rng) {
  for (const int64_t columns : {8, 24, 264, 512, 768, 1000, 1544, 2048, 2880, 8192, 12288, 16400}) {
    const Layer layer = layer_of_sizes({3, 0, 9}, columns % 3, columns, rng);
    for (int time = 0; time < 2; ++time) {
      const Problem p(layer, Fill::WIDE, rng);
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
