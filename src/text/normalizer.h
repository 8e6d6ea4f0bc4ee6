// SPDX-License-Identifier: BSD-3-Clause
// What tokenizer.json does to a text before it is cut: one object per kind. No Torch.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/split.h"
#include "text/unicode.h"

namespace moe8 {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  /// True when the text (valid UTF-8) changes; then `out`, which is no part of `text`, is the result.
  virtual bool apply(std::string_view text, std::string& out) const = 0;
};

using Normalizers = std::vector<std::unique_ptr<Normalizer>>;

/// All of them, one after the other. The result lives in `text` or in the two buffers.
class NormalizedText {
 public:
  std::string_view apply(const Normalizers& normalizers, std::string_view text);

 private:
  std::string buffers_[2];
};

std::unique_ptr<Normalizer> normalize_unicode(NormalForm form);
std::unique_ptr<Normalizer> replace_found(std::unique_ptr<Finder> finder, std::string content);
std::unique_ptr<Normalizer> prepend_text(std::string content);  // not to an empty text
std::unique_ptr<Normalizer> strip_whitespace(bool left, bool right);
std::unique_ptr<Normalizer> strip_accents();
std::unique_ptr<Normalizer> lower_case();
std::unique_ptr<Normalizer> bytes_to_letters();
/// "Nmt": without control characters, other whitespace as spaces.
std::unique_ptr<Normalizer> plain_characters();

}  // namespace moe8
