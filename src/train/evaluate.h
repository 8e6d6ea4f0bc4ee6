// SPDX-License-Identifier: BSD-3-Clause
// The loss of a model on texts, and how far it can be trusted.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "train/eval_text.h"

namespace moe8 {

class TransformerImpl;

struct EvaluateOptions {
  int64_t seq_len = 256;
  /// Windows begin so many tokens apart; a token counts in the first that holds it, so that with less
  /// than seq_len it sees at least seq_len - stride tokens before it. 0: seq_len.
  int64_t stride = 0;
  int64_t batch_size = 8;
  std::function<void(double share)> progress{};  // called with what is done, 0 to 1
};

/// Tokens that are alike: a document, or neighbouring windows of a text.
struct LossBlock {
  double nats = 0;  // the sum of their losses
  int64_t tokens = 0;
};

/// Of one text. Each token but the first, of a text or of a document that is measured by itself, is
/// predicted once; tokens that do not count are not in these.
struct TextLoss {
  std::string name{};
  std::vector<LossBlock> blocks{};
  int64_t tokens = 0;
  double nats = 0;
  std::optional<int64_t>
      bytes{};                // of the text that the tokens stand for; not known without tokenizer
  std::string fingerprint{};  // of what was measured, and in which windows
};

/// A number and its standard error; none where a single block was measured.
struct Estimate {
  double value = 0;
  std::optional<double> error{};
};

/// @param bytes_are_tokens  the text is its bytes
/// @param tokenizer         null: bytes of other texts are not known
std::vector<TextLoss> evaluate(TransformerImpl& model, const std::vector<EvalText>& texts,
                               const EvaluateOptions& options, bool bytes_are_tokens,
                               const Tokenizer* tokenizer);

/// The mean loss of a token, in nats, of all texts together. Its error comes from how blocks differ
/// within each text, sqrt(sum_b (nats_b - loss tokens_b)^2 B / (B - 1)) / tokens: neighbouring tokens
/// are alike, and their number says less than that of the blocks.
Estimate mean_loss(const std::vector<TextLoss>& texts);

/// Bits per byte of text; none where the bytes of one are not known.
std::optional<double> bits_per_byte(const std::vector<TextLoss>& texts);

/// mean_loss(of) - mean_loss(than), with the error of the differences block by block, which is far less
/// than that of either where both find the same texts hard. None unless both are of the same tokens.
std::optional<Estimate> difference(const std::vector<TextLoss>& of,
                                   const std::vector<TextLoss>& than);

}  // namespace moe8
