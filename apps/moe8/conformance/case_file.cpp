// SPDX-License-Identifier: BSD-3-Clause
#include "conformance/case_file.h"

#include "base/check.h"
#include "base/plain_text.h"
#include "io/file.h"

namespace moe8 {
namespace {

nlohmann::json parse_parameters(const SafetensorsReader& reader) {
  const auto found = reader.metadata().find("case");
  MOE8_CHECK(found != reader.metadata().end(), kCaseOp, "__metadata__",
             "expected the key 'case', got none");
  check_no_nul(kCaseOp, "__metadata__.case", found->second);
  nlohmann::json parameters = nlohmann::json::parse(found->second, nullptr, false);
  MOE8_CHECK(parameters.is_object(), kCaseOp, "__metadata__.case", "expected a JSON object, got ",
             parameters.is_discarded() ? "invalid JSON" : parameters.type_name());
  return parameters;
}

[[noreturn]] void refuse(const std::string& key, const char* expected, const nlohmann::json& got) {
  fail(kCaseOp, key, concat("expected ", expected, ", got ", got.type_name()));
}

}  // namespace

CaseFile::CaseFile(const std::string& path, const at::Device& device)
    : reader_(path), parameters_(parse_parameters(reader_)), device_(device) {}

const nlohmann::json& CaseFile::parameter(const std::string& key) const {
  const auto found = parameters_.find(key);
  MOE8_CHECK(found != parameters_.end(), kCaseOp, key, "expected this parameter, got none");
  return *found;
}

std::string CaseFile::text(const std::string& key) const {
  const nlohmann::json& value = parameter(key);
  if (!value.is_string()) refuse(key, "a string", value);
  return value.get<std::string>();
}

std::string CaseFile::text(const std::string& key, const std::string& fallback) const {
  return has(key) ? text(key) : fallback;
}

bool CaseFile::flag(const std::string& key) const {
  const nlohmann::json& value = parameter(key);
  if (!value.is_boolean()) refuse(key, "true or false", value);
  return value.get<bool>();
}

int64_t CaseFile::number(const std::string& key) const {
  const nlohmann::json& value = parameter(key);
  if (!value.is_number_integer()) refuse(key, "a whole number", value);
  return value.get<int64_t>();
}

int64_t CaseFile::number(const std::string& key, int64_t fallback) const {
  return has(key) ? number(key) : fallback;
}

at::Tensor CaseFile::tensor(const std::string& name) const {
  return reader_.tensor(name).to(device_);
}

std::optional<at::Tensor> CaseFile::tensor_if_present(const std::string& name) const {
  if (!reader_.contains(name)) return std::nullopt;
  return tensor(name);
}

}  // namespace moe8
