// SPDX-License-Identifier: BSD-3-Clause
// How tokenizer.json cuts a text into the pieces within which tokens are merged. No Torch.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/split.h"

namespace moe8 {

struct Piece {
  std::string_view text;  // valid UTF-8
  bool first;             // begins where the text that was given begins
};

/// Takes pieces as they are made.
class PieceSink {
 public:
  virtual ~PieceSink() = default;
  virtual void take(const Piece& piece) = 0;
};

/// One step; it cuts a piece, or changes its text.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  /// Gives what `piece` becomes to `sink`; `scratch` is its own while it runs.
  virtual void apply(const Piece& piece, std::string& scratch, PieceSink& sink) const = 0;
  /// True for bytes_as_letters().
  virtual bool writes_letters() const { return false; }
};

using PreTokenizers = std::vector<std::unique_ptr<PreTokenizer>>;

/// A chain of them, in whose end the pieces fall.
class PieceChain : public PieceSink {
 public:
  /// The first `count` of `steps`.
  PieceChain(const PreTokenizers& steps, size_t count, PieceSink& end);
  void take(const Piece& piece) override { first_->take(piece); }

 private:
  class Link : public PieceSink {
   public:
    Link(const PreTokenizer& step, PieceSink& next) : step_(step), next_(next) {}
    void take(const Piece& piece) override { step_.apply(piece, scratch_, next_); }

   private:
    const PreTokenizer& step_;
    PieceSink& next_;
    std::string scratch_;
  };
  std::vector<std::unique_ptr<Link>> links_;
  PieceSink* first_;
};

std::unique_ptr<PreTokenizer> split_at(std::unique_ptr<Finder> finder, SplitBehavior behavior,
                                       bool invert = false);
/// " " in front of a piece that does not begin with one.
std::unique_ptr<PreTokenizer> prefix_space();
/// GPT-2's alphabet: every byte as a letter (text/byte_letters.h).
std::unique_ptr<PreTokenizer> bytes_as_letters();
/// Pieces of `length` code points, the last one shorter.
std::unique_ptr<PreTokenizer> fixed_length(size_t length);

enum class PrependScheme { ALWAYS, FIRST, NEVER };
/// Spaces as `replacement`, and one of it in front of a piece that does not begin with it.
std::unique_ptr<PreTokenizer> replace_spaces(std::string replacement, PrependScheme scheme);

}  // namespace moe8
