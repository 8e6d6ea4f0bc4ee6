// SPDX-License-Identifier: BSD-3-Clause
// Headers of safetensors files. Input: 8 bytes, the size of the data section; the text.
#include "fuzz/refusal.h"
#include "io/safetensors_header.h"

namespace moe8 {
namespace {

// What the reader relies on: tensors in the order of their bytes, which cover the data once.
void check_header(const SafetensorsHeader& header, uint64_t data_size) {
  uint64_t covered = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    const SafetensorsDtype* dtype = find_safetensors_dtype(entry.dtype);
    fuzz::require(dtype != nullptr, "every dtype is known");
    fuzz::require(entry.begin == covered && entry.end >= entry.begin, "tensors lie side by side");
    __extension__ __int128 bits = dtype->bits;
    for (const int64_t size : entry.shape) {
      fuzz::require(size >= 0, "sizes are not negative");
      bits *= size;
    }
    fuzz::require(bits == static_cast<__int128>(entry.end - entry.begin) * 8,
                  "a tensor has the bytes of its shape");
    covered = entry.end;
  }
  fuzz::require(covered == data_size, "the data is covered");
}

bool same(const SafetensorsHeader& a, const SafetensorsHeader& b) {
  const auto same_entry = [](const SafetensorsEntry& x, const SafetensorsEntry& y) {
    return x.name == y.name && x.dtype == y.dtype && x.shape == y.shape && x.begin == y.begin &&
           x.end == y.end;
  };
  return a.metadata == b.metadata && std::equal(a.entries.begin(), a.entries.end(),
                                                b.entries.begin(), b.entries.end(), same_entry);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  fuzz::FuzzInput input(bytes, size);
  const auto data_size = input.value<uint64_t>();
  const std::string text = input.rest();
  fuzz::accepts([&] {
    const SafetensorsHeader header = parse_safetensors_header(text, data_size, "file");
    check_header(header, data_size);
    const std::string written = write_safetensors_header(header, "file");
    fuzz::require(same(header, parse_safetensors_header(written, data_size, "file")),
                  "a header that was read can be written and read again");
  });
  return 0;
}

}  // namespace moe8
