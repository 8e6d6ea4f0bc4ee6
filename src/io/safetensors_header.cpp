// SPDX-License-Identifier: BSD-3-Clause
#include "io/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"

namespace moe8 {
namespace {

constexpr const char* kMetadata = "__metadata__";
constexpr size_t kMaxDims = 64;  // what at::TensorIterator can handle

constexpr SafetensorsDtype kDtypes[] = {
    {"BOOL", 8, at::kBool},
    {"U8", 8, at::kByte},
    {"I8", 8, at::kChar},
    {"U16", 16, at::kUInt16},
    {"I16", 16, at::kShort},
    {"U32", 32, at::kUInt32},
    {"I32", 32, at::kInt},
    {"U64", 64, at::kUInt64},
    {"I64", 64, at::kLong},
    {"F16", 16, at::kHalf},
    {"BF16", 16, at::kBFloat16},
    {"F32", 32, at::kFloat},
    {"F64", 64, at::kDouble},
    {"C64", 64, at::kComplexFloat},
    {"F8_E4M3", 8, at::kFloat8_e4m3fn},
    {"F8_E4M3FNUZ", 8, at::kFloat8_e4m3fnuz},
    {"F8_E5M2", 8, at::kFloat8_e5m2},
    {"F8_E5M2FNUZ", 8, at::kFloat8_e5m2fnuz},
    {"F8_E8M0", 8, at::kFloat8_e8m0fnu},
    {"F6_E2M3", 6, at::ScalarType::Undefined},
    {"F6_E3M2", 6, at::ScalarType::Undefined},
    {"F4", 4, at::kFloat4_e2m1fn_x2, 2},
};

// ---- parsing ----------------------------------------------------------------
// Event handler instead of a document tree: duplicate keys stay visible, nesting is refused at
// once, and a hostile header costs no more memory than what it describes.
class HeaderParser final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderParser(const std::string& file) : file_(file) {}
  SafetensorsHeader take() { return std::move(header_); }

  bool null() override { unexpected("null"); }
  bool boolean(bool value) override { unexpected(value ? "true" : "false"); }
  bool number_float(double, const std::string& text) override {
    std::string as_written = text;  // the parser put the locale's decimal point into it
    std::ranges::replace(as_written, ',', '.');
    unexpected(shorten(as_written));
  }
  bool binary(binary_t&) override { unexpected("binary data"); }
  bool number_integer(int64_t value) override {
    if (value < 0) unexpected(std::to_string(value));
    return number_unsigned(static_cast<uint64_t>(value));
  }

  bool number_unsigned(uint64_t value) override {
    if (where_ == Where::SHAPE && value <= uint64_t{std::numeric_limits<int64_t>::max()} &&
        entry_.shape.size() < kMaxDims) {
      entry_.shape.push_back(static_cast<int64_t>(value));
    } else if (where_ == Where::OFFSETS && offsets_.size() < 2) {
      offsets_.push_back(value);
    } else {
      unexpected(std::to_string(value));
    }
    return true;
  }

  bool string(std::string& value) override {
    if (where_ == Where::METADATA) {
      MOE8_CHECK(header_.metadata.emplace(key_, std::move(value)).second, kLoad, file_, kMetadata,
                 ": expected unique keys, got ", shown(key_), " twice");
    } else if (where_ == Where::TENSOR && key_ == "dtype") {
      entry_.dtype = std::move(value);
    } else {
      unexpected(shown(value));
    }
    return true;
  }

  bool start_object(size_t) override {
    if (where_ == Where::DOCUMENT) {
      where_ = Where::NAMES;
    } else if (where_ == Where::NAMES && key_ == kMetadata) {
      where_ = Where::METADATA;
    } else if (where_ == Where::NAMES) {
      where_ = Where::TENSOR;
      entry_ = {.name = key_, .dtype = {}, .shape = {}};
      offsets_.clear();
      fields_.clear();
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(std::string& value) override {
    key_ = std::move(value);
    if (where_ == Where::NAMES) {
      MOE8_CHECK(names_.insert(key_).second, kLoad, file_, "expected unique names, got ",
                 shown(key_), " twice");
    } else if (where_ == Where::TENSOR) {
      MOE8_CHECK(key_ == "dtype" || key_ == "shape" || key_ == "data_offsets", kLoad, file_,
                 "tensor ", shown(entry_.name), ": expected dtype, shape and data_offsets, got ",
                 shown(key_));
      MOE8_CHECK(fields_.insert(key_).second, kLoad, file_, "tensor ", shown(entry_.name),
                 ": expected unique fields, got ", key_, " twice");
    }
    return true;
  }

  bool end_object() override {
    if (where_ == Where::TENSOR) finish_entry();
    where_ = where_ == Where::NAMES ? Where::DOCUMENT : Where::NAMES;
    return true;
  }

  bool start_array(size_t) override {
    if (where_ == Where::TENSOR && key_ == "shape") {
      where_ = Where::SHAPE;
    } else if (where_ == Where::TENSOR && key_ == "data_offsets") {
      where_ = Where::OFFSETS;
    } else {
      unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    where_ = Where::TENSOR;
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::json::exception& error) override {
    std::string why = error.what();
    why = why.substr(0, why.find("; last read"));  // what was read may be megabytes
    const size_t place_end = why.find(": ", why.find("column"));
    if (place_end != std::string::npos) why.erase(0, place_end + 2);
    fail(kLoad, file_,
         concat("expected a header in JSON, got an error at byte ", position,
                " of it: ", shorten(why)));
  }

 private:
  enum class Where { DOCUMENT, NAMES, METADATA, TENSOR, SHAPE, OFFSETS };

  static std::string shorten(const std::string& text) {
    return text.size() <= 100 ? text : text.substr(0, 100) + "...";
  }

  // What may stand at the place that was reached.
  std::string expectation() const {
    if (where_ == Where::METADATA) return "__metadata__ " + shown(key_) + ": expected a string";
    if (where_ == Where::NAMES && key_ == kMetadata) return "__metadata__: expected an object";
    if (where_ == Where::NAMES) return "tensor " + shown(key_) + ": expected an object";
    const std::string tensor = "tensor " + shown(entry_.name) + ": expected ";
    if (key_ == "dtype") return tensor + "a string as dtype";
    if (key_ == "data_offsets") return tensor + "two integers from 0 to 2^64-1 as data_offsets";
    return concat(tensor, "at most ", kMaxDims, " integers from 0 to 2^63-1 as shape");
  }

  [[noreturn]] void unexpected(const std::string& got) const {
    fail(kLoad, file_, expectation() + ", got " + got);
  }

  void finish_entry() {
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      MOE8_CHECK(fields_.contains(field), kLoad, file_, "tensor ", shown(entry_.name),
                 ": expected dtype, shape and data_offsets, got no ", field);
    }
    MOE8_CHECK(offsets_.size() == 2, kLoad, file_, "tensor ", shown(entry_.name),
               ": expected two integers as data_offsets, got ", offsets_.size());
    entry_.begin = offsets_[0];
    entry_.end = offsets_[1];
    header_.entries.push_back(std::move(entry_));
  }

  const std::string& file_;
  SafetensorsHeader header_;
  Where where_ = Where::DOCUMENT;
  std::string key_;              // the last one read, at any depth
  std::set<std::string> names_;  // all keys of the outer object
  SafetensorsEntry entry_;       // the tensor being read
  std::vector<uint64_t> offsets_;
  std::set<std::string> fields_;
};

// ---- checks between fields --------------------------------------------------
void check_size(const SafetensorsEntry& entry, const std::string& file) {
  const SafetensorsDtype* dtype = find_safetensors_dtype(entry.dtype);
  if (dtype == nullptr) {
    std::vector<std::string> known;
    for (const SafetensorsDtype& one : kDtypes) known.emplace_back(one.name);
    fail(kLoad, file,
         concat("tensor ", shown(entry.name), ": expected a dtype of ", join(known), ", got ",
                shown(entry.dtype)));
  }
  // An empty tensor's other sizes still become strides, which must not overflow either.
  bool empty = false;
  bool fits = true;
  int64_t bits = dtype->bits;
  for (const int64_t size : entry.shape) {
    empty = empty || size == 0;
    fits = fits && !__builtin_mul_overflow(bits, std::max<int64_t>(size, 1), &bits);
  }
  MOE8_CHECK(fits, kLoad, file, "tensor ", shown(entry.name),
             ": expected a shape of less than 2^63 bits, got ", at::IntArrayRef(entry.shape));
  if (empty) bits = 0;
  MOE8_CHECK(entry.begin <= entry.end, kLoad, file, "tensor ", shown(entry.name),
             ": expected data_offsets in order, got ", entry.begin, " before ", entry.end);
  MOE8_CHECK(bits % 8 == 0, kLoad, file, "tensor ", shown(entry.name), ": expected whole bytes of ",
             entry.dtype, ", got shape ", at::IntArrayRef(entry.shape));
  MOE8_CHECK(entry.end - entry.begin == static_cast<uint64_t>(bits) / 8, kLoad, file, "tensor ",
             shown(entry.name), ": expected ", bits / 8, " bytes for ", entry.dtype, " of shape ",
             at::IntArrayRef(entry.shape), ", got data_offsets ", entry.begin, " to ", entry.end);
}

// The tensors must cover the data section once, without holes.
void check_cover(const std::vector<SafetensorsEntry>& entries, uint64_t data_size,
                 const std::string& file) {
  uint64_t covered = 0;
  for (const SafetensorsEntry& entry : entries) {
    MOE8_CHECK(entry.end <= data_size, kLoad, file, "tensor ", shown(entry.name),
               ": expected data_offsets within the ", data_size, " bytes of data, got ",
               entry.begin, " to ", entry.end, ". Is the file cut off?");
    MOE8_CHECK(entry.begin == covered, kLoad, file, "tensor ", shown(entry.name),
               ": expected data from byte ", covered, ", got from ", entry.begin,
               entry.begin < covered ? " (overlaps another tensor)" : " (a gap before it)");
    covered = entry.end;
  }
  MOE8_CHECK(covered == data_size, kLoad, file, "expected ", covered, " bytes of data, got ",
             data_size, " (nothing describes the rest)");
}

std::string json_text(const nlohmann::json& value, const std::string& what,
                      const std::string& file) {
  try {
    return value.dump();
  } catch (const nlohmann::json::exception&) {
    fail(kSave, file, "expected UTF-8 in " + what);
  }
}

}  // namespace

const SafetensorsDtype* find_safetensors_dtype(std::string_view name) {
  const auto* found = std::ranges::find(kDtypes, name, &SafetensorsDtype::name);
  return found == std::end(kDtypes) ? nullptr : found;
}

const SafetensorsDtype* find_safetensors_dtype(at::ScalarType type) {
  if (type == at::ScalarType::Undefined) return nullptr;
  const auto* found = std::ranges::find(kDtypes, type, &SafetensorsDtype::type);
  return found == std::end(kDtypes) ? nullptr : found;
}

SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t data_size,
                                           const std::string& file) {
  // The format demands the brace as first byte; the parser alone would skip blanks and a BOM.
  MOE8_CHECK(text.starts_with('{'), kLoad, file, "expected a header that starts with {, got ",
             text.empty() ? "an empty one" : shown(text.substr(0, 16)),
             ". Is this a safetensors file?");
  // To the parser a NUL byte is the end of the text, whatever follows.
  const size_t nul = text.find('\0');
  MOE8_CHECK(nul == std::string_view::npos, kLoad, file,
             "expected a header in JSON, got a NUL byte at byte ", nul, " of it");
  HeaderParser parser(file);
  nlohmann::json::sax_parse(text.begin(), text.end(), &parser);
  SafetensorsHeader header = parser.take();
  for (const SafetensorsEntry& entry : header.entries) check_size(entry, file);
  std::ranges::stable_sort(header.entries, {}, [](const SafetensorsEntry& entry) {
    return std::pair(entry.begin, entry.end);
  });
  check_cover(header.entries, data_size, file);
  return header;
}

std::string write_safetensors_header(const SafetensorsHeader& header, const std::string& file) {
  std::string text = "{";
  if (!header.metadata.empty()) {
    text += concat("\"", kMetadata, "\":", json_text(header.metadata, "the metadata", file));
  }
  for (const SafetensorsEntry& entry : header.entries) {
    MOE8_CHECK(entry.name != kMetadata, kSave, file, "expected names of tensors, got ", kMetadata,
               ", which the format reserves");
    if (text.size() > 1) text += ",";
    text += json_text(entry.name, "the name of tensor " + shown(entry.name), file);
    text +=
        concat(":{\"dtype\":\"", entry.dtype, "\",\"shape\":", nlohmann::json(entry.shape).dump(),
               ",\"data_offsets\":[", entry.begin, ",", entry.end, "]}");
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  MOE8_CHECK(text.size() <= kSafetensorsMaxHeader, kSave, file, "expected a header of at most ",
             kSafetensorsMaxHeader, " bytes, got ", text.size());
  return text;
}

std::string shown(std::string_view name) {
  constexpr size_t kLongest = 100;
  const std::string text = nlohmann::json(name.substr(0, kLongest))
                               .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return name.size() <= kLongest ? text : text + "...";
}

}  // namespace moe8
