// SPDX-License-Identifier: BSD-3-Clause
// The two directions of a config.json: what a family says of its keys, as ConfigReader and ConfigWriter
// carry it out. A key that nobody asked for is an error, so that no option is passed over in silence.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "base/check.h"
#include "base/plain_text.h"
#include "base/shown_json.h"

namespace moe8 {

inline constexpr const char* kPretrained = "pretrained";  // begins errors

using OrderedJson = nlohmann::ordered_json;

/// For messages.
inline std::string dumped(const OrderedJson& json) {
  return shown_json(json);
}

/// The text under a key, or none.
inline std::string text_at(const OrderedJson& json, const char* key) {
  const auto found = json.is_object() ? json.find(key) : json.end();
  return found != json.end() && found->is_string() ? found->get<std::string>() : std::string();
}

/// From config.json to a TransformerConfig.
class ConfigReader {
 public:
  static constexpr bool kReads = true;

  /// @param json  an object; must live as long
  /// @param where  its file, for messages
  ConfigReader(const OrderedJson& json, std::string where)
      : json_(json), where_(std::move(where)) {}

  /// Must be there.
  template <typename T>
  void value(const char* key, T& member) {
    const OrderedJson* const found = find(key);
    if (!found) refuse(key, "a value", "none");
    take(key, *found, member);
  }
  /// Or else `fallback`, what transformers takes for a key that is not there.
  template <typename T>
  void value(const char* key, T& member, const T& fallback) {
    member = fallback;
    if (const OrderedJson* const found = find(key)) take(key, *found, member);
  }
  /// Nothing else is computed here.
  void only(const char* key, const OrderedJson& expected) {
    const OrderedJson* const found = find(key);
    if (found && *found != expected) {
      refuse(key, dumped(expected), dumped(*found), ". moe8 does not compute this option.");
    }
  }
  /// Read, but never written.
  template <typename T>
  void read_only(const char* key, T& member, const T& fallback) {
    value(key, member, fallback);
  }
  /// Null or none.
  void nothing(const char* key) {
    if (const OrderedJson* const found = find(key)) {
      refuse(key, "null or none", dumped(*found), ". moe8 does not compute this option.");
    }
  }
  /// Without effect on what a model computes.
  void ignore(std::initializer_list<const char*> keys) { known_.insert(keys.begin(), keys.end()); }

  /// The value, unless it is null or not there.
  const OrderedJson* find(const char* key) {
    known_.insert(key);
    const auto found = json_.find(key);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }
  /// @throws c10::Error that names a key nobody has asked for.
  void check_all_known() const {
    for (const auto& [key, value] : json_.items()) {
      if (known_.contains(key) || value.is_null()) continue;
      refuse(key, "no key of this name", dumped(value),
             ". moe8 does not know this option: remove it from the file if it changes nothing.");
    }
  }
  [[noreturn]] void refuse(const std::string& key, const std::string& expected,
                           const std::string& got, const std::string& hint = "") const {
    constexpr size_t kMost = 80;
    const std::string shown = got.size() > kMost ? got.substr(0, kMost) + "..." : got;
    fail(kPretrained, where_, concat("\"", key, "\": expected ", expected, ", got ", shown, hint));
  }
  const std::string& where() const { return where_; }

 private:
  // Far above any size, low enough that products of two stay in 64 bits.
  void take(const char* key, const OrderedJson& value, int64_t& member) const {
    constexpr int64_t kMost = int64_t{1} << 30;
    if (!value.is_number_integer()) refuse(key, "a whole number", dumped(value));
    const bool is_large = value.is_number_unsigned() ? value.get<uint64_t>() > uint64_t{kMost}
                                                     : value.get<int64_t>() < -kMost;
    if (is_large) refuse(key, concat("at most ", kMost), dumped(value));
    member = value.get<int64_t>();
  }
  void take(const char* key, const OrderedJson& value, double& member) const {
    if (!value.is_number()) refuse(key, "a number", dumped(value));
    member = value.get<double>();
  }
  void take(const char* key, const OrderedJson& value, bool& member) const {
    if (!value.is_boolean()) refuse(key, "true or false", dumped(value));
    member = value.get<bool>();
  }

  const OrderedJson& json_;
  std::string where_;
  std::set<std::string, std::less<>> known_;
};

/// From a TransformerConfig to config.json. What a family cannot say is found by reading it back.
class ConfigWriter {
 public:
  static constexpr bool kReads = false;

  template <typename T>
  void value(const char* key, const T& member) {
    json_[key] = member;
  }
  template <typename T>
  void value(const char* key, const T& member, const T&) {
    json_[key] = member;
  }
  void only(const char* key, const OrderedJson& expected) { json_[key] = expected; }
  template <typename T>
  void read_only(const char*, const T&, const T&) {}
  void nothing(const char*) {}
  void ignore(std::initializer_list<const char*>) {}

  OrderedJson& json() { return json_; }

 private:
  OrderedJson json_ = OrderedJson::object();
};

}  // namespace moe8
