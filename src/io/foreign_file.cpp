// SPDX-License-Identifier: BSD-3-Clause
#include "io/foreign_file.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/nearest.h"

namespace moe8 {
namespace {

constexpr uint64_t kFirstBytes = 4096;
constexpr uint64_t kMaxIndex = uint64_t{32} << 20;
constexpr size_t kMaxNames = 20;  // in one message

constexpr std::string_view kConvert =
    "Convert it in Python: safetensors.torch.save_file(torch.load(PATH), \"model.safetensors\")";

struct Kind {
  std::string_view start;
  std::string_view name;
  std::string_view remedy;
};
constexpr std::string_view kGitLfs = "version https://git-lfs";
constexpr std::array kKinds{
    Kind{kGitLfs, "a Git LFS pointer",
         "The file itself was not downloaded: run git lfs pull in the repository it came from"},
    Kind{{"PK\x03\x04", 4}, "a zip archive, as torch.save writes it", kConvert},
    Kind{"\x80\x02", "a Python pickle, as torch.save wrote it", kConvert},
    Kind{"\x1F\x8B", "a gzip file", "Unpack it: gunzip PATH"},
    Kind{"GGUF", "a GGUF file", "moe8 reads the safetensors files that such files are made from"},
    Kind{"\x89HDF", "an HDF5 file", "moe8 reads safetensors files"},
};

bool begins_as_html(std::string_view bytes) {
  constexpr std::string_view kBlank = " \t\r\n\xEF\xBB\xBF";
  std::string start(bytes.substr(std::min(bytes.find_first_not_of(kBlank), bytes.size()), 14));
  std::ranges::transform(start, start.begin(), [](unsigned char c) { return std::tolower(c); });
  return start.starts_with("<!doctype html") || start.starts_with("<html");
}

std::string listed(const std::set<std::string>& names) {
  std::vector<std::string> shown;
  for (const std::string& name : names) {
    if (shown.size() < kMaxNames) shown.push_back(name);
  }
  const size_t rest = names.size() - shown.size();
  return join(shown) + (rest > 0 ? " and " + std::to_string(rest) + " more" : "");
}

// model.safetensors.index.json: {"weight_map": {"name of a tensor": "name of its file", ...}}
std::optional<std::string> index_kind(const InputFile& file) {
  if (file.size() > kMaxIndex) return std::nullopt;
  std::string text(file.size(), '\0');
  file.read(text.data(), text.size(), 0);
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return std::nullopt;
  const auto map = json.find("weight_map");
  if (map == json.end() || !map->is_object()) return "a JSON file";
  std::set<std::string> shards;
  for (const auto& name : *map) {
    if (name.is_string()) shards.insert(name.get<std::string>());
  }
  return "the index of a model in several files. Pass these instead: " + listed(shards);
}

// ---- wide characters --------------------------------------------------------
struct Mark {
  std::string_view bytes;
  std::string_view encoding;
};
constexpr std::array kMarks{Mark{{"\xFF\xFE\0\0", 4}, "UTF-32"},  // before the shorter ones
                            Mark{{"\0\0\xFE\xFF", 4}, "UTF-32"}, Mark{"\xFF\xFE", "UTF-16"},
                            Mark{"\xFE\xFF", "UTF-16"}};

bool is_text(char c) {
  return (c >= ' ' && c <= '~') || c == '\n' || c == '\r' || c == '\t';
}

// Nine of ten pairs are printable ASCII with a NUL byte at `nul` (0 or 1).
bool is_ascii_in_pairs(std::string_view bytes, size_t nul) {
  constexpr size_t kMinPairs = 16;
  const size_t pairs = bytes.size() / 2;
  size_t fitting = 0;
  for (size_t i = 0; i < pairs; ++i) {
    fitting += bytes[2 * i + nul] == '\0' && is_text(bytes[2 * i + 1 - nul]);
  }
  return pairs >= kMinPairs && 10 * fitting >= 9 * pairs;
}

}  // namespace

std::optional<std::string> foreign_kind(std::string_view first_bytes) {
  for (const Kind& kind : kKinds) {
    if (first_bytes.starts_with(kind.start)) {
      return std::string(kind.name) + ". " + std::string(kind.remedy);
    }
  }
  if (!begins_as_html(first_bytes)) return std::nullopt;
  return "an HTML page. A download is answered with one that asks for a login or a licence, or "
         "reports an error: open it in a browser";
}

std::optional<std::string> foreign_kind(const InputFile& file) {
  std::string first(std::min(file.size(), kFirstBytes), '\0');
  file.read(first.data(), first.size(), 0);
  return first.starts_with('{') ? index_kind(file) : foreign_kind(std::string_view(first));
}

bool is_git_lfs_pointer(std::string_view first_bytes) {
  return first_bytes.starts_with(kGitLfs);
}

std::string directory_kind(const std::string& path) {
  std::set<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().extension() == ".safetensors") names.insert(it->path().filename());
  }
  return names.empty() ? "a directory without such files"
                       : "a directory. Pass its files instead: " + listed(names);
}

std::optional<std::string> wide_encoding(std::string_view first_bytes) {
  for (const Mark& mark : kMarks) {
    if (first_bytes.starts_with(mark.bytes)) return std::string(mark.encoding);
  }
  if (is_ascii_in_pairs(first_bytes, 1)) return "UTF-16LE";
  if (is_ascii_in_pairs(first_bytes, 0)) return "UTF-16BE";
  return std::nullopt;
}

}  // namespace moe8
