// SPDX-License-Identifier: BSD-3-Clause
// Token files. Input: a byte that says which kind, the length of the first file (two bytes), its
// bytes, then those of the others.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "fuzz/refusal.h"
#include "text/token_source.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;

// In memory where there is such a folder; removed at the end of the process.
class Folder {
 public:
  Folder() {
    const fs::path root = fs::is_directory("/dev/shm") ? "/dev/shm" : fs::temp_directory_path();
    path_ = root / ("moe8-fuzz-" + std::to_string(::getpid()));
    fs::create_directories(path_);
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  std::string write(const char* name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary | std::ios::trunc) << bytes;
    return (path_ / name).string();
  }
  void clear() const {
    for (const auto& entry : fs::directory_iterator(path_)) fs::remove_all(entry);
  }

 private:
  fs::path path_;
};

void read_everything(const TokenSource& source) {
  fuzz::require(source.size() < (uint64_t{1} << 20U), "tokens lie in the file");
  std::vector<uint32_t> ids(source.size());
  source.read(0, ids, ~uint32_t{0});
  const std::vector<uint64_t> ends = source.document_ends();
  fuzz::require(ends.size() == source.documents().value_or(0), "every document has an end");
  fuzz::require(ends.empty() || ends.back() == source.size(), "documents cover the tokens");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const Folder folder;
  fuzz::FuzzInput input(bytes, size);
  const int64_t kind = input.integer(0, 3);
  const auto length = input.value<uint16_t>();
  const std::string all = input.rest();
  const size_t cut = std::min<size_t>(length, all.size());
  const std::string first = all.substr(0, cut);
  const std::string rest = all.substr(cut);
  folder.clear();
  fuzz::accepts([&] {
    switch (kind) {
      case 0: {  // moe8's own
        const std::string index = folder.write(kIndexFile, first);
        folder.write(kTokensFile, rest.substr(0, rest.size() / 2));
        folder.write(kDocumentsFile, rest.substr(rest.size() / 2));
        return read_everything(TokenSource::open(index));
      }
      case 1: {  // Megatron's
        folder.write("m.bin", rest);
        return read_everything(TokenSource::open(folder.write("m.idx", first)));
      }
      case 2:  // llm.c's, or a flat one
        return read_everything(TokenSource::open(folder.write("a.bin", all)));
      default:
        return read_everything(TokenSource::open(folder.write("a.bin", all), TokenType::UINT32));
    }
  });
  return 0;
}

}  // namespace moe8
