// SPDX-License-Identifier: BSD-3-Clause
// Token files: what `moe8 tokenize` writes, whatever the threads and stops; the formats of others;
// what is refused.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "moe8/tokenizer.h"
#include "testing/compare.h"
#include "testing/folder.h"
#include "text/token_source.h"
#include "text/tokenize_job.h"

namespace moe8 {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;
using Ids = std::vector<uint32_t>;

std::vector<uint32_t> all_of(const TokenSource& source) {
  std::vector<uint32_t> ids(source.size());
  source.read(0, ids, ~uint32_t{0});
  return ids;
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string recorded_tokenizer(const std::string& name) {
  return json::parse(
             std::ifstream(std::string(MOE8_TOKENIZER_CASES) + "/" + name + ".json"))["tokenizer"]
      .dump();
}

class TokenFilesTest : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
};

// ---- formats ------------------------------------------------------------------
TEST_F(TokenFilesTest, FlatFilesAreWhatTheyAreSaidToBe) {
  const std::string two = folder_.write("two.bin", bytes_of<uint16_t>({1, 65535, 7}));
  EXPECT_EQ(all_of(TokenSource::open(two)), (Ids{1, 65535, 7}));
  EXPECT_EQ(TokenSource::open(two).documents(), std::nullopt);
  const std::string four = folder_.write("four.bin", bytes_of<uint32_t>({1, 151000, 7}));
  EXPECT_EQ(all_of(TokenSource::open(four, TokenType::UINT32)), (Ids{1, 151000, 7}));
  EXPECT_EQ(all_of(TokenSource::open_bytes(folder_.write("text", "ab\xff"))), (Ids{97, 98, 255}));

  Ids part(2);
  TokenSource::open(two).read(1, part, 65536);
  EXPECT_EQ(part, (Ids{65535, 7}));
}

TEST_F(TokenFilesTest, FlatFilesOfAnotherTypeAreNoticed) {
  EXPECT_THAT(error_of([&] { TokenSource::open(folder_.write("a.bin", "123")); }),
              HasSubstr("expected tokens of 2 bytes, got 3 bytes: the file is cut"));
  EXPECT_THAT(
      error_of([&] { TokenSource::open(folder_.write("b.bin", bytes_of(Ids(100, 50000)))); }),
      HasSubstr("got what looks like tokens of four. Say data.tokens = \"uint32\""));
  EXPECT_THAT(error_of([&] { TokenSource::open(folder_.write("c.bin", std::string(400, 'a'))); }),
              HasSubstr("expected tokens, got text. Make tokens of it: moe8 tokenize"));
  const TokenSource large =
      TokenSource::open(folder_.write("d.bin", bytes_of<uint16_t>({1, 300, 7})));
  Ids ids(3);
  EXPECT_THAT(error_of([&] { large.read(0, ids, 256); }),
              HasSubstr("expected ids below 256, the model's vocabulary, got 300 at token 1"));
}

std::string llm_c(int32_t magic, int32_t version, int32_t count, const std::string& tokens) {
  std::vector<int32_t> header(256);
  header[0] = magic;
  header[1] = version;
  header[2] = count;
  return bytes_of(header) + tokens;
}

TEST_F(TokenFilesTest, ReadsLlmcFiles) {
  const std::string tokens = bytes_of<uint16_t>({50256, 1, 2});
  const std::string file = folder_.write("a.bin", llm_c(20240520, 1, 3, tokens));
  EXPECT_TRUE(TokenSource::says_tokens(file));
  EXPECT_EQ(all_of(TokenSource::open(file)), (Ids{50256, 1, 2}));
  EXPECT_EQ(TokenSource::open(file).format(), "llm.c uint16");
  const std::string llama = folder_.write("l.bin", llm_c(20240801, 7, 2, bytes_of(Ids{128000, 5})));
  EXPECT_EQ(all_of(TokenSource::open(llama)), (Ids{128000, 5}));
  EXPECT_THAT(
      error_of([&] { TokenSource::open(folder_.write("b.bin", llm_c(20240520, 1, 4, tokens))); }),
      HasSubstr("expected 1032 bytes for the 4 tokens of its header, got 1030"));
  EXPECT_THAT(
      error_of([&] { TokenSource::open(folder_.write("c.bin", llm_c(20240520, 2, 3, tokens))); }),
      HasSubstr("expected llm.c's version 1, got 2"));
}

// As megatron.core.datasets.indexed_dataset writes it: two sequences of the first document, one of the
// second.
TEST_F(TokenFilesTest, ReadsMegatronFiles) {
  std::string index("MMIDIDX\0\0", 9);
  index += bytes_of<uint64_t>({1}) + '\x08' + bytes_of<uint64_t>({3, 3}) +
           bytes_of<int32_t>({2, 1, 3}) + bytes_of<int64_t>({0, 4, 6}) +
           bytes_of<int64_t>({0, 2, 3});
  folder_.write("m.idx", index);
  const std::string tokens = bytes_of<uint16_t>({1, 2, 3, 4, 5, 6});
  const std::string bin = folder_.write("m.bin", tokens);
  for (const std::string& path : {bin, folder_ / "m.idx", folder_ / "m"}) {
    EXPECT_TRUE(TokenSource::says_tokens(path)) << path;
    const TokenSource source = TokenSource::open(path);
    EXPECT_EQ(all_of(source), (Ids{1, 2, 3, 4, 5, 6}));
    EXPECT_EQ(source.documents(), 2U);
    EXPECT_THAT(source.document_ends(), ElementsAre(3, 6));
  }
  folder_.write("m.bin", tokens.substr(0, 10));
  EXPECT_THAT(error_of([&] { TokenSource::open(bin); }),
              HasSubstr("expected 12 bytes, as its .idx says, got 10"));
  folder_.write("m.bin", tokens);
  folder_.write("m.idx", index.substr(0, index.size() - 1));
  EXPECT_THAT(error_of([&] { TokenSource::open(bin); }), HasSubstr("the file is cut or damaged"));
}

TEST_F(TokenFilesTest, MegatronIndexComesBack) {
  folder_.write("t.bin", bytes_of(Ids{9, 8, 7, 6}));
  write_megatron_index(folder_ / "t.idx", TokenType::UINT32, std::vector<uint64_t>{1, 1, 4});
  const TokenSource source = TokenSource::open(folder_ / "t");
  EXPECT_EQ(source.format(), "Megatron int32");
  EXPECT_EQ(all_of(source), (Ids{9, 8, 7, 6}));
  EXPECT_THAT(source.document_ends(), ElementsAre(1, 1, 4));
}

// ---- moe8 tokenize --------------------------------------------------------------
class TokenizeJobTest : public TokenFilesTest {
 protected:
  // Some hundred documents of three files, in several rounds' worth of lines.
  TokenizeJobTest() {
    std::string lines;
    for (int i = 0; i < 300; ++i) {
      lines += json({{"id", i}, {"text", concat_text(i)}}).dump() + (i % 7 == 0 ? "\n\n" : "\n");
    }
    job_ = {.files = {folder_.write("a.jsonl", lines),
                      folder_.write("b.txt", "One.<|>Two.\xff<|><|>Three."),
                      folder_.write("c.txt", "The end")},
            .tokenizer = folder_.write("tokenizer.json", recorded_tokenizer("byte_level_prefix")),
            .out = folder_ / "out",
            .documents = {.separator = "<|>"},
            .end_token = "word"};
  }
  static std::string concat_text(int i) {
    std::string text;
    for (int k = 0; k < i % 40; ++k) text += "number " + std::to_string(i * k) + " é\n";
    return text;
  }
  TokenizeJob to(const std::string& out) const {
    TokenizeJob job = job_;
    job.out = folder_ / out;
    return job;
  }
  std::string file_of(const std::string& out, const char* name) const {
    return folder_.read(out + "/" + name);
  }

  TokenizeJob job_;
};

TEST_F(TokenizeJobTest, WritesWhatTheTokenizerSays) {
  const TokenIndex index = tokenize_files(job_);
  const Tokenizer tokenizer(job_.tokenizer);
  EXPECT_EQ(index.documents, 304U)
      << "an empty text between two separators is none; an empty line's is one";
  EXPECT_EQ(index.replaced, 1U);
  EXPECT_EQ(index.tokenizer, tokenizer.fingerprint());
  const TokenSource source = TokenSource::open(job_.out);
  EXPECT_EQ(source.vocabulary(), tokenizer.vocabulary_size());
  EXPECT_EQ(source.type(), TokenType::UINT16);
  const std::vector<uint32_t> ids = all_of(source);
  std::vector<uint32_t> expected;
  const auto add = [&](std::string_view text) {
    for (const uint32_t id : tokenizer.encode(text)) expected.push_back(id);
    expected.push_back(*tokenizer.id_of("word"));
  };
  for (int i = 0; i < 300; ++i) add(concat_text(i));
  for (const char* text : {"One.", "Two.\xff", "Three.", "The end"}) add(text);
  EXPECT_EQ(ids, expected);
  const std::vector<uint64_t> ends = source.document_ends();
  ASSERT_EQ(ends.size(), 304U);
  EXPECT_EQ(ends[0], 1U) << "an empty document is its end";
  EXPECT_EQ(ends.back(), ids.size());
}

TEST_F(TokenizeJobTest, ThreadsDoNotShow) {
  tokenize_files(to("one"));
  TokenizeJob job = to("five");
  job.threads = 5;
  job.megatron = true;
  tokenize_files(job);
  for (const char* name : {kTokensFile, kDocumentsFile, kIndexFile}) {
    EXPECT_EQ(file_of("one", name), file_of("five", name)) << name;
  }
  EXPECT_EQ(TokenSource::open(folder_ / "five/tokens.idx").document_ends(),
            TokenSource::open(folder_ / "five").document_ends());
}

struct Stopped {};

// Stopped after each round, with bytes behind what counts, as a kill leaves them.
TEST_F(TokenizeJobTest, GoesOnWhereItWasStopped) {
  std::string large;
  for (int i = 0; i < 60000; ++i) {
    std::string words;
    for (int k = 0; k < i % 20; ++k) words += " words again";
    large += json({{"text", "line " + std::to_string(i) + words}}).dump() + "\n";
  }
  job_.files.push_back(folder_.write("d.jsonl", large));  // 6 MB: two rounds
  tokenize_files(to("whole"));
  int starts = 0;
  for (bool done = false; !done; ++starts) {
    try {
      tokenize_files(to("parts"), [](const TokenizeProgress& at) {
        if (at.bytes < at.total_bytes) throw Stopped();
      });
      done = true;
    } catch (const Stopped&) {
      for (const char* name : {"parts/tokens.bin.part", "parts/documents.u64.part"}) {
        std::ofstream(folder_ / name, std::ios::app) << "not whole";
      }
    }
  }
  EXPECT_GE(starts, 2);
  for (const char* name : {kTokensFile, kDocumentsFile, kIndexFile}) {
    EXPECT_EQ(file_of("whole", name), file_of("parts", name)) << name;
  }
  EXPECT_EQ(std::filesystem::exists(folder_ / "parts/progress.json"), false);
}

TEST_F(TokenizeJobTest, AFinishedOneIsDoneAndAnotherJobIsRefused) {
  const TokenIndex first = tokenize_files(job_);
  EXPECT_EQ(to_json(tokenize_files(job_)), to_json(first));
  job_.documents.key = "other";
  EXPECT_THAT(error_of([&] { tokenize_files(job_); }),
              HasSubstr("or with other options. Remove it"));
  folder_.write("file", "");
  std::filesystem::create_directory(folder_ / "full");
  folder_.write("full/file", "");
  EXPECT_THAT(error_of([&] { tokenize_files(to("full")); }),
              HasSubstr("an empty folder, got one with 'file'"));
}

TEST_F(TokenizeJobTest, ErrorsNameFileAndLine) {
  const auto refusal = [&](const std::string& line) {
    job_.files = {
        folder_.write("x.jsonl", "{\"text\": \"good\"}\n\n" + line + "\n{\"text\": 1}\n")};
    job_.threads = 3;
    std::filesystem::remove_all(job_.out);
    return error_of([&] { tokenize_files(job_); });
  };
  EXPECT_THAT(refusal("{\"text\": "),
              AllOf(HasSubstr("[tokenize] "), HasSubstr("x.jsonl:3: expected a JSON object")));
  EXPECT_THAT(refusal("[1]"),
              HasSubstr("x.jsonl:3: expected a JSON object with a text under 'text', got array"));
  EXPECT_THAT(refusal("{\"body\": \"a\"}"),
              HasSubstr("got an object without it. Name the key: --key NAME"));
  EXPECT_THAT(refusal("{\"text\": null}"), HasSubstr("got a value of type null"));
}

TEST_F(TokenizeJobTest, TheEndTokenIsAskedForOrConfigured) {
  job_.end_token = std::nullopt;
  EXPECT_THAT(error_of([&] { tokenize_files(job_); }),
              AllOf(HasSubstr("--end-token: expected the token that stands behind every document"),
                    HasSubstr("Special tokens are: <mask>")));
  job_.end_token = "nothing like it";
  EXPECT_THAT(error_of([&] { tokenize_files(job_); }),
              HasSubstr("expected a token, got 'nothing like it'"));
  folder_.write("tokenizer_config.json", "{\"eos_token\": {\"content\": \"<mask>\"}}");
  job_.end_token = std::nullopt;
  EXPECT_EQ(tokenize_files(job_).end_token, "<mask>");
  job_ = to("without");
  job_.end_token = "";
  EXPECT_EQ(tokenize_files(job_).end_token, std::nullopt);
}

// ---- answers ------------------------------------------------------------------
std::vector<TextPiece> pieces_of(const TemporaryFolder& folder, const std::string& line) {
  const DocumentReader reader({folder.write("one.jsonl", "")}, {.answers = true});
  return reader.pieces_of({.line = 1, .format = DocumentFormat::JSON_LINES, .bytes = line});
}

TEST_F(TokenizeJobTest, AnswersAreCompletionsOrSpansOfCharacters) {
  const auto pieces = [&](const std::string& line) { return pieces_of(folder_, line); };
  EXPECT_EQ(pieces(R"({"prompt": "a?", "completion": "b"})"),
            (std::vector<TextPiece>{{"a?", false}, {"b", true}}));
  // "é" is one character and two bytes.
  EXPECT_EQ(pieces(R"({"text": "é1é2é3", "spans": [[1, 2], [3, 5]]})"),
            (std::vector<TextPiece>{
                {"é", false}, {"1", true}, {"é", false}, {"2é", true}, {"3", false}}));
  EXPECT_EQ(pieces(R"({"text": "ab", "spans": []})"), (std::vector<TextPiece>{{"ab", false}}));
  EXPECT_EQ(pieces(R"({"text": "ab", "spans": [[0, 2]]})"), (std::vector<TextPiece>{{"ab", true}}));
  for (const char* spans :
       {"[[0, 3]]", "[[1, 0]]", "[[0, 2], [1, 2]]", "[[-1, 1]]", "[0, 1]", "1"}) {
    const std::string line = std::string(R"({"text": "ab", "spans": )") + spans + "}";
    EXPECT_THAT(error_of([&] { pieces(line); }),
                AllOf(HasSubstr("one.jsonl:1: expected spans [[begin, end], ...] within the text"),
                      HasSubstr("in rising order, got ")));
  }
  EXPECT_THAT(error_of([&] { pieces(R"({"prompt": "a"})"); }),
              HasSubstr("expected an object with prompt and completion, or with 'text' and spans, "
                        "got an object without 'completion'"));
  EXPECT_THAT(error_of([&] { pieces(R"({"messages": []})"); }),
              HasSubstr("got messages. Render them with the model's chat template first"));
}

TEST_F(TokenizeJobTest, AnswersLieBesideTheTokens) {
  job_.files = {folder_.write("x.jsonl", R"({"prompt": "one two", "completion": " three"}
{"text": "four five", "spans": [[0, 4]]}
)")};
  EXPECT_THAT(error_of([&] { tokenize_files(job_); }),
              HasSubstr("got one with a completion. Say --answers"));
  job_.documents.answers = true;
  const TokenIndex index = tokenize_files(to("answers"));
  EXPECT_TRUE(index.answers);
  const TokenSource source = TokenSource::open(folder_ / "answers");
  const Tokenizer tokenizer(job_.tokenizer);
  Ids expected;
  std::vector<uint8_t> counts;
  const auto add = [&](std::string_view text, bool is_answer) {
    for (const uint32_t id : tokenizer.encode(text)) expected.push_back(id);
    counts.resize(expected.size(), is_answer ? 1 : 0);
  };
  const auto end = [&](bool is_answer) {
    expected.push_back(*tokenizer.id_of("word"));
    counts.push_back(is_answer ? 1 : 0);
  };
  add("one two", false);
  add(" three", true);
  end(true);
  add("four", true);
  add(" five", false);
  end(false);
  EXPECT_EQ(all_of(source), expected);
  std::vector<uint8_t> found(source.size());
  source.read_answers(0, found);
  EXPECT_EQ(found, counts);
  job_.documents.answers = false;
  job_.files = {folder_.write("y.txt", "plain")};
  EXPECT_FALSE(tokenize_files(to("plain")).answers);
  EXPECT_FALSE(TokenSource::open(folder_ / "plain").has_answers());

  std::filesystem::resize_file(folder_ / "answers/answers.u8", 3);
  EXPECT_THAT(error_of([&] { TokenSource::open(folder_ / "answers"); }),
              HasSubstr("answers.u8: expected "));
  folder_.write("answers/answers.u8", std::string(source.size(), '\x02'));
  EXPECT_THAT(error_of([&] { TokenSource::open(folder_ / "answers").read_answers(0, found); }),
              HasSubstr("expected bytes 0 and 1, got 2: the file is damaged"));
  job_.documents.answers = true;
  job_.add_special_tokens = true;
  EXPECT_THAT(error_of([&] { tokenize_files(to("special")); }),
              HasSubstr("expected none beside --answers"));
  job_.add_special_tokens = false;
  EXPECT_THAT(error_of([&] { tokenize_files(to("text")); }),
              HasSubstr("y.txt:1: expected JSON lines beside --answers, got text"));
}

TEST_F(TokenizeJobTest, FilesThatAreNoTextAreRefused) {
  job_.files = {folder_.write("x.gz", "\x1F\x8B binary")};
  EXPECT_THAT(error_of([&] { tokenize_files(job_); }), HasSubstr("expected text, got a gzip file"));
  job_.files = {folder_.write("x.txt", std::string("\xFF\xFEh\0i\0", 6))};
  EXPECT_THAT(error_of([&] { tokenize_files(job_); }),
              HasSubstr("expected text in UTF-8, got UTF-16"));
}

// ---- damaged results --------------------------------------------------------------
TEST_F(TokenizeJobTest, DamagedFilesAreOneLine) {
  tokenize_files(job_);
  const std::string index = file_of("out", kIndexFile);
  const std::string ends = file_of("out", kDocumentsFile);
  const auto refusal = [&] {
    return error_of([&] { TokenSource::open(job_.out).document_ends(); });
  };
  std::filesystem::resize_file(folder_ / "out/documents.u64", ends.size() - 8);
  EXPECT_THAT(refusal(), HasSubstr("the file is cut or not of this index"));
  folder_.write("out/documents.u64", std::string(ends.size(), '\xff'));
  EXPECT_THAT(refusal(), HasSubstr("expected ends that rise to"));
  folder_.write("out/documents.u64", std::string(ends.size(), '\0'));
  EXPECT_THAT(refusal(), HasSubstr("expected the last document to end at"));
  folder_.write("out/index.json", "{}");
  EXPECT_THAT(refusal(), HasSubstr("expected an index of tokens"));
  std::filesystem::remove(folder_ / "out/index.json");
  EXPECT_THAT(refusal(), HasSubstr("`moe8 tokenize` writes it last: run it again to finish"));
}

}  // namespace
}  // namespace moe8
