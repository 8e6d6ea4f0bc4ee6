// SPDX-License-Identifier: BSD-3-Clause
#include "text/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>

#include "text/unicode.h"
#include "text/utf8.h"

namespace moe8 {
namespace {

size_t before(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (text[begin] & 0xC0) == 0x80) --begin;
  return begin;
}

// What a word is made of: letters, marks, digits, connectors.
bool is_word(char32_t c) {
  if (c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9)) return true;
  const int kind = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return (kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_NL) ||
         kind == UTF8PROC_CATEGORY_PC;
}

bool within_word(std::string_view text, size_t begin, size_t end) {
  return (begin > 0 && is_word(code_point_at(text, before(text, begin)).value)) ||
         (end < text.size() && is_word(code_point_at(text, end).value));
}

size_t over_whitespace_left(std::string_view text, size_t begin) {
  while (begin > 0) {
    const size_t previous = before(text, begin);
    if (!is_whitespace(code_point_at(text, previous).value)) break;
    begin = previous;
  }
  return begin;
}
size_t over_whitespace_right(std::string_view text, size_t end) {
  while (end < text.size()) {
    const CodePoint point = code_point_at(text, end);
    if (!is_whitespace(point.value)) break;
    end += point.length;
  }
  return end;
}

}  // namespace

// ---- TextTree ---------------------------------------------------------------
TextTree::TextTree(const std::vector<std::string>& texts) {
  for (uint32_t i = 0; i < texts.size(); ++i) {
    uint32_t node = 0;
    for (const char byte : texts[i]) {
      uint32_t to = next(node, byte);
      if (to == kNone) {
        to = static_cast<uint32_t>(nodes_.size());
        nodes_.emplace_back();
        nodes_[node].edges.push_back({byte, to});
      }
      node = to;
    }
    nodes_[node].text = i;
    begins_[static_cast<unsigned char>(texts[i].front())] = true;
  }
}

uint32_t TextTree::next(uint32_t node, char byte) const {
  for (const Edge& edge : nodes_[node].edges) {
    if (edge.byte == byte) return edge.to;
  }
  return kNone;
}

bool TextTree::find(std::string_view text, size_t from, size_t& begin, size_t& end,
                    uint32_t& which) const {
  for (size_t at = from; at < text.size(); ++at) {
    if (!begins_[static_cast<unsigned char>(text[at])]) continue;
    uint32_t node = 0;
    which = kNone;
    for (size_t i = at; i < text.size() && (node = next(node, text[i])) != kNone; ++i) {
      if (nodes_[node].text == kNone) continue;
      which = nodes_[node].text;
      end = i + 1;
    }
    if (which != kNone) {
      begin = at;
      return true;
    }
  }
  return false;
}

// ---- AddedTokens ------------------------------------------------------------
AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const std::vector<std::string>& contents)
    : tokens_(std::move(tokens)), tree_(contents) {}

bool AddedTokens::find(std::string_view text, size_t& from, size_t done, Found& found) const {
  while (tree_.find(text, from, found.begin, found.end, found.which)) {
    from = found.end;
    const AddedToken& token = tokens_[found.which];
    if (token.single_word && within_word(text, found.begin, found.end)) continue;
    // Whitespace that the token before has taken is its own.
    if (token.lstrip) found.begin = std::max(over_whitespace_left(text, found.begin), done);
    if (token.rstrip) found.end = over_whitespace_right(text, found.end);
    return true;
  }
  return false;
}

}  // namespace moe8
