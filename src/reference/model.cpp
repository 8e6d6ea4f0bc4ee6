// SPDX-License-Identifier: BSD-3-Clause
#include "reference/model.h"

#include <algorithm>
#include <cmath>

namespace moe8::reference {
namespace {

template <typename T>
double wide(T x) {
  return static_cast<double>(to_float(x));
}

// Pairs `step` features apart, from one to the next `next` features.
template <typename T>
void rotate_head(const T* in, const float* freqs, int64_t pairs, int64_t step, int64_t next,
                 float sign, T* out) {
  for (int64_t j = 0; j < pairs; ++j) {
    const float c = freqs[2 * j], s = sign * freqs[2 * j + 1];
    const float a = to_float(in[next * j]), b = to_float(in[next * j + step]);
    out[next * j] = from_float<T>(a * c - b * s);
    out[next * j + step] = from_float<T>(a * s + b * c);
  }
}

}  // namespace

template <typename T>
void rotate(const T* in, int64_t head_stride, const float* freqs, int64_t heads, int64_t width,
            RotaryPairs pairs, bool inverse, T* out) {
  const float sign = inverse ? -1.0f : 1.0f;
  for (int64_t h = 0; h < heads; ++h) {
    const T* x = in + h * head_stride;
    T* y = out + h * width;
    if (pairs == RotaryPairs::NEIGHBOURS) {
      rotate_head(x, freqs, width / 2, 1, 2, sign, y);
    } else {
      rotate_head(x, freqs, width / 2, width / 2, 1, sign, y);
    }
  }
}

template <typename T>
double log_sum_exp(const T* x, int64_t columns) {
  double largest = -HUGE_VAL, sum = 0;
  for (int64_t i = 0; i < columns; ++i) largest = std::max(largest, wide(x[i]));
  if (largest == -HUGE_VAL) return largest;
  for (int64_t i = 0; i < columns; ++i) sum += std::exp(wide(x[i]) - largest);
  return largest + std::log(sum);
}

template <typename T>
std::vector<double> cross_entropy_gradient(const T* x, int64_t columns, double lse, int64_t target,
                                           double scale) {
  std::vector<double> grad(static_cast<size_t>(columns));
  for (int64_t i = 0; i < columns; ++i) {
    const double p = std::exp(wide(x[i]) - lse);
    grad[static_cast<size_t>(i)] = (i == target ? p - 1 : p) * scale;
  }
  return grad;
}

template <typename T>
double rms_norm_scale(const T* h, int64_t columns, double eps) {
  double squares = 0;
  for (int64_t i = 0; i < columns; ++i) squares += wide(h[i]) * wide(h[i]);
  return 1 / std::sqrt(squares / static_cast<double>(columns) + eps);
}

template <typename T>
std::vector<double> rms_norm_gradient(const T* h, const T* weight, const T* grad, int64_t columns,
                                      double scale) {
  double product = 0;
  for (int64_t i = 0; i < columns; ++i) product += wide(grad[i]) * wide(weight[i]) * wide(h[i]);
  const double slope = product / static_cast<double>(columns) * scale * scale;
  std::vector<double> out(static_cast<size_t>(columns));
  for (int64_t i = 0; i < columns; ++i) {
    out[static_cast<size_t>(i)] = scale * (wide(grad[i]) * wide(weight[i]) - wide(h[i]) * slope);
  }
  return out;
}

Gate gate(double gate, double up) {
  const double sigmoid = 1 / (1 + std::exp(-gate)), silu = gate * sigmoid;
  return {silu * up, up * sigmoid * (1 + gate * (1 - sigmoid)), silu};
}

namespace {

constexpr double kLeastSum = 1e-20;

// Of the chosen experts.
double sum_of_chosen(const std::vector<double>& p, const std::vector<int64_t>& chosen) {
  double sum = kLeastSum;
  for (const int64_t e : chosen) sum += p[static_cast<size_t>(e)];
  return sum;
}

}  // namespace

template <typename T>
std::vector<double> expert_scores(const T* logits, int64_t experts, ScoreFunction function) {
  const bool softmax = function == ScoreFunction::SOFTMAX;
  const double lse = softmax ? log_sum_exp(logits, experts) : 0;
  std::vector<double> p;
  p.reserve(static_cast<size_t>(experts));
  for (int64_t e = 0; e < experts; ++e) {
    const double x = wide(logits[e]);
    p.push_back(softmax ? std::exp(x - lse) : 1 / (1 + std::exp(-x)));
  }
  return p;
}

std::vector<double> route_scores(const std::vector<double>& p, const std::vector<int64_t>& chosen,
                                 bool normalize, double scale) {
  const double divisor = normalize ? sum_of_chosen(p, chosen) : 1;
  std::vector<double> scores;
  scores.reserve(chosen.size());
  for (const int64_t e : chosen) scores.push_back(scale * p[static_cast<size_t>(e)] / divisor);
  return scores;
}

std::vector<double> route_gradient(const std::vector<double>& p, const std::vector<int64_t>& chosen,
                                   const std::vector<double>& grad, ScoreFunction function,
                                   bool normalize, double scale) {
  const double divisor = normalize ? sum_of_chosen(p, chosen) : 1;
  double mean = 0;  // of the chosen experts' gradients, with their shares
  for (size_t j = 0; normalize && j < chosen.size(); ++j) {
    mean += grad[j] * p[static_cast<size_t>(chosen[j])] / divisor;
  }
  std::vector<double> by_p(p.size());
  for (size_t j = 0; j < chosen.size(); ++j) {
    by_p[static_cast<size_t>(chosen[j])] = scale * (grad[j] - mean) / divisor;
  }
  double product = 0;
  for (size_t e = 0; e < p.size(); ++e) product += by_p[e] * p[e];
  std::vector<double> out(p.size());
  for (size_t e = 0; e < p.size(); ++e) {
    out[e] = function == ScoreFunction::SOFTMAX ? p[e] * (by_p[e] - product)
                                                : by_p[e] * p[e] * (1 - p[e]);
  }
  return out;
}

template void rotate(const BFloat16*, int64_t, const float*, int64_t, int64_t, RotaryPairs, bool,
                     BFloat16*);
template void rotate(const float*, int64_t, const float*, int64_t, int64_t, RotaryPairs, bool,
                     float*);
#define MOE8_MODEL_OPERATIONS(T)                                                                   \
  template double log_sum_exp(const T*, int64_t);                                                  \
  template std::vector<double> cross_entropy_gradient(const T*, int64_t, double, int64_t, double); \
  template double rms_norm_scale(const T*, int64_t, double);                                       \
  template std::vector<double> rms_norm_gradient(const T*, const T*, const T*, int64_t, double);   \
  template std::vector<double> expert_scores(const T*, int64_t, ScoreFunction)
MOE8_MODEL_OPERATIONS(BFloat16);
MOE8_MODEL_OPERATIONS(float);
#undef MOE8_MODEL_OPERATIONS

}  // namespace moe8::reference
