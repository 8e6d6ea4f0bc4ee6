// SPDX-License-Identifier: BSD-3-Clause
#include "text/token_source.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/printable.h"
#include "io/foreign_file.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokensOp = "tokens";
constexpr const char* kIndexFormat = "moe8 tokens";
constexpr int kIndexVersion = 1;

// Megatron's .idx: this, a version, a code of the type, how many sequences and entries of documents.
constexpr std::string_view kMegatronMagic{"MMIDIDX\0\0", 9};
constexpr uint64_t kMegatronVersion = 1;
constexpr uint64_t kMegatronHeader = 9 + 8 + 1 + 8 + 8;
constexpr uint8_t kMegatronUint8 = 1, kMegatronInt32 = 4, kMegatronUint16 = 8;

// llm.c: 256 numbers of four bytes, the first three of them magic, version, count.
constexpr uint64_t kLlmcHeader = uint64_t{256} * 4;
struct LlmcKind {
  int32_t magic, version;
  TokenType type;
};
constexpr std::array kLlmcKinds{LlmcKind{20240520, 1, TokenType::UINT16},
                                LlmcKind{20240801, 7, TokenType::UINT32}};

struct TypeRow {
  TokenType type;
  int64_t width;
  const char* name;
};
constexpr std::array kTypes{TypeRow{TokenType::UINT8, 1, "uint8"},
                            TypeRow{TokenType::UINT16, 2, "uint16"},
                            TypeRow{TokenType::UINT32, 4, "uint32"}};

template <typename T>
T read_value(const InputFile& file, uint64_t at) {
  T value{};
  file.read(&value, sizeof value, at);
  return value;
}

// The beginning of a file, as much as there is of it.
std::string beginning(const InputFile& file, uint64_t count) {
  std::string bytes(std::min(count, file.size()), '\0');
  file.read(bytes.data(), bytes.size(), 0);
  return bytes;
}

bool is_file(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}
bool is_folder(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

// What stands before .bin and .idx where `path` is one of Megatron's names.
std::optional<std::string> megatron_start(const std::string& path) {
  const fs::path as_path(path);
  const std::string end = as_path.extension();
  const std::string start =
      end == ".bin" || end == ".idx" ? fs::path(as_path).replace_extension().string() : path;
  if (!is_file(start + ".idx")) return std::nullopt;
  if (end != ".idx" && !is_file(start + ".bin")) return std::nullopt;
  const InputFile index(kTokensOp, start + ".idx");
  if (end != ".idx" && beginning(index, kMegatronMagic.size()) != kMegatronMagic)
    return std::nullopt;
  return start;
}

std::optional<LlmcKind> llmc_kind(const InputFile& file) {
  if (file.size() < kLlmcHeader) return std::nullopt;
  const auto magic = read_value<int32_t>(file, 0);
  const auto kind = std::ranges::find(kLlmcKinds, magic, &LlmcKind::magic);
  return kind == kLlmcKinds.end() ? std::nullopt : std::optional(*kind);
}

// Ids of a model's vocabulary fill two bytes; the upper halves of four are nearly all the same.
bool looks_like_uint32(const InputFile& file) {
  const std::string bytes = beginning(file, 8192);
  const size_t pairs = bytes.size() / 4;
  size_t small = 0;
  for (size_t i = 0; i < pairs; ++i) {
    small += static_cast<unsigned char>(bytes[4 * i + 2]) < 8 && bytes[4 * i + 3] == 0;
  }
  return pairs >= 64 && small == pairs && bytes.find_first_not_of('\0') != std::string::npos;
}

void check_is_binary(const InputFile& file) {
  const std::string first = beginning(file, 4096);
  MOE8_CHECK(!is_git_lfs_pointer(first), kTokensOp, file.path(), "expected tokens, got ",
             *foreign_kind(first));
  const auto is_text = [](char c) {
    return (c >= ' ' && c <= '~') || c == '\n' || c == '\r' || c == '\t';
  };
  const bool all_text = first.size() >= 16 && std::ranges::all_of(first, is_text);
  MOE8_CHECK(
      !all_text, kTokensOp, file.path(),
      "expected tokens, got text. Make tokens of it: moe8 tokenize FILE --tokenizer DIR --out DIR");
}

struct MegatronHeader {
  TokenType type;
  uint64_t sequences;
  uint64_t entries;  // of documents: one more than there are
};

TokenType megatron_type(uint8_t code, const std::string& name) {
  switch (code) {
    case kMegatronUint8:
      return TokenType::UINT8;
    case kMegatronUint16:
      return TokenType::UINT16;
    case kMegatronInt32:
      return TokenType::UINT32;
    default:
      fail(kTokensOp, name,
           concat("expected tokens of uint8, uint16 or int32 (codes 1, 8 and 4), got code ",
                  static_cast<int>(code)));
  }
}

MegatronHeader read_megatron_header(const InputFile& index) {
  const std::string& name = index.path();
  MOE8_CHECK(beginning(index, kMegatronMagic.size()) == kMegatronMagic, kTokensOp, name,
             "expected the .idx of Megatron's indexed datasets, got another file");
  MOE8_CHECK(index.size() >= kMegatronHeader, kTokensOp, name, "expected at least ",
             kMegatronHeader, " bytes, got ", index.size(), ": the file is cut");
  const auto version = read_value<uint64_t>(index, 9);
  MOE8_CHECK(version == kMegatronVersion, kTokensOp, name, "expected version ", kMegatronVersion,
             ", got ", version);
  const MegatronHeader header{.type = megatron_type(read_value<uint8_t>(index, 17), name),
                              .sequences = read_value<uint64_t>(index, 18),
                              .entries = read_value<uint64_t>(index, 26)};
  constexpr uint64_t kMost = uint64_t{1} << 48U;
  MOE8_CHECK(header.sequences < kMost && header.entries < kMost &&
                 index.size() == kMegatronHeader + 12 * header.sequences + 8 * header.entries,
             kTokensOp, name, "expected the bytes of ", header.sequences, " sequences and ",
             header.entries, " entries of documents, got ", index.size(),
             ": the file is cut or damaged");
  return header;
}

// Where the last sequence ends in the .bin, in bytes.
uint64_t megatron_end(const InputFile& index, const MegatronHeader& header) {
  if (header.sequences == 0) return 0;
  const uint64_t last = header.sequences - 1;
  const auto length = read_value<int32_t>(index, kMegatronHeader + 4 * last);
  const auto begin = read_value<int64_t>(index, kMegatronHeader + 4 * header.sequences + 8 * last);
  MOE8_CHECK(begin >= 0 && length >= 0, kTokensOp, index.path(),
             "expected a length and a place of the last sequence, got ", length, " and ", begin,
             ": the file is damaged");
  return static_cast<uint64_t>(begin) + static_cast<uint64_t>(length * width_of(header.type));
}

}  // namespace

int64_t width_of(TokenType type) {
  return std::ranges::find(kTypes, type, &TypeRow::type)->width;
}
const char* name_of(TokenType type) {
  return std::ranges::find(kTypes, type, &TypeRow::type)->name;
}
std::optional<TokenType> token_type_of(std::string_view name) {
  const auto row =
      std::ranges::find_if(kTypes, [&](const TypeRow& one) { return one.name == name; });
  return row == kTypes.end() ? std::nullopt : std::optional(row->type);
}

// ---- opening ----------------------------------------------------------------
TokenSource::TokenSource(InputFile file, TokenType type, std::string format)
    : file_(std::move(file)), type_(type), format_(std::move(format)) {}

TokenSource TokenSource::open(const std::string& path, std::optional<TokenType> flat) {
  if (is_folder(path)) {
    const std::string index = (fs::path(path) / kIndexFile).string();
    MOE8_CHECK(is_file(index), kTokensOp, path, "expected a regular file, got a directory without ",
               kIndexFile, ". `moe8 tokenize` writes it last: run it again to finish");
    return open_index(index);
  }
  if (fs::path(path).extension() == ".json") return open_index(path);
  if (!flat) {
    if (const auto start = megatron_start(path)) return open_megatron(*start);
  }
  InputFile file(kTokensOp, path);
  const auto kind = llmc_kind(file);
  if (kind && !flat) return open_llm_c(std::move(file), kind->magic);
  return open_flat(std::move(file), flat);
}

bool TokenSource::says_tokens(const std::string& path) {
  if (is_folder(path)) return true;
  if (megatron_start(path)) return true;
  if (!is_file(path)) return false;
  const InputFile file(kTokensOp, path);
  if (fs::path(path).filename() == kIndexFile) {
    return beginning(file, 4096).find(kIndexFormat) != std::string::npos;
  }
  return llmc_kind(file).has_value();
}

TokenSource TokenSource::open_bytes(const std::string& path, const char* op) {
  TokenSource source(InputFile(op, path), TokenType::UINT8, kBytes);
  source.size_ = source.file_.size();
  source.vocabulary_ = 256;
  return source;
}

TokenSource TokenSource::open_flat(InputFile file, std::optional<TokenType> type) {
  check_is_binary(file);
  MOE8_CHECK(
      type || !looks_like_uint32(file), kTokensOp, file.path(),
      "expected tokens of two bytes, got what looks like tokens of four. Say data.tokens = \"uint32\"");
  TokenSource source(std::move(file), type.value_or(TokenType::UINT16), "");
  source.format_ = std::string("flat ") + name_of(source.type_);
  const auto width = static_cast<uint64_t>(width_of(source.type_));
  MOE8_CHECK(source.file_.size() % width == 0, kTokensOp, source.path(), "expected tokens of ",
             width, " bytes, got ", source.file_.size(),
             " bytes: the file is cut, or of another type");
  source.size_ = source.file_.size() / width;
  return source;
}

TokenSource TokenSource::open_llm_c(InputFile file, int32_t magic) {
  const LlmcKind kind = *std::ranges::find(kLlmcKinds, magic, &LlmcKind::magic);
  const auto version = read_value<int32_t>(file, 4);
  MOE8_CHECK(version == kind.version, kTokensOp, file.path(), "expected llm.c's version ",
             kind.version, ", got ", version);
  const auto count = read_value<int32_t>(file, 8);
  TokenSource source(std::move(file), kind.type, std::string("llm.c ") + name_of(kind.type));
  source.first_ = kLlmcHeader;
  source.size_ = static_cast<uint64_t>(std::max(count, 0));
  const uint64_t expected = kLlmcHeader + source.size_ * static_cast<uint64_t>(width_of(kind.type));
  MOE8_CHECK(count >= 0 && source.file_.size() == expected, kTokensOp, source.path(), "expected ",
             expected, " bytes for the ", count, " tokens of its header, got ", source.file_.size(),
             ": the file is cut or damaged");
  return source;
}

TokenSource TokenSource::open_index(const std::string& path) {
  const TokenIndex index = parse_token_index(read_text_file(kTokensOp, path), path);
  const fs::path folder = fs::path(path).parent_path();
  TokenSource source(InputFile(kTokensOp, (folder / kTokensFile).string()), index.type,
                     std::string("moe8 ") + name_of(index.type));
  source.size_ = index.tokens;
  source.vocabulary_ = index.vocabulary;
  source.tokenizer_ = index.tokenizer;
  source.documents_ = index.documents;
  source.ends_.emplace(kTokensOp, (folder / kDocumentsFile).string());
  const auto check_size = [&](const InputFile& file, uint64_t count, uint64_t width) {
    MOE8_CHECK(file.size() / width == count && file.size() % width == 0, kTokensOp, file.path(),
               "expected ", count, " values of ", width, " bytes, as ", kIndexFile, " says, got ",
               file.size(), " bytes: the file is cut or not of this index");
  };
  check_size(source.file_, index.tokens, static_cast<uint64_t>(width_of(index.type)));
  check_size(*source.ends_, index.documents, sizeof(uint64_t));
  if (index.answers) {
    source.answers_.emplace(kTokensOp, (folder / kAnswersFile).string());
    check_size(*source.answers_, index.tokens, sizeof(uint8_t));
  }
  return source;
}

TokenSource TokenSource::open_megatron(const std::string& start) {
  InputFile index(kTokensOp, start + ".idx");
  const MegatronHeader header = read_megatron_header(index);
  TokenSource source(InputFile(kTokensOp, start + ".bin"), header.type, "Megatron ");
  const auto width = static_cast<uint64_t>(width_of(header.type));
  const uint64_t end = megatron_end(index, header);
  MOE8_CHECK(source.file_.size() == end && end % width == 0, kTokensOp, source.path(), "expected ",
             end, " bytes, as its .idx says, got ", source.file_.size(),
             ": the file is cut or not of this index");
  source.format_ += header.type == TokenType::UINT32 ? "int32" : name_of(header.type);
  source.size_ = end / width;
  source.documents_ = header.entries == 0 ? 0 : header.entries - 1;
  source.ends_ = std::move(index);
  source.is_megatron_ = true;
  source.sequences_ = header.sequences;
  return source;
}

// ---- reading ----------------------------------------------------------------
void TokenSource::read(uint64_t begin, std::span<uint32_t> ids, uint32_t limit) const {
  const auto width = static_cast<uint64_t>(width_of(type_));
  MOE8_CHECK(begin <= size_ && ids.size() <= size_ - begin, kTokensOp, path(),
             "expected a range below ", size_, ", got ", ids.size(), " from ", begin);
  // Into the end of the result, then widened from the front.
  auto* bytes = reinterpret_cast<unsigned char*>(ids.data()) + ids.size() * (4 - width);
  file_.read(bytes, ids.size() * width, first_ + begin * width);
  for (size_t i = 0; i < ids.size(); ++i) {
    uint32_t id = 0;
    std::memcpy(&id, bytes + i * width, width);
    ids[i] = id;
    MOE8_CHECK(id < limit, kTokensOp, path(), "expected ids below ", limit,
               ", the model's vocabulary, got ", id, " at token ", begin + i,
               ". The file is of another tokenizer, or of another type than ", name_of(type_));
  }
}

void TokenSource::read_answers(uint64_t begin, std::span<uint8_t> is_answer) const {
  MOE8_CHECK(answers_ && begin <= size_ && is_answer.size() <= size_ - begin, kTokensOp, path(),
             "expected a range below ", size_, " of a file with answers, got ", is_answer.size(),
             " from ", begin);
  answers_->read(is_answer.data(), is_answer.size(), begin);
  for (const uint8_t value : is_answer) {
    MOE8_CHECK(value <= 1, kTokensOp, answers_->path(), "expected bytes 0 and 1, got ",
               static_cast<int>(value), ": the file is damaged");
  }
}

std::vector<uint64_t> TokenSource::document_ends() const {
  std::vector<uint64_t> ends(documents_.value_or(0));
  if (ends.empty()) return ends;
  if (!is_megatron_) {
    ends_->read(ends.data(), ends.size() * sizeof(uint64_t), 0);
  } else {
    std::vector<int32_t> lengths(sequences_);
    ends_->read(lengths.data(), lengths.size() * 4, kMegatronHeader);
    std::vector<int64_t> firsts(ends.size() + 1);  // sequences that begin documents, and the end
    ends_->read(firsts.data(), firsts.size() * 8, kMegatronHeader + 12 * sequences_);
    uint64_t at = 0;
    uint64_t sequence = 0;
    for (size_t i = 0; i < ends.size(); ++i) {
      const auto next = static_cast<uint64_t>(firsts[i + 1]);
      MOE8_CHECK(next >= sequence && next <= sequences_, kTokensOp, ends_->path(),
                 "expected documents one after the other, got sequence ", firsts[i + 1],
                 " as the end of document ", i);
      for (; sequence < next; ++sequence)
        at += static_cast<uint64_t>(std::max(lengths[sequence], 0));
      ends[i] = at;
    }
  }
  uint64_t last = 0;
  for (const uint64_t end : ends) {
    MOE8_CHECK(end >= last && end <= size_, kTokensOp, ends_->path(), "expected ends that rise to ",
               size_, ", got ", end, " after ", last, ": the file is damaged");
    last = end;
  }
  MOE8_CHECK(last == size_, kTokensOp, ends_->path(), "expected the last document to end at ",
             size_, ", got ", last, ": the file is damaged or not of these tokens");
  return ends;
}

// ---- index.json -------------------------------------------------------------
std::string to_json(const TokenIndex& index) {
  nlohmann::ordered_json json = {{"format", kIndexFormat},       {"version", kIndexVersion},
                                 {"dtype", name_of(index.type)}, {"tokens", index.tokens},
                                 {"documents", index.documents}, {"vocabulary", index.vocabulary},
                                 {"tokenizer", index.tokenizer}, {"end_token", nullptr},
                                 {"replaced", index.replaced},   {"job", index.job}};
  if (index.end_token) json["end_token"] = *index.end_token;
  if (index.answers) json["answers"] = true;
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

TokenIndex parse_token_index(std::string_view text, const std::string& where) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto refuse = [&](std::string_view expected) {
    fail(kTokensOp, where,
         concat("expected ", expected, ", got another. `moe8 tokenize` writes it"));
  };
  if (!json.is_object() || json.value("format", nlohmann::json()) != kIndexFormat) {
    refuse("an index of tokens, {\"format\": \"moe8 tokens\", ...}");
  }
  if (json.value("version", nlohmann::json()) != kIndexVersion) refuse("version 1");
  const auto number = [&](const char* key, uint64_t most) {
    const auto value = json.find(key);
    if (value == json.end() || !value->is_number_unsigned() || value->get<uint64_t>() > most) {
      refuse(concat("'", key, "' of 0 to ", most));
    }
    return value->get<uint64_t>();
  };
  const auto word = [&](const char* key) {
    const auto value = json.find(key);
    if (value == json.end() || !value->is_string()) refuse(concat("a text as '", key, "'"));
    return value->get<std::string>();
  };
  constexpr uint64_t kMost = uint64_t{1} << 48U;
  const std::optional<TokenType> type = token_type_of(word("dtype"));
  if (!type) refuse("'dtype' of uint8, uint16 or uint32");
  TokenIndex index{.type = *type,
                   .tokens = number("tokens", kMost),
                   .documents = number("documents", kMost),
                   .vocabulary = static_cast<uint32_t>(
                       number("vocabulary", std::numeric_limits<uint32_t>::max())),
                   .tokenizer = word("tokenizer")};
  if (const auto end = json.find("end_token"); end != json.end() && end->is_string()) {
    index.end_token = end->get<std::string>();
  }
  if (const auto replaced = json.find("replaced"); replaced != json.end()) {
    index.replaced = number("replaced", kMost);
  }
  if (const auto answers = json.find("answers"); answers != json.end()) {
    if (!answers->is_boolean()) refuse("true or false as 'answers'");
    index.answers = answers->get<bool>();
  }
  if (const auto job = json.find("job"); job != json.end()) index.job = word("job");
  return index;
}

// ---- Megatron ---------------------------------------------------------------
void write_megatron_index(const std::string& path, TokenType type,
                          std::span<const uint64_t> document_ends) {
  AtomicFile file(kTokensOp, path);
  std::string bytes(kMegatronMagic);
  const auto put = [&](const auto& value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    if (bytes.size() < (size_t{1} << 20U)) return;
    file.write(bytes.data(), bytes.size());
    bytes.clear();
  };
  const uint8_t code = type == TokenType::UINT8    ? kMegatronUint8
                       : type == TokenType::UINT16 ? kMegatronUint16
                                                   : kMegatronInt32;
  put(kMegatronVersion);
  put(code);
  put(uint64_t{document_ends.size()});
  put(uint64_t{document_ends.size() + 1});
  uint64_t begin = 0;
  for (const uint64_t end : document_ends) {
    MOE8_CHECK(end - begin <= std::numeric_limits<int32_t>::max(), kTokensOp, path,
               "expected documents of less than 2^31 tokens, as Megatron counts them, got ",
               end - begin);
    put(static_cast<int32_t>(end - begin));
    begin = end;
  }
  begin = 0;
  for (const uint64_t end : document_ends) {
    put(static_cast<int64_t>(begin) * width_of(type));
    begin = end;
  }
  for (uint64_t i = 0; i <= document_ends.size(); ++i) put(static_cast<int64_t>(i));
  file.write(bytes.data(), bytes.size());
  file.commit();
}

}  // namespace moe8
