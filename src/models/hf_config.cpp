// SPDX-License-Identifier: BSD-3-Clause
#include "models/hf_config.h"

#include <filesystem>

#include "io/file.h"
#include "models/families.h"

namespace moe8 {

std::string read_hf_file(const std::string& folder, const std::string& name) {
  namespace fs = std::filesystem;
  const std::string path = folder + "/" + name;
  MOE8_CHECK(fs::is_directory(folder), kPretrained, folder,
             "expected the folder of a model, with config.json, got ",
             fs::exists(folder) ? "a file" : "nothing of this name");
  MOE8_CHECK(fs::exists(path), kPretrained, path, "expected a file of this name, got none. ",
             "Is this the folder of a model, and complete?");
  std::string text = read_text_file(kPretrained, path);
  MOE8_CHECK(!text.starts_with("version https://git-lfs"), kPretrained, path,
             "expected JSON, got a Git LFS pointer. The file itself was not downloaded: run "
             "git lfs pull in the repository it came from.");
  return text;
}

TransformerConfig read_hf_config(const std::string& folder) {
  const std::string where = folder + "/config.json";
  const OrderedJson json = OrderedJson::parse(read_hf_file(folder, "config.json"), nullptr,
                                              /*allow_exceptions=*/false);
  MOE8_CHECK(!json.is_discarded(), kPretrained, where, "expected JSON, got text that is none");
  return read_config(json, where);
}

}  // namespace moe8
