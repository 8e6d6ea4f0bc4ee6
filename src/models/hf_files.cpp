// SPDX-License-Identifier: BSD-3-Clause
#include "models/hf_files.h"

#include <filesystem>
#include <set>

#include "base/check.h"
#include "base/nearest.h"
#include "io/safetensors_header.h"
#include "models/config_json.h"
#include "models/hf_config.h"
#include "models/hf_index.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWhole = "model.safetensors";

std::vector<std::string> check_shards(const std::string& folder,
                                      const std::map<std::string, std::string>& map) {
  std::set<std::string> names;
  for (const auto& [tensor, file] : map) names.insert(file);
  std::vector<std::string> paths, missing;
  for (const std::string& name : names) {
    paths.push_back(folder + "/" + name);
    if (!fs::exists(paths.back())) missing.push_back(name);
  }
  const size_t count = missing.size();
  constexpr size_t kMostNames = 10;
  if (count > kMostNames) {
    missing.resize(kMostNames);
    missing.emplace_back("...");
  }
  MOE8_CHECK(count == 0, kPretrained, folder, "expected the ", names.size(), " files of ",
             kIndexFile, ", of which ", count, count == 1 ? " is" : " are",
             " missing: ", join(missing), ". Download the rest.");
  return paths;
}

// A folder without an index: its one file, or a hint what is wrong.
std::string whole_file(const std::string& folder) {
  const std::string path = folder + "/" + kWhole;
  if (fs::exists(path)) return path;
  size_t others = 0;
  for (const auto& file : fs::directory_iterator(folder)) {
    others += file.path().extension() == ".safetensors" ? 1 : 0;
  }
  fail(kPretrained, folder,
       others > 0 ? concat("expected ", kIndexFile, " beside its ", others,
                           " safetensors files, got none. Download it as well.")
                  : concat("expected ", kWhole, " or ", kIndexFile,
                           ", got neither. moe8 reads safetensors files."));
}

}  // namespace

HfFiles::HfFiles(const std::string& folder) : folder_(folder) {
  std::map<std::string, std::string> map;
  if (fs::exists(folder + "/" + kIndexFile)) {
    map = parse_weight_map(read_hf_file(folder, kIndexFile), folder + "/" + kIndexFile);
    paths_ = check_shards(folder, map);
  } else {
    paths_ = {whole_file(folder)};
  }
  for (size_t file = 0; file < paths_.size(); ++file) {
    files_.emplace_back(paths_[file]);
    const auto& entries = files_[file].entries();
    for (size_t i = 0; i < entries.size(); ++i) {
      const auto [place, is_new] = places_.emplace(entries[i].name, Place{file, i});
      MOE8_CHECK(is_new, kPretrained, paths_[file], "tensor ", shown(entries[i].name),
                 ": expected it once, but ", paths_[place->second.file],
                 " holds it as well. Are these files of one model?");
    }
  }
  for (const auto& [name, file] : map) {
    MOE8_CHECK(places_.contains(name), kPretrained, folder + "/" + file, "expected tensor ",
               shown(name), ", as ", kIndexFile, " says, got none. Download the file again.");
  }
}

std::vector<std::string> HfFiles::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

const SafetensorsEntry& HfFiles::entry(std::string_view name) const {
  const Place& place = places_.find(name)->second;
  return files_[place.file].entries()[place.entry];
}

at::Tensor HfFiles::tensor(std::string_view name) const {
  return files_[places_.find(name)->second.file].tensor(name);
}

void HfFiles::read_rows(std::string_view name, int64_t first_row, const at::Tensor& out) const {
  files_[places_.find(name)->second.file].read_rows(name, first_row, out);
}

}  // namespace moe8
