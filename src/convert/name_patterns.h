// SPDX-License-Identifier: BSD-3-Clause
// A list of names and "re:" patterns of parameters, of which each has to name one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace moe8 {

class Pattern;

class NamePatterns {
 public:
  /// @param op, what  begin errors, and are literals: "lora", "targets"
  /// @throws c10::Error for a pattern that is none.
  NamePatterns(const char* op, const char* what, const std::vector<std::string>& keys);
  ~NamePatterns();
  NamePatterns(const NamePatterns&) = delete;
  NamePatterns& operator=(const NamePatterns&) = delete;

  /// The first key that names it; null: none does.
  const std::string* find(std::string_view name);
  bool matches(std::string_view name) { return find(name) != nullptr; }

  /// @throws c10::Error naming a key that has matched nothing so far, and the nearest names.
  void check_all_matched() const;

 private:
  struct Key;

  const char* op_;
  const char* what_;
  std::vector<Key> keys_;
  std::vector<std::string> seen_;  // names that were asked for
};

}  // namespace moe8
