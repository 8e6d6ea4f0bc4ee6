// SPDX-License-Identifier: BSD-3-Clause
#include "train/evaluate.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"
#include "moe8/transformer.h"

namespace moe8 {
namespace {

constexpr const char* kEvaluate = "eval";
constexpr int64_t kMostBlocks = 64;  // of a text without documents

// ---- windows --------------------------------------------------------------------
/// Inputs begin .. begin + length - 1 of a text; their targets are one later. The first `known` of
/// these count elsewhere or not at all.
struct EvalWindow {
  int64_t begin, length, known;
  size_t block;
};

// Of tokens [begin, end) of a text.
void add_windows(std::vector<EvalWindow>& windows, int64_t begin, int64_t end,
                 const EvaluateOptions& o, size_t block) {
  const int64_t stride = o.stride > 0 ? o.stride : o.seq_len;
  int64_t counted = begin + 1;  // the first target that is still to count
  for (int64_t at = begin; counted < end; at += stride) {
    const int64_t length = std::min(o.seq_len, end - 1 - at);
    windows.push_back({at, length, counted - at - 1, block});
    counted = at + length + 1;
  }
}

std::vector<EvalWindow> windows_of(const EvalText& text, const EvaluateOptions& o) {
  std::vector<EvalWindow> windows;
  if (text.document_ends.empty()) {
    add_windows(windows, 0, text.size, o, 0);
    const auto count = static_cast<int64_t>(windows.size());
    const int64_t blocks = std::min(count, kMostBlocks);
    for (int64_t i = 0; i < count; ++i) {
      windows[static_cast<size_t>(i)].block = static_cast<size_t>(i * blocks / count);
    }
    return windows;
  }
  int64_t begin = 0;
  for (size_t i = 0; i < text.document_ends.size(); ++i) {
    const int64_t end = std::min(static_cast<int64_t>(text.document_ends[i]), text.size);
    add_windows(windows, begin, end, o, i);
    begin = end;
  }
  return windows;
}

// ---- losses ---------------------------------------------------------------------
// -log p of every target, float64 on the host. [B, S]
at::Tensor losses_of(TransformerImpl& model, const at::Tensor& tokens, const at::Tensor& targets) {
  constexpr int64_t kElementsAtOnce = int64_t{1} << 26;
  const at::Device device = model.tok_embeddings->weight.device();
  const at::Tensor logits = model.forward(tokens.to(device)).flatten(0, 1);
  const at::Tensor wanted = targets.to(device).flatten().unsqueeze(1);
  const int64_t rows = std::max<int64_t>(1, kElementsAtOnce / logits.size(1));
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < logits.size(0); begin += rows) {
    const int64_t count = std::min(rows, logits.size(0) - begin);
    const at::Tensor x = logits.narrow(0, begin, count).to(at::kFloat);
    const at::Tensor own = x.gather(1, wanted.narrow(0, begin, count)).squeeze(1);
    parts.push_back(at::logsumexp(x, 1).sub(own).to(at::kCPU, at::kDouble));
  }
  return at::cat(parts).view(tokens.sizes());
}

/// Adds up what is measured of one text.
class TextMeasure {
 public:
  TextMeasure(const EvalText& text, const Tokenizer* tokenizer)
      : text_(text), tokenizer_(tokenizer) {}

  void measure(TransformerImpl& model, std::span<const EvalWindow> windows) {
    const auto count = static_cast<int64_t>(windows.size());
    const int64_t length = std::ranges::max(windows, {}, &EvalWindow::length).length;
    at::Tensor both = at::zeros({count, length + 1}, at::kLong);  // padded behind, where none looks
    std::vector<std::vector<uint32_t>> ids;
    for (int64_t row = 0; row < count; ++row) {
      const EvalWindow& window = windows[static_cast<size_t>(row)];
      ids.emplace_back(static_cast<size_t>(window.length + 1));
      text_.read(window.begin, ids.back());
      std::copy(ids.back().begin(), ids.back().end(),
                both.mutable_data_ptr<int64_t>() + row * (length + 1));
    }
    const at::Tensor losses = losses_of(model, both.narrow(1, 0, length).contiguous(),
                                        both.narrow(1, 1, length).contiguous());
    const auto values = losses.accessor<double, 2>();
    for (int64_t row = 0; row < count; ++row) {
      add(windows[static_cast<size_t>(row)], ids[static_cast<size_t>(row)],
          [&](int64_t i) { return values[row][i]; });
    }
  }

  TextLoss take(bool bytes_are_tokens) {
    for (const LossBlock& block : loss_.blocks) {
      loss_.nats += block.nats;
      loss_.tokens += block.tokens;
    }
    std::erase_if(loss_.blocks, [](const LossBlock& block) { return block.tokens == 0; });
    MOE8_CHECK(loss_.tokens > 0, kEvaluate, text_.name, "expected tokens that count, got none");
    if (bytes_are_tokens) {
      loss_.bytes = loss_.tokens;
    } else if (tokenizer_) {
      count_bytes();
      loss_.bytes = bytes_;
    }
    return std::move(loss_);
  }

 private:
  template <typename Loss>
  void add(const EvalWindow& window, const std::vector<uint32_t>& ids, const Loss& loss) {
    std::vector<uint8_t> counts(ids.size(), 1);
    if (text_.read_counts) text_.read_counts(window.begin, counts);
    if (loss_.blocks.size() <= window.block) loss_.blocks.resize(window.block + 1);
    LossBlock& block = loss_.blocks[window.block];
    for (int64_t i = window.known; i < window.length; ++i) {
      const auto target = static_cast<size_t>(i + 1);
      if (counts[target] == 0) continue;
      block.nats += loss(i);
      ++block.tokens;
      if (tokenizer_) scored_.push_back(ids[target]);
    }
    constexpr size_t kMostScored = 1 << 16;
    if (scored_.size() >= kMostScored) count_bytes();
  }

  void count_bytes() {
    bytes_ += text_bytes(*tokenizer_, scored_);
    scored_.clear();
  }

  const EvalText& text_;
  const Tokenizer* tokenizer_;
  TextLoss loss_{};
  std::vector<uint32_t> scored_;
  int64_t bytes_ = 0;
};

// ---- errors ---------------------------------------------------------------------
// The square of the error of a sum of blocks' deviations; none of a single block.
std::optional<double> variance_of_sum(const std::vector<double>& deviations) {
  const auto blocks = static_cast<double>(deviations.size());
  if (blocks < 2) return std::nullopt;
  double squares = 0;
  for (const double d : deviations) squares += d * d;
  return squares * blocks / (blocks - 1);
}

int64_t tokens_of(const std::vector<TextLoss>& texts) {
  int64_t tokens = 0;
  for (const TextLoss& text : texts) tokens += text.tokens;
  return tokens;
}

bool same_tokens(const std::vector<TextLoss>& a, const std::vector<TextLoss>& b) {
  return std::ranges::equal(a, b, [](const TextLoss& x, const TextLoss& y) {
    return x.fingerprint == y.fingerprint && x.tokens == y.tokens &&
           x.blocks.size() == y.blocks.size();
  });
}

// Of sums per block: the mean of a token. `nats(text, block)` gives a sum.
template <typename Nats>
Estimate estimate(const std::vector<TextLoss>& texts, const Nats& nats) {
  const auto tokens = static_cast<double>(tokens_of(texts));
  double sum = 0, variance = 0;
  bool is_known = true;
  for (size_t t = 0; t < texts.size(); ++t) {
    const std::vector<LossBlock>& blocks = texts[t].blocks;
    double of_text = 0;
    for (size_t b = 0; b < blocks.size(); ++b) of_text += nats(t, b);
    sum += of_text;
    const double mean = of_text / static_cast<double>(texts[t].tokens);
    std::vector<double> deviations;
    for (size_t b = 0; b < blocks.size(); ++b) {
      deviations.push_back(nats(t, b) - mean * static_cast<double>(blocks[b].tokens));
    }
    const std::optional<double> own = variance_of_sum(deviations);
    is_known = is_known && own;
    variance += own.value_or(0);
  }
  Estimate made{.value = sum / tokens};
  if (is_known) made.error = std::sqrt(variance) / tokens;
  return made;
}

}  // namespace

std::vector<TextLoss> evaluate(TransformerImpl& model, const std::vector<EvalText>& texts,
                               const EvaluateOptions& options, bool bytes_are_tokens,
                               const Tokenizer* tokenizer) {
  const int64_t most = model.config().max_seq_len;
  MOE8_CHECK(options.seq_len >= 1 && options.seq_len <= most, kEvaluate, "--seq-len",
             "expected 1 to max_seq_len = ", most, ", got ", options.seq_len);
  MOE8_CHECK(options.stride >= 0 && options.stride <= options.seq_len, kEvaluate, "--stride",
             "expected 1 to the sequence length, ", options.seq_len, ", got ", options.stride);
  MOE8_CHECK(options.batch_size >= 1, kEvaluate, "--batch-size", "expected at least 1, got ",
             options.batch_size);
  const torch::NoGradGuard no_grad;
  const auto batch = static_cast<size_t>(options.batch_size);
  std::vector<TextLoss> losses;
  for (const EvalText& text : texts) {
    const std::vector<EvalWindow> windows = windows_of(text, options);
    TextMeasure measure(text, bytes_are_tokens ? nullptr : tokenizer);
    for (size_t begin = 0; begin < windows.size(); begin += batch) {
      measure.measure(model,
                      std::span(windows).subspan(begin, std::min(batch, windows.size() - begin)));
      const double share = static_cast<double>(std::min(begin + batch, windows.size())) /
                           static_cast<double>(windows.size());
      if (options.progress) {
        options.progress((static_cast<double>(losses.size()) + share) /
                         static_cast<double>(texts.size()));
      }
    }
    TextLoss& loss = losses.emplace_back(measure.take(bytes_are_tokens));
    loss.name = text.name;
    loss.fingerprint =
        concat(text.fingerprint, " ", text.size, " ", options.seq_len, " ", options.stride);
  }
  return losses;
}

Estimate mean_loss(const std::vector<TextLoss>& texts) {
  return estimate(texts, [&](size_t t, size_t b) { return texts[t].blocks[b].nats; });
}

std::optional<double> bits_per_byte(const std::vector<TextLoss>& texts) {
  double nats = 0, bytes = 0;
  for (const TextLoss& text : texts) {
    if (!text.bytes || *text.bytes == 0) return std::nullopt;
    nats += text.nats;
    bytes += static_cast<double>(*text.bytes);
  }
  return nats / bytes / std::numbers::ln2;
}

std::optional<Estimate> difference(const std::vector<TextLoss>& of,
                                   const std::vector<TextLoss>& than) {
  if (!same_tokens(of, than)) return std::nullopt;
  return estimate(
      of, [&](size_t t, size_t b) { return of[t].blocks[b].nats - than[t].blocks[b].nats; });
}

}  // namespace moe8
