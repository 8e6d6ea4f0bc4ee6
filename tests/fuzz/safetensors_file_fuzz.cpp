// SPDX-License-Identifier: BSD-3-Clause
// Whole safetensors files through the reader, and what it accepts through the writer and back.
// Input: the file.
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz/refusal.h"
#include "moe8/safetensors.h"
#include "testing/compare.h"
#include "testing/folder.h"

namespace moe8 {
namespace {

/// A file in memory that has a path.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* bytes, size_t size) : fd_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    fuzz::require(fd_ >= 0 && ::write(fd_, bytes, size) == static_cast<ssize_t>(size),
                  "there is memory for a file");
  }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

void write_and_read_again(const std::map<std::string, at::Tensor>& tensors) {
  static const testing::TemporaryFolder folder;
  save_safetensors(folder / "again.safetensors", {tensors.begin(), tensors.end()});
  const std::map<std::string, at::Tensor> again = load_safetensors(folder / "again.safetensors");
  fuzz::require(again.size() == tensors.size(), "every tensor is written");
  for (const auto& [name, tensor] : tensors) {
    fuzz::require(bool(testing::same_bits(tensor, again.at(name))), "a tensor keeps its bits");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const MemoryFile file(bytes, size);
  std::map<std::string, at::Tensor> tensors;
  const bool accepted = fuzz::accepts([&] {
    const SafetensorsReader reader(file.path());
    for (const SafetensorsEntry& entry : reader.entries()) {
      fuzz::require(reader.contains(entry.name), "a reader finds its own names");
      fuzz::accepts([&] { tensors.emplace(entry.name, reader.tensor(entry.name)); });
    }
    fuzz::require(!fuzz::accepts([&] { reader.tensor("no tensor of this name \x1b"); }),
                  "another name is refused");
  });
  if (accepted) write_and_read_again(tensors);
  return 0;
}

}  // namespace moe8
