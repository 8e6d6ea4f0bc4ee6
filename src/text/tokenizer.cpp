// SPDX-License-Identifier: BSD-3-Clause
#include "moe8/tokenizer.h"

#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <unordered_map>

#include "base/check.h"
#include "base/printable.h"
#include "io/file.h"
#include "text/tokenizer_json.h"
#include "text/word_cache.h"

namespace moe8 {
namespace {

constexpr const char* kTokenizer = "tokenizer";

std::string file_of(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(path, ignored)) return path;
  std::string file = (std::filesystem::path(path) / "tokenizer.json").string();
  MOE8_CHECK(std::filesystem::exists(file, ignored), kTokenizer, path,
             "expected a folder with tokenizer.json, got one without. Where a model ships "
             "tokenizer.model or vocab.json and merges.txt, the transformers library writes "
             "tokenizer.json: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)");
  return file;
}

std::string fingerprint_of(std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return formatted("%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                   static_cast<unsigned long long>(hash.low64));
}

// The ids that tokens get which are not in the model's vocabulary follow that, without gaps. Another
// id would be read as one token here and as another elsewhere.
void check_added_ids(const std::vector<AddedToken>& tokens, const Bpe& model,
                     const std::string& where) {
  const auto size = static_cast<uint32_t>(model.size());
  std::unordered_map<std::string_view, uint32_t> ids;
  uint32_t highest = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const AddedToken& token = tokens[i];
    if (token.content.empty()) continue;
    uint32_t expected = ids.empty() || highest < size ? size : highest + 1;
    if (const auto known = ids.find(token.content); known != ids.end()) {
      expected = known->second;
    } else if (const auto in_model = model.id_of(token.content)) {
      expected = *in_model;
    }
    MOE8_CHECK(token.id == expected, kTokenizer, where, "added_tokens[", i, "].id: expected ",
               expected, ", which the tokenizers library gives it, got ", token.id, " for '",
               printable(token.content),
               "'. Correct the file: ids of added tokens follow the "
               "vocabulary in their order, without gaps");
    ids.emplace(token.content, expected);
    highest = std::max(highest, expected);
  }
}

}  // namespace

struct Tokenizer::Parts {
  Parts(TokenizerParts parts, std::string hash, const std::string& where)
      : normalizers(std::move(parts.normalizers)),
        pre_tokenizers(std::move(parts.pre_tokenizers)),
        model(parts.model, where),
        added(unique_tokens(parts.added_tokens, model, where)),
        raw_tokens(set_of(false)),
        normalized_tokens(set_of(true)),
        decoders(std::move(parts.decoders)),
        has_decoder(parts.has_decoder),
        before(std::move(parts.before)),
        after(std::move(parts.after)),
        fingerprint(std::move(hash)) {
    end_of_ids = model.end_of_ids();
    for (const AddedToken& token : added) {
      end_of_ids = std::max(end_of_ids, token.id + 1);
      added_by_id[token.id] = &token;
      if (!token.normalized) continue;
      NormalizedText text;
      normalized_contents[token.id] = std::string(text.apply(normalizers, token.content));
    }
    for (const auto* ids : {&before, &after}) {
      for (const uint32_t id : *ids) {
        MOE8_CHECK(token_of(id), kTokenizer, where, "post_processor: expected ids of tokens, got ",
                   id, ", which is none");
      }
    }
    writes_bytes =
        model.takes_bytes() && !pre_tokenizers.empty() && pre_tokenizers.back()->writes_letters();
  }

  const std::string* token_of(uint32_t id) const {
    const auto found = added_by_id.find(id);
    return found != added_by_id.end() ? &found->second->content : model.token_of(id);
  }
  // What decoders are given: tokens that are found in normalized text, as they stand there.
  const std::string* text_of(uint32_t id) const {
    const auto found = normalized_contents.find(id);
    return found != normalized_contents.end() ? &found->second : token_of(id);
  }

  Normalizers normalizers;
  PreTokenizers pre_tokenizers;
  Bpe model;
  std::vector<AddedToken> added;
  AddedTokens raw_tokens, normalized_tokens;
  Decoders decoders;
  bool has_decoder;
  std::vector<uint32_t> before, after;
  std::string fingerprint;
  std::unordered_map<uint32_t, const AddedToken*> added_by_id;  // into `added`
  std::unordered_map<uint32_t, std::string> normalized_contents;
  uint32_t end_of_ids = 0;
  bool writes_bytes = false;  // the last step makes letters of bytes: the model takes the bytes

 private:
  // A token that comes twice is what its last entry says, but special where one says so.
  static std::vector<AddedToken> unique_tokens(const std::vector<AddedToken>& tokens,
                                               const Bpe& model, const std::string& where) {
    check_added_ids(tokens, model, where);
    std::vector<AddedToken> unique;
    for (const AddedToken& token : tokens) {
      if (token.content.empty()) continue;
      const auto same = std::ranges::find(unique, token.content, &AddedToken::content);
      if (same == unique.end()) {
        unique.push_back(token);
      } else {
        const bool special = same->special || token.special;
        *same = token;
        same->special = special;
      }
    }
    return unique;
  }

  // Those that are looked for in the text as it comes, or in the normalized one.
  AddedTokens set_of(bool normalized) const {
    std::vector<AddedToken> tokens;
    std::vector<std::string> contents;
    NormalizedText text;
    for (const AddedToken& token : added) {
      if (token.normalized != normalized) continue;
      std::string content = token.content;
      if (normalized) content = std::string(text.apply(normalizers, token.content));
      if (content.empty()) continue;
      tokens.push_back(token);
      contents.push_back(std::move(content));
    }
    return {tokens, contents};
  }
};

// ---- Tokenizer --------------------------------------------------------------
Tokenizer::Tokenizer(const std::string& path) {
  const std::string file = file_of(path);
  *this = parse(read_text_file(kTokenizer, file), file);
}

Tokenizer Tokenizer::parse(std::string_view json, const std::string& where) {
  return Tokenizer(std::make_shared<const Parts>(parse_tokenizer_json(json, where),
                                                 fingerprint_of(json), where));
}

std::vector<uint32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<uint32_t> ids;
  TokenEncoder(*this).encode(text, ids, options);
  return ids;
}

std::string Tokenizer::decode(std::span<const uint32_t> ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  for (const uint32_t id : ids) {
    const std::string* token = parts_->text_of(id);
    MOE8_CHECK(token, kTokenizer, "ids", "expected ids of tokens, below ", vocabulary_size(),
               ", got ", id);
    if (!skip_special_tokens || !is_special(id)) tokens.push_back(*token);
  }
  for (const auto& decoder : parts_->decoders) decoder->apply(tokens);
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0 && !parts_->has_decoder) text += ' ';
    text += tokens[i];
  }
  return text;
}

uint32_t Tokenizer::vocabulary_size() const {
  return parts_->end_of_ids;
}

std::optional<uint32_t> Tokenizer::id_of(std::string_view token) const {
  const auto added = std::ranges::find(parts_->added, token, &AddedToken::content);
  return added != parts_->added.end() ? std::optional(added->id) : parts_->model.id_of(token);
}

std::optional<std::string> Tokenizer::token_of(uint32_t id) const {
  const std::string* token = parts_->token_of(id);
  return token ? std::optional(*token) : std::nullopt;
}

bool Tokenizer::is_special(uint32_t id) const {
  const auto found = parts_->added_by_id.find(id);
  return found != parts_->added_by_id.end() && found->second->special;
}

const std::string& Tokenizer::fingerprint() const {
  return parts_->fingerprint;
}

// ---- TokenEncoder -----------------------------------------------------------
struct TokenEncoder::State : PieceSink {
  explicit State(std::shared_ptr<const Tokenizer::Parts> tokenizer)
      : parts(std::move(tokenizer)),
        chain(parts->pre_tokenizers, parts->pre_tokenizers.size() - (parts->writes_bytes ? 1 : 0),
              *this) {}

  // The end of the chain: a piece whose tokens are merged by themselves.
  void take(const Piece& piece) override {
    const bool remembers = piece.text.size() <= WordCache::kLongestWord;
    if (remembers && cache.append(piece.text, *ids)) return;
    const size_t before = ids->size();
    if (parts->writes_bytes) {
      parts->model.encode_bytes(piece.text, scratch, *ids);
    } else {
      parts->model.encode_text(piece.text, scratch, *ids);
    }
    if (remembers) cache.insert(piece.text, std::span(*ids).subspan(before));
  }

  void encode(std::string_view text) {
    parts->raw_tokens.split(
        text,
        [&](std::string_view raw) {
          const bool first = raw.data() == text.data();
          const std::string_view whole = normalized.apply(parts->normalizers, raw);
          parts->normalized_tokens.split(
              whole,
              [&](std::string_view part) {
                chain.take({part, first && part.data() == whole.data()});
              },
              [&](uint32_t id) { ids->push_back(id); });
        },
        [&](uint32_t id) { ids->push_back(id); });
  }

  std::shared_ptr<const Tokenizer::Parts> parts;
  PieceChain chain;
  NormalizedText normalized;
  WordCache cache;
  Bpe::Scratch scratch;
  std::vector<uint32_t>* ids = nullptr;  // where encode() puts them
  size_t replaced = 0;
};

TokenEncoder::TokenEncoder(const Tokenizer& tokenizer)
    : state_(std::make_unique<State>(tokenizer.parts_)) {}
TokenEncoder::~TokenEncoder() = default;

void TokenEncoder::encode(std::string_view text, std::vector<uint32_t>& ids,
                          const EncodeOptions& options) {
  State& state = *state_;
  state.ids = &ids;
  const auto& before = state.parts->before;
  const auto& after = state.parts->after;
  if (options.add_special_tokens) ids.insert(ids.end(), before.begin(), before.end());
  if (valid_utf8_prefix(text) == text.size()) {
    state.encode(text);
  } else {
    state.encode(to_valid_utf8(text, state.replaced));
  }
  if (options.add_special_tokens) ids.insert(ids.end(), after.begin(), after.end());
}

uint64_t TokenEncoder::replaced() const {
  return state_->replaced;
}

}  // namespace moe8
