// SPDX-License-Identifier: BSD-3-Clause
#include "text/tokenize_job.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>

#include "base/check.h"
#include "base/nearest.h"
#include "base/printable.h"
#include "moe8/tokenizer.h"

namespace moe8 {
namespace {

namespace fs = std::filesystem;
using JobJson = nlohmann::ordered_json;

constexpr const char* kTokenizeOp = "tokenize";
constexpr const char* kPlaceFile = "progress.json";
constexpr const char* kUnfinished = ".part";
constexpr uint64_t kBytesPerRound = uint64_t{4} << 20U;  // of each thread
constexpr uint64_t kMostOfARound = uint64_t{256} << 20U;

// ---- which job it is ----------------------------------------------------------
// Everything that the files' bytes depend on, as text.
std::string description_of(const TokenizeJob& job, const DocumentReader& reader,
                           const Tokenizer& tokenizer, const std::optional<std::string>& end) {
  JobJson json = {{"tokenizer", tokenizer.fingerprint()},
                  {"key", job.documents.key},
                  {"separator", job.documents.separator},
                  {"format", nullptr},
                  {"end_token", nullptr},
                  {"add_special_tokens", job.add_special_tokens},
                  {"files", JobJson::array()}};
  if (job.documents.format) {
    json["format"] = *job.documents.format == DocumentFormat::TEXT ? "text" : "jsonl";
  }
  if (end) json["end_token"] = *end;
  if (job.documents.answers) json["answers"] = true;  // jobs from before have no such key
  for (const InputFile& file : reader.files()) {
    struct stat status {};
    ::fstat(file.descriptor(), &status);
    json["files"].push_back({{"path", file.path()},
                             {"bytes", file.size()},
                             {"changed", status.st_mtim.tv_sec},
                             {"changed_ns", status.st_mtim.tv_nsec}});
  }
  return json.dump(-1, ' ', false, JobJson::error_handler_t::replace);
}

std::vector<std::string> special_tokens(const Tokenizer& tokenizer) {
  std::vector<std::string> names;
  for (uint32_t id = 0; id < tokenizer.vocabulary_size() && names.size() < 12; ++id) {
    if (tokenizer.is_special(id)) names.push_back(printable(*tokenizer.token_of(id)));
  }
  return names;
}

std::optional<std::string> end_of(const TokenizeJob& job, const Tokenizer& tokenizer) {
  const std::optional<std::string> end =
      job.end_token ? job.end_token : configured_end(job.tokenizer);
  const auto list = [&] { return join(special_tokens(tokenizer)); };
  MOE8_CHECK(end, kTokenizeOp, "--end-token",
             "expected the token that stands behind every document, ",
             "or 'none': no tokenizer_config.json says it. Special tokens are: ", list());
  if (end->empty()) return std::nullopt;
  MOE8_CHECK(tokenizer.id_of(*end), kTokenizeOp, "--end-token", "expected a token, got '",
             printable(*end), "'. Special tokens are: ", list());
  return end;
}

// ---- the folder ---------------------------------------------------------------
// What is on the disk, and where reading goes on.
struct Place {
  DocumentPlace next;
  uint64_t tokens = 0, documents = 0, replaced = 0;
};

std::string to_json(const Place& place, const std::string& job) {
  const JobJson json = {{"job", job},
                        {"file", place.next.file},
                        {"byte", place.next.byte},
                        {"line", place.next.line},
                        {"tokens", place.tokens},
                        {"documents", place.documents},
                        {"replaced", place.replaced}};
  return json.dump(2) + "\n";
}

// A file that grows by appending; what is written counts once sync() has returned.
class GrowingFile {
 public:
  GrowingFile(const std::string& path, uint64_t size) : path_(path) {
    fd_ = Descriptor(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
    MOE8_CHECK(fd_.get() >= 0, kTokenizeOp, path_, "expected a file that can be written to, got: ",
               std::generic_category().message(errno));
    struct stat status {};
    MOE8_CHECK(::fstat(fd_.get(), &status) == 0 && static_cast<uint64_t>(status.st_size) >= size,
               kTokenizeOp, path_, "expected at least ", size, " bytes, as ", kPlaceFile,
               " says, got ", status.st_size, ". Remove the folder to begin again");
    MOE8_CHECK(::ftruncate(fd_.get(), static_cast<off_t>(size)) == 0 &&
                   ::lseek(fd_.get(), 0, SEEK_END) == static_cast<off_t>(size),
               kTokenizeOp, path_, "expected to cut the file to ", size,
               " bytes, got: ", std::generic_category().message(errno));
  }
  void append(const void* bytes, uint64_t count) {
    write_all(kTokenizeOp, path_, fd_, bytes, count);
  }
  void sync() {
    MOE8_CHECK(::fdatasync(fd_.get()) == 0, kTokenizeOp, path_,
               "expected to flush the file, got: ", std::generic_category().message(errno));
  }

 private:
  std::string path_;
  Descriptor fd_;
};

// One job at a time works in a folder.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder)
      : fd_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    MOE8_CHECK(fd_.get() >= 0 && ::flock(fd_.get(), LOCK_EX | LOCK_NB) == 0, kTokenizeOp, folder,
               "expected a folder that nobody else works in, got: ",
               std::generic_category().message(errno));
  }

 private:
  Descriptor fd_;
};

class OutFolder {
 public:
  OutFolder(const std::string& folder, std::string job, bool has_answers)
      : folder_(folder), job_(std::move(job)) {
    if (has_answers) names_.emplace_back(kAnswersFile);
    std::error_code error;
    fs::create_directories(folder, error);
    MOE8_CHECK(!error, kTokenizeOp, folder, "expected to make a folder, got: ", error.message());
    lock_.emplace(folder);
  }
  std::string path(const std::string& name) const { return (fs::path(folder_) / name).string(); }

  // The index when the job is done already.
  std::optional<TokenIndex> finished() const {
    std::error_code ignored;
    if (!fs::exists(path(kIndexFile), ignored)) return std::nullopt;
    TokenIndex index =
        parse_token_index(read_text_file(kTokenizeOp, path(kIndexFile)), path(kIndexFile));
    check_same(index.job);
    return index;
  }

  Place begin() const {
    std::error_code ignored;
    if (!fs::exists(path(kPlaceFile), ignored)) {
      check_empty();
      remove_leftovers(folder_);
      return {};
    }
    const auto json = JobJson::parse(read_text_file(kTokenizeOp, path(kPlaceFile)), nullptr, false);
    try {
      check_same(json.at("job").get<std::string>());
      take_names_back();
      remove_leftovers(folder_);
      return {.next = {.file = json.at("file").get<size_t>(),
                       .byte = json.at("byte").get<uint64_t>(),
                       .line = json.at("line").get<uint64_t>()},
              .tokens = json.at("tokens").get<uint64_t>(),
              .documents = json.at("documents").get<uint64_t>(),
              .replaced = json.at("replaced").get<uint64_t>()};
    } catch (const JobJson::exception&) {
      fail(
          kTokenizeOp, path(kPlaceFile),
          "expected the place where a job goes on, got another file. Remove the folder to begin again");
    }
  }
  void keep(const Place& place) const {
    write_file(kTokenizeOp, path(kPlaceFile), to_json(place, job_));
  }
  const std::string& job() const { return job_; }

  // The names that count, the index last.
  void finish(const TokenIndex& index) const {
    for (const std::string& name : names_) {
      std::error_code error;
      fs::rename(path(name + kUnfinished), path(name), error);
      MOE8_CHECK(!error, kTokenizeOp, path(name),
                 "expected to rename the finished file, got: ", error.message());
    }
    write_file(kTokenizeOp, path(kIndexFile), moe8::to_json(index));
    std::error_code ignored;
    fs::remove(path(kPlaceFile), ignored);
  }

 private:
  void check_same(const std::string& job) const {
    MOE8_CHECK(
        job == job_, kTokenizeOp, folder_,
        "expected a new folder, or one of the same job, got one that was made of other files, "
        "of files that changed since, or with other options. Remove it, or pass another --out");
  }
  // A start that was stopped while it gave the files their names.
  void take_names_back() const {
    for (const std::string& name : names_) {
      std::error_code ignored;
      const std::string unfinished = path(name + kUnfinished);
      if (!fs::exists(unfinished, ignored)) fs::rename(path(name), unfinished, ignored);
    }
  }
  void check_empty() const {
    std::error_code error;
    for (fs::directory_iterator it(folder_, error), end; !error && it != end; it.increment(error)) {
      const std::string name = it->path().filename();
      const bool unfinished = std::ranges::any_of(
          names_, [&](const std::string& own) { return name == own + kUnfinished; });
      const bool own = unfinished || (name.starts_with(".moe8-") && name.ends_with(".tmp"));
      MOE8_CHECK(own, kTokenizeOp, folder_, "expected a new or an empty folder, got one with '",
                 printable(name), "'");
    }
  }

  std::string folder_;
  std::string job_;
  std::vector<std::string> names_{kTokensFile, kDocumentsFile};  // of files that grow
  std::optional<FolderLock> lock_;
};

// ---- encoding -----------------------------------------------------------------
// A thread's part of the work: its encoder remembers words from round to round.
struct Worker {
  explicit Worker(const Tokenizer& tokenizer) : encoder(tokenizer) {}
  TokenEncoder encoder;
};

class Encoding {
 public:
  Encoding(const TokenizeJob& job, const DocumentReader& reader, const Tokenizer& tokenizer,
           const std::optional<std::string>& end)
      : reader_(reader), options_{.add_special_tokens = job.add_special_tokens} {
    if (end) end_ = tokenizer.id_of(*end);
    const auto threads = static_cast<size_t>(std::max(job.threads, 1));
    for (size_t i = 0; i < threads; ++i) workers_.push_back(std::make_unique<Worker>(tokenizer));
  }

  // The tokens of every document.
  std::vector<EncodedDocument> encode(const std::vector<RawDocument>& documents) {
    std::vector<EncodedDocument> encoded(documents.size());
    std::atomic<size_t> next{0};
    size_t failed = documents.size();  // the first document that is none
    std::exception_ptr error;
    std::mutex mutex;
    const auto work = [&](Worker& worker) {
      for (size_t i = next++; i < documents.size(); i = next++) {
        try {
          encoded[i] =
              encode_pieces(worker.encoder, reader_.pieces_of(documents[i]), end_, options_);
        } catch (...) {
          const std::scoped_lock lock(mutex);
          if (i < failed) error = std::current_exception();
          failed = std::min(failed, i);
        }
      }
    };
    {
      std::vector<std::jthread> threads;
      const size_t helpers =
          std::min(workers_.size(), documents.size()) - (documents.empty() ? 0 : 1);
      for (size_t i = 1; i <= helpers; ++i) threads.emplace_back(work, std::ref(*workers_[i]));
      work(*workers_.front());
    }
    if (error) std::rethrow_exception(error);
    return encoded;
  }

  uint64_t replaced() const {
    uint64_t sum = 0;
    for (const auto& worker : workers_) sum += worker->encoder.replaced();
    return sum;
  }
  size_t threads() const { return workers_.size(); }

 private:
  const DocumentReader& reader_;
  EncodeOptions options_;
  std::optional<uint32_t> end_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

void append_tokens(std::string& bytes, const std::vector<uint32_t>& ids, TokenType type) {
  const auto width = static_cast<size_t>(width_of(type));
  const size_t at = bytes.size();
  bytes.resize(at + ids.size() * width);
  for (size_t i = 0; i < ids.size(); ++i) std::memcpy(&bytes[at + i * width], &ids[i], width);
}

// Reads, encodes and writes rounds until everything is read.
Place run_rounds(DocumentReader& reader, Encoding& encoding, const OutFolder& folder, Place place,
                 TokenType type, bool has_answers,
                 const std::function<void(const TokenizeProgress&)>& progress) {
  const auto width = static_cast<uint64_t>(width_of(type));
  GrowingFile tokens(folder.path(std::string(kTokensFile) + kUnfinished), place.tokens * width);
  GrowingFile ends(folder.path(std::string(kDocumentsFile) + kUnfinished),
                   place.documents * sizeof(uint64_t));
  std::optional<GrowingFile> answers;
  if (has_answers) {
    answers.emplace(folder.path(std::string(kAnswersFile) + kUnfinished), place.tokens);
  }
  const uint64_t round = std::min(kBytesPerRound * encoding.threads(), kMostOfARound);
  const uint64_t before = reader.bytes_before(place.next);
  const uint64_t replaced_before = place.replaced;
  folder.keep(place);
  while (place.next.file < reader.files().size()) {
    const std::vector<RawDocument> documents = reader.read(place.next, round);
    std::string token_bytes, end_bytes, answer_bytes;
    for (const EncodedDocument& document : encoding.encode(documents)) {
      append_tokens(token_bytes, document.ids, type);
      answer_bytes.append(document.is_answer.begin(), document.is_answer.end());
      place.tokens += document.ids.size();
      ++place.documents;
      end_bytes.append(reinterpret_cast<const char*>(&place.tokens), sizeof place.tokens);
    }
    place.replaced = replaced_before + encoding.replaced();
    tokens.append(token_bytes.data(), token_bytes.size());
    ends.append(end_bytes.data(), end_bytes.size());
    tokens.sync();
    ends.sync();
    if (answers) {
      answers->append(answer_bytes.data(), answer_bytes.size());
      answers->sync();
    }
    folder.keep(place);
    if (progress) {
      progress({.bytes = reader.bytes_before(place.next),
                .total_bytes = reader.total_bytes(),
                .tokens = place.tokens,
                .documents = place.documents,
                .bytes_before = before});
    }
  }
  return place;
}

}  // namespace

// "eos_token": "<|endoftext|>" or {"content": "<|endoftext|>", ...}
std::optional<std::string> configured_end(const std::string& tokenizer) {
  std::error_code ignored;
  const bool is_folder = fs::is_directory(tokenizer, ignored);
  const fs::path folder = is_folder ? fs::path(tokenizer) : fs::path(tokenizer).parent_path();
  const std::string path = (folder / "tokenizer_config.json").string();
  if (!fs::is_regular_file(path, ignored)) return std::nullopt;
  const auto json = nlohmann::json::parse(read_text_file(kTokenizeOp, path), nullptr, false);
  if (!json.is_object() || !json.contains("eos_token")) return std::nullopt;
  const auto& token = json["eos_token"];
  if (token.is_string()) return token.get<std::string>();
  if (token.is_object() && token.contains("content") && token["content"].is_string()) {
    return token["content"].get<std::string>();
  }
  return std::nullopt;
}

EncodedDocument encode_pieces(TokenEncoder& encoder, const std::vector<TextPiece>& pieces,
                              std::optional<uint32_t> end, const EncodeOptions& options) {
  EncodedDocument made;
  for (const TextPiece& piece : pieces) {
    encoder.encode(piece.text, made.ids, options);
    made.is_answer.resize(made.ids.size(), piece.counts ? 1 : 0);
  }
  if (end) {
    made.ids.push_back(*end);
    made.is_answer.push_back(pieces.empty() || pieces.back().counts ? 1 : 0);
  }
  return made;
}

TokenIndex tokenize_files(const TokenizeJob& job,
                          const std::function<void(const TokenizeProgress&)>& progress) {
  const Tokenizer tokenizer(job.tokenizer);
  const std::optional<std::string> end = end_of(job, tokenizer);
  DocumentReader reader(job.files, job.documents);
  const bool has_answers = job.documents.answers;
  MOE8_CHECK(!has_answers || !job.add_special_tokens, kTokenizeOp, "--special-tokens",
             "expected none beside --answers: rendered text has its special tokens in it");
  const OutFolder folder(job.out, description_of(job, reader, tokenizer, end), has_answers);
  const auto write_megatron = [&] {
    if (!job.megatron) return;
    const TokenSource written = TokenSource::open(job.out);
    write_megatron_index(folder.path(kMegatronFile), written.type(), written.document_ends());
  };
  if (const auto index = folder.finished()) {
    write_megatron();
    return *index;
  }
  constexpr uint32_t kTwoBytes = uint32_t{1} << 16U;
  const TokenType type =
      tokenizer.vocabulary_size() <= kTwoBytes ? TokenType::UINT16 : TokenType::UINT32;
  Encoding encoding(job, reader, tokenizer, end);
  const Place place =
      run_rounds(reader, encoding, folder, folder.begin(), type, has_answers, progress);
  TokenIndex index{.type = type,
                   .tokens = place.tokens,
                   .documents = place.documents,
                   .vocabulary = tokenizer.vocabulary_size(),
                   .tokenizer = tokenizer.fingerprint(),
                   .end_token = end,
                   .replaced = place.replaced,
                   .answers = has_answers,
                   .job = folder.job()};
  folder.finish(index);
  write_megatron();
  return index;
}

}  // namespace moe8
