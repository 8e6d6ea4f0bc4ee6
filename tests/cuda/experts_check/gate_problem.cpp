// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/experts_check/gate_problem.h"

#include <cmath>
#include <cstdio>
#include <cstring>

namespace moe8::cuda {
namespace {

// ---- inputs
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

Slack slack_of(const GateProblem& p, const reference::SwigluRow& row, int64_t i, float d) {
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

// What overflows counts as the power of two above all numbers: a term that vanished may be what led
// there.
double bounded(float x) {
  return std::clamp(double{x}, -0x1p128, 0x1p128);
}

bool is_close(BFloat16 got, BFloat16 expected, double slack) {
  const float a = to_float(got), b = to_float(expected);
  if (std::isnan(b)) return std::isnan(a);
  if (std::isnan(a)) return !std::isfinite(slack);  // a vanished sigmoid times Inf
  return std::abs(ordered(got) - ordered(expected)) <= 1 ||
         std::fabs(bounded(a) - bounded(b)) <= slack;
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

void compare_scores(const GateProblem& p, const std::vector<float>& got, int64_t r, double expected,
                    double size) {
  const double actual = got[static_cast<size_t>(p.slot(r))];
  // Where a term or the sum may overflow, the order decides whether it does.
  if (!std::isfinite(size) || !std::isfinite(expected) || size > 1e38) return;
  expect(std::fabs(actual - expected) <= 0x1p-17 * size,
         p.name() + ": the score's gradient of row " + std::to_string(r) + ": expected " +
             std::to_string(expected) + ", got " + std::to_string(actual));
}

}  // namespace

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

std::vector<float> floats_of(const DeviceBytes& bytes) {
  const Bytes host = bytes.host();
  std::vector<float> floats(host.size() / sizeof(float));
  if (!floats.empty()) std::memcpy(floats.data(), host.data(), host.size());
  return floats;
}

GateProblem::GateProblem(const Layer& l, Fill f, std::mt19937& rng)
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

std::string GateProblem::name() const {
  const GateActivation& a = source.activation;
  return std::string("swiglu ") + (a.function == GateFunction::CLAMPED ? "clamped " : "") +
         (a.layout == GateLayout::INTERLEAVED ? "interleaved " : "") +
         (bias.empty() ? "" : "with a bias ") + (source.scores ? "scored " : "") +
         (source.placement == GateScores::INPUT ? "on the input, " : ", ") + layer.name() +
         ", fill " + std::to_string(static_cast<int>(fill));
}

reference::SwigluRow GateProblem::row(int64_t r) const {
  const int64_t width = 2 * layer.columns;
  return {source.activation,
          layer.columns,
          hidden.data() + r * width,
          bias.empty() ? nullptr : bias.data() + group_of(r) * width,
          score(r),
          source.placement};
}

void compare_forward(const GateProblem& p, const Values& activations) {
  Values expected(static_cast<size_t>(p.layer.columns));
  Comparison values(p.name() + " forward");
  for (int64_t r = 0; r < p.layer.rows(); ++r) {
    std::fill(expected.begin(), expected.end(), BFloat16{});
    if (p.is_grouped(r)) reference::swiglu(p.row(r), expected.data());
    for (int64_t c = 0; c < p.layer.columns; ++c) {
      const double slack = p.is_grouped(r) ? slack_of(p, p.row(r), c, 0).value : 0;
      values.check(activations[static_cast<size_t>(r * p.layer.columns + c)],
                   expected[static_cast<size_t>(c)], slack, r, c);
    }
  }
}

void compare_backward(const GateProblem& p, const Values& hidden, const Values& act,
                      const std::vector<float>& scores) {
  const int64_t h = p.layer.columns;
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

}  // namespace moe8::cuda
