// SPDX-License-Identifier: BSD-3-Clause
// Kept keys and values, the choice of a token, and the loop over both.
#include "moe8/generate.h"

#include <ATen/core/PhiloxRNGEngine.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "moe8/transformer.h"

namespace moe8 {
namespace {

constexpr const char* kGenerate = "generate";
constexpr const char* kSampling = "sample_token";

// ---- keys and values ----------------------------------------------------------
// A view of what is kept, with the new positions at its end.
at::Tensor with_added(at::Tensor& kept, const at::Tensor& added, int64_t capacity, int64_t length) {
  if (!kept.defined()) {
    kept = at::empty({added.size(0), added.size(1), capacity, added.size(3)}, added.options());
  }
  kept.narrow(2, length, added.size(2)).copy_(added);
  return kept.narrow(2, 0, length + added.size(2));
}

// ---- the choice of a token ----------------------------------------------------
void check(const SamplingOptions& o) {
  MOE8_CHECK(o.temperature >= 0 && std::isfinite(o.temperature), kSampling, "temperature",
             "expected 0 or more, got ", o.temperature);
  MOE8_CHECK(o.top_k >= 0, kSampling, "top_k", "expected 0 or more, got ", o.top_k);
  MOE8_CHECK(o.top_p > 0 && o.top_p <= 1, kSampling, "top_p",
             "expected more than 0, at most 1, got ", o.top_p);
}

// A number of [0, 1) that seed and position decide.
double uniform(uint64_t seed, int64_t position) {
  at::Philox4_32 random(seed, static_cast<uint64_t>(position));
  const uint64_t high = random();
  const uint64_t bits = high << 32U | random();
  return std::ldexp(static_cast<double>(bits >> 11U), -53);
}

// The tokens that may be chosen, the likeliest first, and their weights, the first of which is 1.
struct Candidates {
  std::vector<int64_t> tokens;
  std::vector<double> weights;
};

Candidates candidates_of(std::span<const double> logits, const SamplingOptions& options) {
  Candidates all;
  all.tokens.resize(logits.size());
  std::iota(all.tokens.begin(), all.tokens.end(), int64_t{0});
  const auto logit = [&](int64_t token) { return logits[static_cast<size_t>(token)]; };
  const auto before = [&](int64_t a, int64_t b) {
    return logit(a) > logit(b) || (logit(a) == logit(b) && a < b);
  };
  const auto most = static_cast<int64_t>(logits.size());
  const int64_t kept = options.top_k > 0 ? std::min(options.top_k, most) : most;
  std::partial_sort(all.tokens.begin(), all.tokens.begin() + kept, all.tokens.end(), before);
  all.tokens.resize(static_cast<size_t>(kept));
  for (const int64_t token : all.tokens) {
    all.weights.push_back(
        std::exp((logit(token) - logit(all.tokens.front())) / options.temperature));
  }
  const double enough =
      options.top_p * std::accumulate(all.weights.begin(), all.weights.end(), 0.0);
  double sum = 0;
  for (size_t i = 0; i < all.tokens.size() && options.top_p < 1; ++i) {
    sum += all.weights[i];
    if (sum < enough) continue;
    all.tokens.resize(i + 1);
    all.weights.resize(i + 1);
  }
  return all;
}

int64_t largest(std::span<const double> logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

// ---- the loop -----------------------------------------------------------------
// The model as generate() found it, but in evaluation meanwhile.
class Evaluating {
 public:
  explicit Evaluating(TransformerImpl& model) : model_(model), was_training_(model.is_training()) {
    model.eval();
  }
  ~Evaluating() { model_.train(was_training_); }
  Evaluating(const Evaluating&) = delete;
  Evaluating& operator=(const Evaluating&) = delete;

 private:
  TransformerImpl& model_;
  bool was_training_;
  at::NoGradGuard no_grad_;
};

void check_prompt(const TransformerImpl& model, std::span<const int64_t> prompt) {
  const TransformerConfig& config = model.config();
  const auto length = static_cast<int64_t>(prompt.size());
  MOE8_CHECK(length >= 1 && length < config.max_seq_len, kGenerate, "prompt", "expected 1 to ",
             config.max_seq_len - 1, " tokens, one fewer than max_seq_len, got ", length);
  for (const int64_t token : prompt) {
    MOE8_CHECK(token >= 0 && token < config.vocab_size, kGenerate, "prompt",
               "expected tokens below vocab_size = ", config.vocab_size, ", got ", token);
  }
}

}  // namespace

std::pair<at::Tensor, at::Tensor> LayerCache::append(const at::Tensor& first,
                                                     const at::Tensor& second) {
  const int64_t added = first.size(2);
  MOE8_CHECK(length_ + added <= capacity_, "KvCache", "positions", "expected at most ",
             capacity_ - length_, " more, got ", added);
  const at::Tensor firsts = with_added(first_, first, capacity_, length_);
  const at::Tensor seconds = with_added(second_, second, capacity_, length_);
  length_ += added;
  return {firsts, seconds};
}

int64_t sample_token(const at::Tensor& logits, const SamplingOptions& options, int64_t position) {
  check(options);
  MOE8_CHECK(logits.dim() == 1 && logits.numel() > 0, kSampling, "logits", "expected [V], got ",
             logits.sizes());
  const at::Tensor on_host = logits.detach().to(at::kCPU, at::kDouble).contiguous();
  const std::span values(on_host.const_data_ptr<double>(), static_cast<size_t>(on_host.numel()));
  const bool has_nan = std::ranges::any_of(values, [](double x) { return std::isnan(x); });
  const int64_t first = largest(values);
  MOE8_CHECK(!has_nan && std::isfinite(values[static_cast<size_t>(first)]), kSampling, "logits",
             "expected finite numbers, got ", has_nan ? "NaN" : "none");
  if (options.temperature == 0) return first;
  const Candidates all = candidates_of(values, options);
  const double sum = std::accumulate(all.weights.begin(), all.weights.end(), 0.0);
  double rest = sum * uniform(options.seed, position);
  for (size_t i = 0; i < all.tokens.size(); ++i) {
    if (rest < all.weights[i]) return all.tokens[i];
    rest -= all.weights[i];
  }
  return all.tokens.front();  // rounding left something over
}

std::vector<int64_t> generate(TransformerImpl& model, std::span<const int64_t> prompt,
                              const GenerateOptions& options) {
  check(options.sampling);
  check_prompt(model, prompt);
  MOE8_CHECK(options.max_tokens >= 0, kGenerate, "max_tokens", "expected 0 or more, got ",
             options.max_tokens);
  const Evaluating now(model);
  const auto given = static_cast<int64_t>(prompt.size());
  const int64_t most = std::min(options.max_tokens, model.config().max_seq_len - given);
  const at::Device device = model.tok_embeddings->weight.device();
  KvCache cache(given + most);
  std::vector<int64_t> all(prompt.begin(), prompt.end());
  while (static_cast<int64_t>(all.size()) < given + most) {
    const auto length = static_cast<int64_t>(all.size());
    const int64_t seen = options.use_cache ? cache.length() : 0;
    const at::Tensor tokens =
        at::tensor(at::ArrayRef<int64_t>(all).slice(static_cast<size_t>(seen)), at::kLong);
    const at::Tensor logits =
        model.forward_with(tokens.unsqueeze(0).to(device),
                           {.cache = options.use_cache ? &cache : nullptr, .last_position = true});
    const int64_t token = sample_token(logits[0][0], options.sampling, length);
    all.push_back(token);
    const bool ends = std::ranges::find(options.end_tokens, token) != options.end_tokens.end();
    if (options.on_token && !options.on_token(token)) break;
    if (ends) break;
  }
  return {all.begin() + given, all.end()};
}

}  // namespace moe8
