// SPDX-License-Identifier: BSD-3-Clause
// Added and special tokens: found in a text before anything else is done with it. No Torch.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moe8 {

struct AddedToken {
  uint32_t id = 0;
  std::string content;
  bool special = false;
  bool single_word = false;  // not within a word
  bool lstrip = false;       // takes the whitespace on its left
  bool rstrip = false;       // and on its right
  bool normalized = false;   // looked for in normalized text
};

/// The longest of some texts that begins at a position, by a tree of their bytes.
class TextTree {
 public:
  static constexpr uint32_t kNone = ~uint32_t{0};

  /// The texts' numbers are their places; of equal ones the last counts. None may be empty.
  explicit TextTree(const std::vector<std::string>& texts);

  /// The leftmost match at `from` or later, of these the longest. False when there is none.
  bool find(std::string_view text, size_t from, size_t& begin, size_t& end, uint32_t& which) const;

 private:
  struct Edge {
    char byte;
    uint32_t to;
  };
  struct Node {
    uint32_t text = kNone;  // that ends here
    std::vector<Edge> edges;
  };
  uint32_t next(uint32_t node, char byte) const;

  std::vector<Node> nodes_{1};
  std::array<bool, 256> begins_{};  // a text begins with this byte
};

/// A set of tokens that are looked for together.
class AddedTokens {
 public:
  /// `contents`: what is looked for, normalized where the tokens say so; as many as tokens.
  AddedTokens(std::vector<AddedToken> tokens, const std::vector<std::string>& contents);

  /// Calls text(string_view) and token(id) for what `text` is made of, in its order.
  template <typename OnText, typename OnToken>
  void split(std::string_view text, const OnText& on_text, const OnToken& on_token) const {
    size_t done = 0;
    size_t from = 0;
    Found found{};
    while (find(text, from, done, found)) {
      if (done < found.begin) on_text(text.substr(done, found.begin - done));
      on_token(tokens_[found.which].id);
      done = found.end;
    }
    if (done < text.size()) on_text(text.substr(done));
  }

 private:
  struct Found {
    size_t begin, end;
    uint32_t which;
  };
  // The next token, with the whitespace that it takes; `from` moves behind its text.
  bool find(std::string_view text, size_t& from, size_t done, Found& found) const;

  std::vector<AddedToken> tokens_;
  TextTree tree_;
};

}  // namespace moe8
