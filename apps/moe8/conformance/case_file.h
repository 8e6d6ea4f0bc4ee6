// SPDX-License-Identifier: BSD-3-Clause
// A conformance case on disk: parameters (JSON in the metadata) and tensors of a safetensors file.
#pragma once

#include <ATen/core/Tensor.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "moe8/safetensors.h"

namespace moe8 {

/// What errors about a case begin with.
inline constexpr const char* kCaseOp = "case";

class CaseFile {
 public:
  /// Tensors are given on `device`.
  /// @throws c10::Error when the file cannot be read or describes no case.
  explicit CaseFile(const std::string& path, const at::Device& device = at::kCPU);

  /// Parameters. Without a fallback a missing one is an error, as is one of another type.
  std::string text(const std::string& key) const;
  std::string text(const std::string& key, const std::string& fallback) const;
  bool flag(const std::string& key) const;
  int64_t number(const std::string& key) const;
  int64_t number(const std::string& key, int64_t fallback) const;
  bool has(const std::string& key) const { return parameters_.contains(key); }
  const nlohmann::json& parameters() const { return parameters_; }

  at::Tensor tensor(const std::string& name) const;
  std::optional<at::Tensor> tensor_if_present(const std::string& name) const;

 private:
  const nlohmann::json& parameter(const std::string& key) const;

  SafetensorsReader reader_;
  nlohmann::json parameters_;
  at::Device device_;
};

}  // namespace moe8
