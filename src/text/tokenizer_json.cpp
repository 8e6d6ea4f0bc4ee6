// SPDX-License-Identifier: BSD-3-Clause
#include "text/tokenizer_json.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/check.h"
#include "base/nearest.h"
#include "base/printable.h"
#include "base/shown_json.h"
#include "text/utf8.h"

namespace moe8 {
namespace {

using TokenizerJson = nlohmann::json;

constexpr const char* kJsonOp = "tokenizer";
constexpr int kMaxDepth = 16;  // of sequences within sequences
constexpr const char* kOtherwise =
    ". Make the token files with the library that made this file; moe8 reads those (docs/text.md)";

std::string shown_word(std::string_view word) {
  constexpr size_t kLongest = 60;
  return concat("'", printable(word.substr(0, kLongest)), word.size() > kLongest ? "...'" : "'");
}

// A value of the file and the way to it, for messages.
class Node {
 public:
  Node(const TokenizerJson& value, std::string path, const std::string& where, int depth = 0)
      : value_(&value), path_(std::move(path)), where_(&where), depth_(depth) {
    if (depth > kMaxDepth) refuse("less nesting", "more");
  }

  [[noreturn]] void refuse(std::string_view expected, std::string_view got) const {
    fail(kJsonOp, *where_,
         concat(path_.empty() ? "" : path_ + ": ", "expected ", expected, ", got ", got));
  }
  std::string place() const { return *where_ + ": " + path_; }
  bool is_null() const { return value_->is_null(); }
  bool has(const char* key) const { return find(key) != nullptr; }

  Node at(const char* key) const {
    const TokenizerJson* found = find(key);
    if (!found) refuse(concat("the key '", key, "'"), "none");
    return {*found, path_.empty() ? key : path_ + "." + key, *where_, depth_ + 1};
  }
  /// The value of a key that may be missing or null.
  std::optional<Node> maybe(const char* key) const {
    if (!has(key)) return std::nullopt;
    return at(key);
  }

  std::string text() const {
    if (!value_->is_string()) refuse("a text", value_->type_name());
    return value_->get<std::string>();
  }
  bool flag() const {
    if (!value_->is_boolean()) refuse("true or false", value_->type_name());
    return value_->get<bool>();
  }
  uint32_t number() const {
    const bool fits = value_->is_number_unsigned() &&
                      value_->get<uint64_t>() <= std::numeric_limits<int32_t>::max();
    if (!fits) refuse("a whole number, 0 or more", shown_json(*value_));
    return value_->get<uint32_t>();
  }
  std::vector<Node> list() const {
    if (!value_->is_array()) refuse("a list", value_->type_name());
    std::vector<Node> nodes;
    for (const TokenizerJson& one : *value_) {
      nodes.emplace_back(one, concat(path_, "[", nodes.size(), "]"), *where_, depth_ + 1);
    }
    return nodes;
  }
  const TokenizerJson& object() const {
    if (!value_->is_object()) refuse("an object", value_->type_name());
    return *value_;
  }

  std::string text_or(const char* key, const std::string& otherwise) const {
    const auto node = maybe(key);
    return node ? node->text() : otherwise;
  }
  bool flag_or(const char* key, bool otherwise) const {
    const auto node = maybe(key);
    return node ? node->flag() : otherwise;
  }
  std::string type() const { return at("type").text(); }

  /// Refuses a word that is none of `known`.
  [[noreturn]] void unknown(const std::string& word, const std::vector<std::string>& known) const {
    refuse("one of " + join(known), shown_word(word) + kOtherwise);
  }

 private:
  // nullptr: missing or null
  const TokenizerJson* find(const char* key) const {
    const TokenizerJson& here = object();
    const auto found = here.find(key);
    return found == here.end() || found->is_null() ? nullptr : &*found;
  }

  const TokenizerJson* value_;
  std::string path_;
  const std::string* where_;
  int depth_;
};

// {"String": "..."} or {"Regex": "..."}
std::unique_ptr<Finder> finder_of(const Node& pattern) {
  if (pattern.has("String")) return find_text(pattern.at("String").text());
  if (pattern.has("Regex")) {
    return find_pattern(pattern.at("Regex").text(), pattern.place());
  }
  pattern.refuse("'String' or 'Regex'", "neither");
}

// ---- normalizer -------------------------------------------------------------
void add_normalizer(const Node& node, Normalizers& all) {
  const std::string type = node.type();
  if (type == "Sequence") {
    for (const Node& one : node.at("normalizers").list()) add_normalizer(one, all);
  } else if (type == "NFC") {
    all.push_back(normalize_unicode(NormalForm::NFC));
  } else if (type == "NFD") {
    all.push_back(normalize_unicode(NormalForm::NFD));
  } else if (type == "NFKC") {
    all.push_back(normalize_unicode(NormalForm::NFKC));
  } else if (type == "NFKD") {
    all.push_back(normalize_unicode(NormalForm::NFKD));
  } else if (type == "Replace") {
    all.push_back(replace_found(finder_of(node.at("pattern")), node.at("content").text()));
  } else if (type == "Prepend") {
    all.push_back(prepend_text(node.at("prepend").text()));
  } else if (type == "Strip") {
    all.push_back(
        strip_whitespace(node.flag_or("strip_left", true), node.flag_or("strip_right", true)));
  } else if (type == "StripAccents") {
    all.push_back(strip_accents());
  } else if (type == "Lowercase") {
    all.push_back(lower_case());
  } else if (type == "ByteLevel") {
    all.push_back(bytes_to_letters());
  } else if (type == "Nmt") {
    all.push_back(plain_characters());
  } else {
    node.unknown(type, {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Replace", "Prepend", "Strip",
                        "StripAccents", "Lowercase", "ByteLevel", "Nmt"});
  }
}

// ---- pre-tokenizer ----------------------------------------------------------
constexpr const char* kWordsOfGpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

SplitBehavior behavior_of(const Node& node) {
  const std::string word = node.text();
  if (word == "Removed") return SplitBehavior::REMOVED;
  if (word == "Isolated") return SplitBehavior::ISOLATED;
  if (word == "MergedWithPrevious") return SplitBehavior::MERGED_WITH_PREVIOUS;
  if (word == "MergedWithNext") return SplitBehavior::MERGED_WITH_NEXT;
  if (word == "Contiguous") return SplitBehavior::CONTIGUOUS;
  node.unknown(word, {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"});
}

PrependScheme scheme_of(const Node& node) {
  const auto scheme = node.maybe("prepend_scheme");
  if (!scheme) {  // files of before have a flag
    return node.flag_or("add_prefix_space", true) ? PrependScheme::ALWAYS : PrependScheme::NEVER;
  }
  const std::string word = scheme->text();
  if (word == "always") return PrependScheme::ALWAYS;
  if (word == "first") return PrependScheme::FIRST;
  if (word == "never") return PrependScheme::NEVER;
  scheme->unknown(word, {"always", "first", "never"});
}

std::string character_of(const Node& node) {
  std::string text = node.text();
  if (text.empty() || code_point_at(text, 0).length != text.size()) {
    node.refuse("one character", shown_word(text));
  }
  return text;
}

void add_byte_level(const Node& node, PreTokenizers& all) {
  if (node.flag_or("add_prefix_space", true)) all.push_back(prefix_space());
  if (node.flag_or("use_regex", true)) {
    all.push_back(split_at(find_pattern(kWordsOfGpt2, node.place()), SplitBehavior::ISOLATED));
  }
  all.push_back(bytes_as_letters());
}

void add_metaspace(const Node& node, PreTokenizers& all) {
  const std::string replacement = character_of(node.at("replacement"));
  all.push_back(replace_spaces(replacement, scheme_of(node)));
  if (node.flag_or("split", true)) {
    all.push_back(split_at(find_text(replacement), SplitBehavior::MERGED_WITH_NEXT));
  }
}

void add_split(const Node& node, PreTokenizers& all) {
  all.push_back(split_at(finder_of(node.at("pattern")), behavior_of(node.at("behavior")),
                         node.flag_or("invert", false)));
}

void add_digits(const Node& node, PreTokenizers& all) {
  const bool single = node.flag_or("individual_digits", false);
  all.push_back(split_at(find_characters(is_numeric),
                         single ? SplitBehavior::ISOLATED : SplitBehavior::CONTIGUOUS));
}

void add_fixed_length(const Node& node, PreTokenizers& all) {
  const uint32_t length = node.has("length") ? node.at("length").number() : 5;
  if (length == 0) node.refuse("a length of 1 or more", "0");
  all.push_back(fixed_length(length));
}

void add_pre_tokenizer(const Node& node, PreTokenizers& all) {
  const std::string type = node.type();
  if (type == "Sequence") {
    for (const Node& one : node.at("pretokenizers").list()) add_pre_tokenizer(one, all);
  } else if (type == "ByteLevel") {
    add_byte_level(node, all);
  } else if (type == "Split") {
    add_split(node, all);
  } else if (type == "Digits") {
    add_digits(node, all);
  } else if (type == "Punctuation") {
    const auto behavior = node.maybe("behavior");
    all.push_back(split_at(find_characters(is_punctuation),
                           behavior ? behavior_of(*behavior) : SplitBehavior::ISOLATED));
  } else if (type == "Metaspace") {
    add_metaspace(node, all);
  } else if (type == "Whitespace") {
    all.push_back(split_at(find_pattern("[\\w]+|[^\\w\\s]+", node.place()), SplitBehavior::REMOVED,
                           /*invert=*/true));
  } else if (type == "WhitespaceSplit") {
    all.push_back(split_at(find_characters(is_whitespace), SplitBehavior::REMOVED));
  } else if (type == "CharDelimiterSplit") {
    all.push_back(split_at(find_text(character_of(node.at("delimiter"))), SplitBehavior::REMOVED));
  } else if (type == "BertPreTokenizer") {
    all.push_back(split_at(find_characters(is_whitespace), SplitBehavior::REMOVED));
    all.push_back(split_at(find_characters(is_punctuation), SplitBehavior::ISOLATED));
  } else if (type == "FixedLength") {
    add_fixed_length(node, all);
  } else {
    node.unknown(
        type, {"Sequence", "ByteLevel", "Split", "Digits", "Punctuation", "Metaspace", "Whitespace",
               "WhitespaceSplit", "CharDelimiterSplit", "BertPreTokenizer", "FixedLength"});
  }
}

// ---- decoder ----------------------------------------------------------------
void add_decoder(const Node& node, Decoders& all) {
  const std::string type = node.type();
  if (type == "Sequence") {
    for (const Node& one : node.at("decoders").list()) add_decoder(one, all);
  } else if (type == "ByteLevel") {
    all.push_back(letters_to_bytes());
  } else if (type == "ByteFallback") {
    all.push_back(spelled_bytes());
  } else if (type == "Fuse") {
    all.push_back(fuse());
  } else if (type == "Replace") {
    all.push_back(replace_in_tokens(finder_of(node.at("pattern")), node.at("content").text()));
  } else if (type == "Strip") {
    all.push_back(strip_character(character_of(node.at("content")), node.at("start").number(),
                                  node.at("stop").number()));
  } else if (type == "Metaspace") {
    all.push_back(spaces_of(character_of(node.at("replacement")), scheme_of(node)));
  } else if (type == "BPEDecoder") {
    all.push_back(word_ends(node.text_or("suffix", "</w>")));
  } else {
    node.unknown(type, {"Sequence", "ByteLevel", "ByteFallback", "Fuse", "Replace", "Strip",
                        "Metaspace", "BPEDecoder"});
  }
}

// ---- post-processor ---------------------------------------------------------
// ["</s>", 2]
uint32_t id_of_pair(const Node& node) {
  const std::vector<Node> pair = node.list();
  if (pair.size() != 2) node.refuse("a token and its id", concat(pair.size(), " values"));
  return pair[1].number();
}

void append_template(const Node& node, std::vector<uint32_t>& before,
                     std::vector<uint32_t>& after) {
  bool seen = false;
  for (const Node& item : node.at("single").list()) {
    if (item.has("Sequence")) {
      if (seen) item.refuse("the text once", "it twice");
      seen = true;
      continue;
    }
    const std::string name = item.at("SpecialToken").at("id").text();
    const Node special = node.at("special_tokens").at(name.c_str());
    for (const Node& id : special.at("ids").list()) (seen ? after : before).push_back(id.number());
  }
  if (!seen) node.refuse("the text in 'single'", "special tokens alone");
}

void add_post_processor(const Node& node, TokenizerParts& parts) {
  const std::string type = node.type();
  std::vector<uint32_t> before, after;
  if (type == "Sequence") {
    for (const Node& one : node.at("processors").list()) add_post_processor(one, parts);
  } else if (type == "TemplateProcessing") {
    append_template(node, before, after);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    before.push_back(id_of_pair(node.at("cls")));
    after.push_back(id_of_pair(node.at("sep")));
  } else if (type != "ByteLevel") {  // which moves offsets alone
    node.unknown(type, {"Sequence", "TemplateProcessing", "ByteLevel", "BertProcessing",
                        "RobertaProcessing"});
  }
  parts.before.insert(parts.before.begin(), before.begin(), before.end());
  parts.after.insert(parts.after.end(), after.begin(), after.end());
}

// ---- model ------------------------------------------------------------------
// "a b" or ["a", "b"]
std::pair<std::string, std::string> merge_of(const TokenizerJson& merge, size_t rank,
                                             const Node& node) {
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
             merge[1].is_string()) {
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  node.refuse("two tokens in every merge, as \"a b\" or [\"a\", \"b\"]",
              concat(shown_json(merge), " as merge ", rank));
}

BpeParts model_of(const Node& node) {
  const bool looks_like_bpe = node.has("merges") && node.has("vocab");
  const std::string type = node.has("type") || !looks_like_bpe ? node.type() : "BPE";
  if (type != "BPE") {
    node.refuse("the type 'BPE'", shown_word(type) + kOtherwise);
  }
  if (const auto dropout = node.maybe("dropout")) {
    const TokenizerJson& value = node.object().at("dropout");
    if (!value.is_number() || value.get<double>() != 0) {
      dropout->refuse("null", shown_json(value) + ". A text has to have the same tokens each time");
    }
  }
  BpeParts parts;
  if (const auto unknown = node.maybe("unk_token")) parts.unknown_token = unknown->text();
  parts.continuing_prefix = node.text_or("continuing_subword_prefix", "");
  parts.end_suffix = node.text_or("end_of_word_suffix", "");
  parts.fuse_unknown = node.flag_or("fuse_unk", false);
  parts.byte_fallback = node.flag_or("byte_fallback", false);
  parts.ignore_merges = node.flag_or("ignore_merges", false);
  const Node vocabulary = node.at("vocab");
  for (const auto& [token, id] : vocabulary.object().items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
      vocabulary.refuse("ids, whole numbers of 0 or more",
                        concat(shown_json(id), " for ", shown_word(token)));
    }
    parts.vocabulary.emplace_back(token, id.get<uint32_t>());
  }
  const Node merges = node.at("merges");
  const TokenizerJson& list = node.object().at("merges");
  if (!list.is_array()) merges.refuse("a list", list.type_name());
  for (const TokenizerJson& merge : list) {
    parts.merges.push_back(merge_of(merge, parts.merges.size(), merges));
  }
  return parts;
}

AddedToken added_token_of(const Node& node) {
  return {.id = node.at("id").number(),
          .content = node.at("content").text(),
          .special = node.flag_or("special", false),
          .single_word = node.flag_or("single_word", false),
          .lstrip = node.flag_or("lstrip", false),
          .rstrip = node.flag_or("rstrip", false),
          .normalized = node.flag_or("normalized", true)};
}

TokenizerJson parsed(std::string_view text, const std::string& where) {
  try {
    return TokenizerJson::parse(text);
  } catch (const TokenizerJson::exception& error) {
    std::string_view what = error.what();
    if (const size_t end = what.find("] "); end != std::string_view::npos)
      what.remove_prefix(end + 2);
    fail(kJsonOp, where, concat("expected JSON, got: ", printable(what.substr(0, 300))));
  }
}

}  // namespace

TokenizerParts parse_tokenizer_json(std::string_view text, const std::string& where) {
  const TokenizerJson json = parsed(text, where);
  const Node root(json, "", where);
  if (!json.is_object())
    root.refuse("an object, as the tokenizers library writes it", json.type_name());
  TokenizerParts parts;
  parts.model = model_of(root.at("model"));
  if (const auto node = root.maybe("normalizer")) add_normalizer(*node, parts.normalizers);
  if (const auto node = root.maybe("pre_tokenizer")) add_pre_tokenizer(*node, parts.pre_tokenizers);
  if (const auto node = root.maybe("post_processor")) add_post_processor(*node, parts);
  if (const auto node = root.maybe("decoder")) {
    add_decoder(*node, parts.decoders);
    parts.has_decoder = true;
  }
  if (const auto node = root.maybe("added_tokens")) {
    for (const Node& one : node->list()) parts.added_tokens.push_back(added_token_of(one));
  }
  return parts;
}

}  // namespace moe8
