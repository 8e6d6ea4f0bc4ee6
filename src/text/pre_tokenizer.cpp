// SPDX-License-Identifier: BSD-3-Clause
#include "text/pre_tokenizer.h"

#include "text/byte_letters.h"
#include "text/utf8.h"

namespace moe8 {
namespace {

class SplitAt : public PreTokenizer {
 public:
  SplitAt(std::unique_ptr<Finder> finder, SplitBehavior behavior, bool invert)
      : finder_(std::move(finder)), behavior_(behavior), invert_(invert) {}
  void apply(const Piece& piece, std::string&, PieceSink& sink) const override {
    split_text(*finder_, piece.text, behavior_, invert_, [&](std::string_view part) {
      sink.take({part, piece.first && part.data() == piece.text.data()});
    });
  }

 private:
  std::unique_ptr<Finder> finder_;
  SplitBehavior behavior_;
  bool invert_;
};

class PrefixSpace : public PreTokenizer {
 public:
  void apply(const Piece& piece, std::string& scratch, PieceSink& sink) const override {
    if (piece.text.starts_with(' ')) return sink.take(piece);
    scratch = " ";
    scratch += piece.text;
    sink.take({scratch, piece.first});
  }
};

class BytesAsLetters : public PreTokenizer {
 public:
  void apply(const Piece& piece, std::string& scratch, PieceSink& sink) const override {
    scratch.clear();
    append_as_letters(scratch, piece.text);
    sink.take({scratch, piece.first});
  }
  bool writes_letters() const override { return true; }
};

class FixedLength : public PreTokenizer {
 public:
  explicit FixedLength(size_t length) : length_(length) {}
  void apply(const Piece& piece, std::string&, PieceSink& sink) const override {
    size_t begin = 0;
    size_t points = 0;
    for_each_code_point(piece.text, [&](CodePoint, size_t at) {
      if (points++ % length_ != 0 || at == 0) return;
      sink.take({piece.text.substr(begin, at - begin), piece.first && begin == 0});
      begin = at;
    });
    if (begin < piece.text.size()) {
      sink.take({piece.text.substr(begin), piece.first && begin == 0});
    }
  }

 private:
  size_t length_;
};

class ReplaceSpaces : public PreTokenizer {
 public:
  ReplaceSpaces(std::string replacement, PrependScheme scheme)
      : replacement_(std::move(replacement)), scheme_(scheme) {}
  void apply(const Piece& piece, std::string& scratch, PieceSink& sink) const override {
    const bool wants_prefix =
        scheme_ == PrependScheme::ALWAYS || (scheme_ == PrependScheme::FIRST && piece.first);
    const bool has_prefix = piece.text.starts_with(' ') || piece.text.starts_with(replacement_);
    scratch.clear();
    if (wants_prefix && !has_prefix) scratch = replacement_;
    for (const char c : piece.text) {
      if (c == ' ')
        scratch += replacement_;
      else
        scratch += c;
    }
    sink.take({scratch, piece.first});
  }

 private:
  std::string replacement_;
  PrependScheme scheme_;
};

}  // namespace

PieceChain::PieceChain(const PreTokenizers& steps, size_t count, PieceSink& end) : first_(&end) {
  for (size_t i = count; i > 0; --i) {
    links_.push_back(std::make_unique<Link>(*steps[i - 1], *first_));
    first_ = links_.back().get();
  }
}

std::unique_ptr<PreTokenizer> split_at(std::unique_ptr<Finder> finder, SplitBehavior behavior,
                                       bool invert) {
  return std::make_unique<SplitAt>(std::move(finder), behavior, invert);
}
std::unique_ptr<PreTokenizer> prefix_space() {
  return std::make_unique<PrefixSpace>();
}
std::unique_ptr<PreTokenizer> bytes_as_letters() {
  return std::make_unique<BytesAsLetters>();
}
std::unique_ptr<PreTokenizer> fixed_length(size_t length) {
  return std::make_unique<FixedLength>(length);
}
std::unique_ptr<PreTokenizer> replace_spaces(std::string replacement, PrependScheme scheme) {
  return std::make_unique<ReplaceSpaces>(std::move(replacement), scheme);
}

}  // namespace moe8
