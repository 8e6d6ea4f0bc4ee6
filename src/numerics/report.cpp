// SPDX-License-Identifier: BSD-3-Clause
// Reports of a NumericsMonitor: made from sums, as a table, as JSON and back.
#include "numerics/report.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <variant>

#include "base/overloaded.h"
#include "base/plain_text.h"
#include "base/text_table.h"
#include "numerics/bounds.h"

namespace moe8 {
namespace {

using Json = nlohmann::ordered_json;

// ---- from sums --------------------------------------------------------------
double share(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

std::optional<ElemDtype> elem_of(const OperandFormat& format) {
  using Elem = std::optional<ElemDtype>;
  return std::visit(Overloaded{[](const HighPrecision&) -> Elem { return std::nullopt; },
                               [](const MxFormat& f) -> Elem { return f.elem; },
                               [](const Float8Format& f) -> Elem { return f.elem; }},
                    format);
}

OperandNumerics operand_numerics(const char* name, const OperandFormat& format,
                                 const OperandSums& sums) {
  return {.name = name,
          .format = to_string(format),
          .elem = elem_of(format),
          .sampled = sums.error.values,
          .amax = sums.amax,
          .underflow = share(sums.underflow, sums.nonzero),
          .saturated = share(sums.saturated, sums.error.values),
          .nonfinite = share(sums.error.nonfinite, sums.error.values),
          .sqnr_db = sums.error.sqnr_db()};
}

// ---- the table --------------------------------------------------------------
using Line = std::vector<std::string>;

Line line_of(const std::string& product, std::optional<double> sqnr_db, const OperandNumerics& o) {
  return {product,
          sqnr_db ? formatted("%.1f", *sqnr_db) : "",
          o.name,
          o.format,
          formatted("%.3g", o.amax),
          formatted("%.2f%%", 100 * o.underflow),
          formatted("%.2f%%", 100 * o.saturated),
          formatted("%.1f", o.sqnr_db)};
}

// ---- JSON -------------------------------------------------------------------
// Four digits say all that a sample can. JSON has no infinity and no NaN: nlohmann writes null.
double rounded(double value) {
  if (!std::isfinite(value)) return value;
  const std::string text = general_digits(value, 4);
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

Json json_of(const OperandNumerics& o) {
  return {{"format", o.format},
          {"amax", rounded(o.amax)},
          {"underflow", rounded(o.underflow)},
          {"saturated", rounded(o.saturated)},
          {"nonfinite", rounded(o.nonfinite)},
          {"sqnr_db", rounded(o.sqnr_db)}};
}

Json json_of(const ProductNumerics& p) {
  Json json{{"sqnr_db", rounded(p.sqnr_db)}};
  json[p.left.name] = json_of(p.left);
  json[p.right.name] = json_of(p.right);
  return json;
}

Json json_of(const WeightNumerics& weight) {
  Json json{{"fqn", weight.fqn}, {"products", Json::object()}};
  for (const ProductNumerics& p : weight.products) json["products"][p.name] = json_of(p);
  return json;
}

Json json_of(const ExpertTokens& experts) {
  return {{"fqn", experts.fqn},
          {"tokens", experts.tokens},
          {"max_over_mean", rounded(experts.max_over_mean())},
          {"min_over_mean", rounded(experts.min_over_mean())},
          {"idle", rounded(experts.idle_share())},
          {"balance", rounded(experts.balance())}};
}

Json json_of(const NumericsWarning& w) {
  return {{"place", w.place},
          {"quantity", to_string(w.quantity)},
          {"value", rounded(w.value)},
          {"text", w.text()}};
}

template <typename T>
Json list_of(const std::vector<T>& items) {
  Json list = Json::array();
  for (const T& item : items) list.push_back(json_of(item));
  return list;
}

std::string table_of(const std::vector<WeightNumerics>& weights) {
  std::vector<Line> lines{
      {"product", "SQNR dB", "operand", "format", "amax", "underflow", "saturated", "SQNR dB"}};
  for (const WeightNumerics& weight : weights) {
    if (weight.products.empty()) lines.push_back({weight.fqn + ": no product seen"});
    for (const ProductNumerics& product : weight.products) {
      lines.push_back(line_of(weight.fqn + " " + product.name, product.sqnr_db, product.left));
      lines.push_back(line_of("", {}, product.right));
    }
  }
  return text_table(lines);
}

}  // namespace

ProductNumerics product_numerics(Gemm gemm, const GemmFormats& formats, const GemmSums& sums) {
  const char* left = gemm == Gemm::OUT ? "input" : "grad_output";
  const char* right = gemm == Gemm::GRAD_WEIGHT ? "input" : "weight";
  return {.name = to_string(gemm),
          .calls = sums.calls,
          .left = operand_numerics(left, formats.left, sums.left),
          .right = operand_numerics(right, formats.right, sums.right),
          .sampled = sums.result.values,
          .sqnr_db = sums.result.sqnr_db()};
}

// ---- experts ----------------------------------------------------------------
double ExpertTokens::mean() const {
  const double total =
      static_cast<double>(std::accumulate(tokens.begin(), tokens.end(), int64_t{}));
  return tokens.empty() ? 0 : total / static_cast<double>(tokens.size());
}

double ExpertTokens::max_over_mean() const {
  const double average = mean();
  return average > 0 ? static_cast<double>(*std::ranges::max_element(tokens)) / average : 0;
}

double ExpertTokens::largest() const {
  return static_cast<double>(tokens.size()) / static_cast<double>(std::max<int64_t>(1, top_k));
}

double ExpertTokens::min_over_mean() const {
  const double average = mean();
  return average > 0 ? static_cast<double>(*std::ranges::min_element(tokens)) / average : 0;
}

double ExpertTokens::idle_share() const {
  return share(std::ranges::count(tokens, 0), static_cast<int64_t>(tokens.size()));
}

double ExpertTokens::balance() const {
  if (tokens.size() < 2 || mean() == 0) return tokens.size() == 1 ? 1 : 0;
  double entropy = 0;
  for (const int64_t count : tokens) {
    const double part = static_cast<double>(count) / (mean() * static_cast<double>(tokens.size()));
    if (part > 0) entropy -= part * std::log(part);
  }
  return entropy / std::log(static_cast<double>(tokens.size()));
}

// ---- the report -------------------------------------------------------------
std::string NumericsReport::to_table() const {
  std::string out = weights.empty()
                        ? "No converted weight, and no low-precision product was seen.\n"
                        : table_of(weights);
  for (const ExpertTokens& e : experts) {
    out += place_of(e) + ": busiest expert " + formatted("%.2f", e.max_over_mean()) +
           ", least busy " + formatted("%.2f", e.min_over_mean()) + " of the mean of " +
           formatted("%.0f", e.mean()) + " rows; balance " + formatted("%.3f", e.balance()) + "\n";
  }
  for (const NumericsWarning& warning : warnings) out += "WARNING " + warning.text() + "\n";
  if (warnings.empty() && !weights.empty()) out += "All values are within their bounds.\n";
  return out;
}

std::string NumericsReport::to_json() const {
  return Json{
      {"weights", list_of(weights)}, {"experts", list_of(experts)}, {"warnings", list_of(warnings)}}
      .dump();
}

}  // namespace moe8
