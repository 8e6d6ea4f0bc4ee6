// SPDX-License-Identifier: BSD-3-Clause
#include "text/document_reader.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/printable.h"
#include "base/shown_json.h"
#include "io/foreign_file.h"

namespace moe8 {
namespace {

constexpr const char* kReaderOp = "tokenize";
constexpr uint64_t kReadAhead = uint64_t{4} << 20U;
constexpr uint64_t kMostOfADocument = uint64_t{2} << 30U;

void check_is_plain_text(const InputFile& file) {
  std::string first(std::min<uint64_t>(file.size(), 4096), '\0');
  file.read(first.data(), first.size(), 0);
  const auto wide = wide_encoding(first);
  MOE8_CHECK(!wide, kReaderOp, file.path(), "expected text in UTF-8, got ", *wide,
             ". Convert it: iconv -f ", *wide, " -t UTF-8 FILE > NEW-FILE");
  const bool html = first.starts_with("<!") || first.starts_with("<h") || first.starts_with("<H");
  const auto foreign = html ? std::nullopt : foreign_kind(std::string_view(first));
  MOE8_CHECK(!foreign, kReaderOp, file.path(), "expected text, got ", *foreign);
  MOE8_CHECK(!first.starts_with("\x28\xB5\x2F\xFD"), kReaderOp, file.path(),
             "expected text, got a zstd file. Unpack it: unzstd FILE");
}

// ---- spans ------------------------------------------------------------------
struct Span {
  size_t begin, end;  // bytes
};

// Where characters begin, and the end of the text.
std::vector<size_t> character_begins(std::string_view text) {
  std::vector<size_t> begins;
  for (size_t i = 0; i < text.size(); ++i) {
    constexpr unsigned kContinuation = 0x80, kMask = 0xC0;
    if ((static_cast<unsigned char>(text[i]) & kMask) != kContinuation) begins.push_back(i);
  }
  begins.push_back(text.size());
  return begins;
}

// [[7, 12], ...] in characters; nothing when it is no such list.
std::optional<std::vector<Span>> spans_of(const nlohmann::json& json, std::string_view text) {
  if (!json.is_array()) return std::nullopt;
  const std::vector<size_t> begins = character_begins(text);
  std::vector<Span> spans;
  uint64_t last = 0;
  for (const auto& one : json) {
    const bool is_pair = one.is_array() && one.size() == 2 && one[0].is_number_unsigned() &&
                         one[1].is_number_unsigned();
    if (!is_pair) return std::nullopt;
    const auto begin = one[0].get<uint64_t>(), end = one[1].get<uint64_t>();
    if (begin < last || end < begin || end >= begins.size()) return std::nullopt;
    spans.push_back({begins[begin], begins[end]});
    last = end;
  }
  return spans;
}

std::vector<TextPiece> cut_at(const std::string& text, const std::vector<Span>& spans) {
  std::vector<TextPiece> pieces;
  size_t at = 0;
  const auto add = [&](size_t end, bool counts) {
    if (end > at) pieces.push_back({text.substr(at, end - at), counts});
    at = end;
  };
  for (const Span& span : spans) {
    add(span.begin, false);
    add(span.end, true);
  }
  add(text.size(), false);
  return pieces;
}

}  // namespace

DocumentReader::DocumentReader(const std::vector<std::string>& paths, DocumentOptions options)
    : options_(std::move(options)) {
  for (const std::string& path : paths) check_is_plain_text(files_.emplace_back(kReaderOp, path));
}

uint64_t DocumentReader::total_bytes() const {
  return bytes_before({.file = files_.size()});
}

uint64_t DocumentReader::bytes_before(const DocumentPlace& place) const {
  uint64_t bytes = place.byte;
  for (size_t i = 0; i < place.file; ++i) bytes += files_[i].size();
  return bytes;
}

DocumentFormat DocumentReader::format_of(size_t file) const {
  if (options_.format) return *options_.format;
  const std::string end = std::filesystem::path(files_[file].path()).extension();
  const bool lines = end == ".jsonl" || end == ".ndjson" || end == ".json";
  return lines ? DocumentFormat::JSON_LINES : DocumentFormat::TEXT;
}

void DocumentReader::refill(const InputFile& file, uint64_t at) {
  buffered_ = &file;
  buffer_at_ = at;
  buffer_.resize(std::min(kReadAhead, file.size() - at));
  file.read(buffer_.data(), buffer_.size(), at);
}

std::string DocumentReader::until(const InputFile& file, uint64_t at, std::string_view separator,
                                  uint64_t& next) {
  std::string bytes;
  for (uint64_t from = at; from < file.size();) {
    const bool has = buffered_ == &file && from >= buffer_at_ && from < buffer_at_ + buffer_.size();
    if (!has) refill(file, from);
    const std::string_view rest = std::string_view(buffer_).substr(from - buffer_at_);
    const size_t known = bytes.size();
    const size_t here = separator.empty() ? std::string::npos : rest.find(separator);
    if (known == 0 && here != std::string::npos) {
      next = at + here + separator.size();
      return std::string(rest.substr(0, here));
    }
    bytes += rest;
    if (known > 0 && !separator.empty()) {  // it may begin in what was there before
      const size_t found = bytes.find(separator, known - std::min(known, separator.size() - 1));
      if (found != std::string::npos) {
        bytes.resize(found);
        next = at + found + separator.size();
        return bytes;
      }
    }
    MOE8_CHECK(bytes.size() <= kMostOfADocument, kReaderOp, file.path(),
               "expected documents of up to 2 GiB, got a longer one that begins at byte ", at,
               ". For text, say what stands between documents: --separator");
    from += rest.size();
  }
  next = file.size();
  return bytes;
}

std::vector<RawDocument> DocumentReader::read(DocumentPlace& place, uint64_t bytes) {
  std::vector<RawDocument> documents;
  for (uint64_t got = 0; got < bytes && place.file < files_.size();) {
    const InputFile& file = files_[place.file];
    if (place.byte >= file.size()) {
      place = {.file = place.file + 1};
      continue;
    }
    const DocumentFormat format = format_of(place.file);
    const bool lines = format == DocumentFormat::JSON_LINES;
    RawDocument document{.file = place.file, .line = place.line, .format = format};
    document.bytes = until(file, place.byte, lines ? "\n" : options_.separator, place.byte);
    place.line += lines ? 1 : static_cast<uint64_t>(std::ranges::count(document.bytes, '\n'));
    if (!lines) place.line += static_cast<uint64_t>(std::ranges::count(options_.separator, '\n'));
    got += document.bytes.size() + 1;
    const bool blank = lines ? document.bytes.find_first_not_of(" \t\r") == std::string::npos
                             : document.bytes.empty();
    if (!blank) documents.push_back(std::move(document));
  }
  return documents;
}

void DocumentReader::refuse(const RawDocument& document, const std::string& expected,
                            const std::string& got) const {
  fail(kReaderOp, concat(files_[document.file].path(), ":", document.line),
       concat("expected ", expected, ", got ", got));
}

namespace {

// Nothing, or what stands there instead of an object.
std::string read_object(const std::string& text, nlohmann::json& json) {
  try {
    json = nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    std::string_view what = error.what();
    if (const size_t end = what.find("] "); end != std::string_view::npos) {
      what.remove_prefix(end + 2);
    }
    return printable(what.substr(0, 200));
  }
  return json.is_object() ? "" : json.type_name();
}

// What an object has in place of a key, and what to do about it.
std::string instead_of(const std::string& key, const nlohmann::json& json,
                       const DocumentOptions& options) {
  if (json.contains("messages")) {
    return "messages. Render them with the model's chat template first; docs/text.md";
  }
  if (options.answers) return concat("an object without '", printable(key), "'");
  return json.contains("completion") ? "one with a completion. Say --answers"
                                     : "an object without it. Name the key: --key NAME";
}

}  // namespace

std::vector<TextPiece> DocumentReader::pieces_of(const RawDocument& document) const {
  if (document.format == DocumentFormat::TEXT) {
    if (options_.answers) refuse(document, "JSON lines beside --answers", "text");
    return {{document.bytes}};
  }
  const std::string one_text =
      concat("a JSON object with a text under '", printable(options_.key), "'");
  const std::string expected = options_.answers
                                   ? concat("an object with prompt and completion, or with '",
                                            printable(options_.key), "' and spans")
                                   : one_text;
  nlohmann::json json;
  if (const std::string got = read_object(document.bytes, json); !got.empty()) {
    refuse(document, expected, got);
  }
  const auto text_at = [&](const std::string& key) {
    const auto text = json.find(key);
    if (text == json.end()) refuse(document, expected, instead_of(key, json, options_));
    if (!text->is_string()) {
      refuse(document, expected, concat("a value of type ", text->type_name()));
    }
    return text->get<std::string>();
  };
  if (!options_.answers) return {{text_at(options_.key)}};
  if (!json.contains("spans")) return {{text_at("prompt"), false}, {text_at("completion"), true}};
  const std::string text = text_at(options_.key);
  const auto spans = spans_of(json["spans"], text);
  if (!spans) {
    refuse(document, "spans [[begin, end], ...] within the text, in rising order",
           shown_json(json["spans"]));
  }
  return cut_at(text, *spans);
}

}  // namespace moe8
