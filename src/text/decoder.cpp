// SPDX-License-Identifier: BSD-3-Clause
#include "text/decoder.h"

#include <charconv>
#include <cstdint>
#include <optional>

#include "text/byte_letters.h"
#include "text/utf8.h"

namespace moe8 {
namespace {

// A decoder from a function with the signature of apply().
template <typename Apply>
class DecoderOf : public Decoder {
 public:
  explicit DecoderOf(Apply apply) : apply_(std::move(apply)) {}
  void apply(std::vector<std::string>& tokens) const override { apply_(tokens); }

 private:
  Apply apply_;
};

template <typename Apply>
std::unique_ptr<Decoder> decoder(Apply apply) {
  return std::make_unique<DecoderOf<Apply>>(std::move(apply));
}

std::string replaced(const Finder& finder, std::string_view text, std::string_view content) {
  std::string out;
  for_each_part(finder, text, [&](size_t begin, size_t end, bool matched) {
    out += matched ? content : text.substr(begin, end - begin);
  });
  return out;
}

// The NN of <0xNN>.
std::optional<char> spelled_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  uint8_t byte = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, byte, 16);
  if (error != std::errc() || end != token.data() + 5) return std::nullopt;
  return static_cast<char>(byte);
}

void append_spelled(std::vector<std::string>& tokens, std::string& bytes) {
  if (bytes.empty()) return;
  if (valid_utf8_prefix(bytes) == bytes.size()) {
    tokens.push_back(bytes);
  } else {
    tokens.insert(tokens.end(), bytes.size(), "\xEF\xBF\xBD");
  }
  bytes.clear();
}

}  // namespace

std::unique_ptr<Decoder> letters_to_bytes() {
  return decoder([](std::vector<std::string>& tokens) {
    std::string bytes;
    for (const std::string& token : tokens) {
      const std::optional<std::string> own = bytes_of_letters(token);
      bytes += own ? *own : token;
    }
    size_t replaced_bytes = 0;
    tokens = {to_valid_utf8(bytes, replaced_bytes)};
  });
}

std::unique_ptr<Decoder> spelled_bytes() {
  return decoder([](std::vector<std::string>& tokens) {
    std::vector<std::string> out;
    std::string bytes;
    for (std::string& token : tokens) {
      if (const std::optional<char> byte = spelled_byte(token)) {
        bytes += *byte;
        continue;
      }
      append_spelled(out, bytes);
      out.push_back(std::move(token));
    }
    append_spelled(out, bytes);
    tokens = std::move(out);
  });
}

std::unique_ptr<Decoder> fuse() {
  return decoder([](std::vector<std::string>& tokens) {
    std::string all;
    for (const std::string& token : tokens) all += token;
    tokens = {std::move(all)};
  });
}

std::unique_ptr<Decoder> replace_in_tokens(std::unique_ptr<Finder> finder, std::string content) {
  return decoder([finder = std::shared_ptr<Finder>(std::move(finder)),
                  content = std::move(content)](std::vector<std::string>& tokens) {
    for (std::string& token : tokens) token = replaced(*finder, token, content);
  });
}

std::unique_ptr<Decoder> strip_character(std::string character, size_t start, size_t stop) {
  return decoder([character = std::move(character), start, stop](std::vector<std::string>& tokens) {
    for (std::string& token : tokens) {
      std::string_view rest = token;
      for (size_t i = 0; i < start && rest.starts_with(character); ++i) {
        rest.remove_prefix(character.size());
      }
      for (size_t i = 0; i < stop && rest.ends_with(character); ++i) {
        rest.remove_suffix(character.size());
      }
      token = std::string(rest);
    }
  });
}

std::unique_ptr<Decoder> spaces_of(std::string replacement, PrependScheme scheme) {
  return decoder([finder = std::shared_ptr<Finder>(find_text(std::move(replacement))),
                  scheme](std::vector<std::string>& tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      const bool drops = i == 0 && scheme != PrependScheme::NEVER;
      tokens[i] = replaced(*finder, tokens[i], drops ? "" : " ");
    }
  });
}

std::unique_ptr<Decoder> word_ends(std::string suffix) {
  return decoder([finder = std::shared_ptr<Finder>(find_text(std::move(suffix)))](
                     std::vector<std::string>& tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = replaced(*finder, tokens[i], i + 1 == tokens.size() ? "" : " ");
    }
  });
}

}  // namespace moe8
