// SPDX-License-Identifier: BSD-3-Clause
// Encodes and decodes documents for compare_tokenizers.py, which holds the results to the tokenizers
// library's.
//   test_tokenizer_check TOKENIZER DOCUMENTS IDS TEXTS
// In DOCUMENTS and TEXTS every document is eight bytes of length and its bytes, in IDS eight bytes of
// count and its ids, four bytes each. Prints the bytes a processor second encodes.
#include <ctime>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "base/check.h"
#include "io/file.h"
#include "moe8/tokenizer.h"

namespace moe8 {
namespace {

std::vector<std::string> read_documents(const std::string& path) {
  const InputFile file("tokenizer_check", path);
  std::vector<std::string> documents;
  for (uint64_t at = 0; at < file.size();) {
    uint64_t size = 0;
    file.read(&size, sizeof size, at);
    file.read(documents.emplace_back(size, '\0').data(), size, at + sizeof size);
    at += sizeof size + size;
  }
  return documents;
}

void append_item(std::ofstream& out, uint64_t count, const void* bytes, size_t size) {
  out.write(reinterpret_cast<const char*>(&count), sizeof count);
  out.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(size));
}

void check_tokenizer(char** words) {
  const Tokenizer tokenizer(words[1]);
  const std::vector<std::string> documents = read_documents(words[2]);
  std::vector<std::vector<uint32_t>> ids(documents.size());
  TokenEncoder encoder(tokenizer);
  size_t bytes = 0;
  const std::clock_t begin = std::clock();
  for (size_t i = 0; i < documents.size(); ++i) {
    encoder.encode(documents[i], ids[i], {.add_special_tokens = true});
    bytes += documents[i].size();
  }
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  std::cout << static_cast<double>(bytes) / seconds << '\n';
  std::ofstream ids_out(words[3], std::ios::binary);
  std::ofstream texts_out(words[4], std::ios::binary);
  for (const auto& of_document : ids) {
    append_item(ids_out, of_document.size(), of_document.data(), 4 * of_document.size());
    const std::string text = tokenizer.decode(of_document, /*skip_special_tokens=*/true);
    append_item(texts_out, text.size(), text.data(), text.size());
  }
}

}  // namespace
}  // namespace moe8

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: " << argv[0] << " TOKENIZER DOCUMENTS IDS TEXTS\n";
    return 2;
  }
  try {
    moe8::check_tokenizer(argv);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << moe8::message_of(error) << '\n';
    return 1;
  }
}
