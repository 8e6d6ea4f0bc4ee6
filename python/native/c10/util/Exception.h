// SPDX-License-Identifier: BSD-3-Clause
// Stands in for LibTorch's header where moe8 is built without LibTorch: the error that moe8 throws.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <utility>

namespace c10 {

struct SourceLocation {
  const char* function;
  const char* file;
  uint32_t line;
};

class Error : public std::exception {
 public:
  Error(std::string message, const void* /*backtrace*/) : message_(std::move(message)) {}
  Error(const SourceLocation&, std::string message) : message_(std::move(message)) {}

  const char* what() const noexcept override { return message_.c_str(); }
  const char* what_without_backtrace() const noexcept { return message_.c_str(); }

 private:
  std::string message_;
};

}  // namespace c10
