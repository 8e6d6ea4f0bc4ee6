// SPDX-License-Identifier: BSD-3-Clause
// Runs a fuzz target without a fuzzer, the same way each time: every file of its corpus, then a
// number of mutations of them. An input that fails or hangs is left behind as a file.
//   fuzz_NAME CORPUS_FOLDER_OR_FILE [MUTATIONS]
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

constexpr size_t kLongest = 4096;         // bytes of a mutated input
constexpr unsigned kSecondsAnInput = 60;  // a hang; generous for slow machines and sanitizers
constexpr const char* kFailed = "failed-input.bin";

const Bytes* current = nullptr;  // for the signal handler

// Signal-safe: no allocation, no streams.
void keep_input_and_die(int signal) {
  const int file = ::open(kFailed, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  if (file >= 0 && current != nullptr) {
    [[maybe_unused]] const auto written = ::write(file, current->data(), current->size());
    ::close(file);
  }
  constexpr char kText[] = "fuzz: this input failed or hung: failed-input.bin\n";
  [[maybe_unused]] const auto told = ::write(STDERR_FILENO, kText, sizeof kText - 1);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void run(const Bytes& input) noexcept {  // what a target throws ends in keep_input_and_die
  // A copy of exact size on the heap, so that reading past its end is noticed.
  const Bytes exact(input.begin(), input.end());
  current = &exact;
  ::alarm(kSecondsAnInput);
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  ::alarm(0);
  current = nullptr;
}

std::vector<Bytes> read_corpus(const std::string& path) {
  std::vector<std::filesystem::path> files;
  if (std::filesystem::is_directory(path)) {
    for (const auto& entry : std::filesystem::directory_iterator(path)) files.push_back(entry);
  } else {
    files.emplace_back(path);
  }
  std::sort(files.begin(), files.end());
  std::vector<Bytes> inputs;
  for (const auto& file : files) {
    std::ifstream in(file, std::ios::binary);
    if (!in) throw std::runtime_error("cannot read " + file.string());
    inputs.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return inputs;
}

// The same numbers everywhere: distributions of the standard library differ between systems.
size_t below(std::mt19937_64& random, size_t count) {
  return random() % count;
}

void mutate_once(Bytes& input, const std::vector<Bytes>& corpus, std::mt19937_64& random) {
  constexpr std::array<uint8_t, 8> kEdges{0x00, 0x01, 0x7F, 0x80, 0xFF, '"', '[', '\n'};
  const size_t at = below(random, input.size() + 1);
  const size_t count = below(random, std::min<size_t>(input.size() - at, 16) + 1);
  const auto from = input.begin() + static_cast<std::ptrdiff_t>(at);
  switch (below(random, 6)) {
    case 0:
      if (at < input.size()) input[at] ^= static_cast<uint8_t>(1U << below(random, 8));
      break;
    case 1:
      if (at < input.size()) input[at] = kEdges[below(random, kEdges.size())];
      break;
    case 2:
      input.insert(from, static_cast<uint8_t>(random()));
      break;
    case 3:
      input.erase(from, from + static_cast<std::ptrdiff_t>(count));
      break;
    case 4: {  // the same bytes again
      const Bytes repeated(from, from + static_cast<std::ptrdiff_t>(count));
      input.insert(from, repeated.begin(), repeated.end());
      break;
    }
    default: {  // the end of another input
      const Bytes& other = corpus[below(random, corpus.size())];
      input.resize(at);
      input.insert(input.end(),
                   other.begin() + static_cast<std::ptrdiff_t>(below(random, other.size() + 1)),
                   other.end());
    }
  }
  if (input.size() > kLongest) input.resize(kLongest);
}

int replay(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: " << argv[0] << " CORPUS_FOLDER_OR_FILE [MUTATIONS]\n";
    return 2;
  }
  for (const int signal : {SIGABRT, SIGALRM, SIGBUS, SIGFPE, SIGILL, SIGSEGV}) {
    std::signal(signal, keep_input_and_die);
  }
  const std::vector<Bytes> corpus = read_corpus(argv[1]);
  const size_t mutations = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 0;
  if (corpus.empty()) {
    std::cerr << argv[1] << " holds no inputs\n";
    return 1;
  }
  for (const Bytes& input : corpus) run(input);
  std::mt19937_64 random(1);
  for (size_t i = 0; i < mutations; ++i) {
    Bytes input = corpus[below(random, corpus.size())];
    for (size_t n = below(random, 8) + 1; n > 0; --n) mutate_once(input, corpus, random);
    run(input);
  }
  std::cout << corpus.size() << " inputs and " << mutations << " mutations: ok\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return replay(argc, argv);
  } catch (const std::exception& error) {  // no corpus to read
    std::cerr << argv[0] << ": " << error.what() << "\n";
    return 1;
  }
}
