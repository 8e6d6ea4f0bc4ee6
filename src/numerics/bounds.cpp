// SPDX-License-Identifier: BSD-3-Clause
// The table of bounds, and the search for values that leave theirs.
#include "numerics/bounds.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/log.h"
#include "base/plain_text.h"
#include "formats/elem.h"
#include "moe8/config.h"

namespace moe8 {
namespace {

using Q = NumericsQuantity;

constexpr double kNoLimit = std::numeric_limits<double>::infinity();
constexpr double kMinMeanRows = 16;  // per expert: with fewer, an idle one is no sign of anything
constexpr double kMostOfTheWay = 2.0 / 3;  // of the busiest expert, from balance to all tokens

const NumericsBound* find_bound(const std::vector<NumericsBound>& bounds, Q quantity,
                                std::optional<ElemDtype> elem) {
  const NumericsBound* general = nullptr;
  for (const NumericsBound& bound : bounds) {
    if (bound.quantity != quantity) continue;
    if (!bound.elem) general = &bound;
    if (bound.elem && bound.elem == elem) return &bound;
  }
  return general;
}

struct Search {
  const std::vector<NumericsBound>& bounds;
  std::vector<NumericsWarning> found{};

  void check(const std::string& place, Q quantity, std::optional<ElemDtype> elem, double value) {
    const NumericsBound* bound = find_bound(bounds, quantity, elem);
    const bool within = !bound || (value >= bound->least && value <= bound->most);  // not for NaN
    if (!within) found.push_back({place, quantity, value, *bound});
  }

  void check(const ExpertTokens& experts) {
    if (experts.mean() < kMinMeanRows) return;
    if (const NumericsBound* bound = find_bound(bounds, Q::BUSIEST_EXPERT, {})) {
      NumericsBound reachable = *bound;
      reachable.most = most_for_busiest(bound->most, experts.largest());
      const double value = experts.max_over_mean();
      const bool within = value >= reachable.least && value <= reachable.most;
      if (!within) found.push_back({place_of(experts), Q::BUSIEST_EXPERT, value, reachable});
    }
    check(place_of(experts), Q::IDLE_EXPERTS, {}, experts.idle_share());
  }

  void check(const std::string& place, const OperandNumerics& o) {
    if (o.sampled == 0) return;
    check(place, Q::AMAX, o.elem, o.amax);
    check(place, Q::UNDERFLOW_SHARE, o.elem, o.underflow);
    check(place, Q::SATURATED_SHARE, o.elem, o.saturated);
    check(place, Q::NONFINITE_SHARE, o.elem, o.nonfinite);
    check(place, Q::OPERAND_SQNR, o.elem, o.sqnr_db);
  }
};

std::string number(double value) {
  return general_digits(value, 3);  // programs read these texts in metrics.jsonl and reports
}

}  // namespace

const std::vector<NumericsBound>& default_numerics_bounds() {
  static const std::vector<NumericsBound> table = {
      {Q::AMAX, {}, 1e-12, 1e5},  // below, FP8 scales stop growing (formats/float8_scale.h)
      {Q::NONFINITE_SHARE, {}, 0, 0},
      {Q::UNDERFLOW_SHARE, ElemDtype::E4M3, 0, 0.05},
      {Q::UNDERFLOW_SHARE, ElemDtype::E5M2, 0, 0.02},
      {Q::UNDERFLOW_SHARE, ElemDtype::E2M3, 0, 0.20},
      {Q::UNDERFLOW_SHARE, ElemDtype::E3M2, 0, 0.10},
      {Q::UNDERFLOW_SHARE, ElemDtype::E2M1, 0, 0.65},
      {Q::SATURATED_SHARE, {}, 0, 0.30},
      {Q::OPERAND_SQNR, ElemDtype::E4M3, 24, kNoLimit},
      {Q::OPERAND_SQNR, ElemDtype::E5M2, 19, kNoLimit},
      {Q::OPERAND_SQNR, ElemDtype::E2M3, 22, kNoLimit},
      {Q::OPERAND_SQNR, ElemDtype::E3M2, 19, kNoLimit},
      {Q::OPERAND_SQNR, ElemDtype::E2M1, 11, kNoLimit},
      {Q::PRODUCT_SQNR, ElemDtype::E4M3, 19, kNoLimit},
      {Q::PRODUCT_SQNR, ElemDtype::E5M2, 14, kNoLimit},
      {Q::PRODUCT_SQNR, ElemDtype::E2M3, 17, kNoLimit},
      {Q::PRODUCT_SQNR, ElemDtype::E3M2, 14, kNoLimit},
      {Q::PRODUCT_SQNR, ElemDtype::E2M1, 7, kNoLimit},
      {Q::BUSIEST_EXPERT, {}, 0, 4},  // less where 4 is out of reach: most_for_busiest
      {Q::IDLE_EXPERTS, {}, 0, 0.25},
      {Q::PRODUCTS, {}, 1, kNoLimit},
      {Q::STARVED_EXPERTS, {}, 0, 0},
  };
  return table;
}

std::optional<ElemDtype> coarser(const std::optional<ElemDtype>& a,
                                 const std::optional<ElemDtype>& b) {
  if (!a || !b) return a ? a : b;
  return layout_of(*a).mantissa_bits <= layout_of(*b).mantissa_bits ? a : b;
}

std::optional<NumericsBound> default_bound(NumericsQuantity quantity,
                                           const std::optional<ElemDtype>& elem) {
  const NumericsBound* bound = find_bound(default_numerics_bounds(), quantity, elem);
  return bound ? std::optional(*bound) : std::nullopt;
}

double most_for_busiest(double of_the_table, double largest) {
  return std::min(of_the_table, 1 + kMostOfTheWay * (largest - 1));
}

std::vector<NumericsWarning> warnings_of(const NumericsReport& report,
                                         const std::vector<NumericsBound>& bounds) {
  Search search{bounds};
  for (const WeightNumerics& weight : report.weights) {
    if (weight.products.empty()) search.check(weight.fqn, Q::PRODUCTS, {}, 0);
    for (const ProductNumerics& product : weight.products) {
      const std::string place = weight.fqn + " " + product.name;
      search.check(place + "." + product.left.name, product.left);
      search.check(place + "." + product.right.name, product.right);
      if (product.sampled == 0) continue;
      search.check(place, Q::PRODUCT_SQNR, coarser(product.left.elem, product.right.elem),
                   product.sqnr_db);
    }
  }
  for (const ExpertTokens& experts : report.experts) search.check(experts);
  return std::move(search.found);
}

std::string_view to_string(NumericsQuantity quantity) {
  switch (quantity) {
    case Q::AMAX:
      return "amax";
    case Q::UNDERFLOW_SHARE:
      return "underflow";
    case Q::SATURATED_SHARE:
      return "saturated";
    case Q::NONFINITE_SHARE:
      return "nonfinite";
    case Q::OPERAND_SQNR:
      return "operand SQNR";
    case Q::PRODUCT_SQNR:
      return "product SQNR";
    case Q::BUSIEST_EXPERT:
      return "busiest expert";
    case Q::IDLE_EXPERTS:
      return "idle experts";
    case Q::PRODUCTS:
      return "low-precision products";
    case Q::STARVED_EXPERTS:
      return "starved experts";
  }
  return "invalid";
}

std::string place_of(const ExpertTokens& experts) {
  return experts.fqn.empty() ? "(root)" : experts.fqn;
}

std::string NumericsWarning::text() const {
  std::string allowed = "at least " + number(bound.least);
  if (std::isfinite(bound.most)) {
    allowed = bound.least > 0  ? number(bound.least) + " to " + number(bound.most)
              : bound.most > 0 ? "at most " + number(bound.most)
                               : "none";
  }
  return place + ": " + std::string(to_string(quantity)) + " " + number(value) + ", expected " +
         allowed;
}

std::vector<NumericsWarning> NumericsAlarm::fresh(const NumericsReport& report) {
  std::vector<NumericsWarning> list;
  std::vector<std::string> standing;
  for (const NumericsWarning& warning : report.warnings) {
    std::string key = warning.place + '\n' + std::string(to_string(warning.quantity));
    if (std::find(standing_.begin(), standing_.end(), key) == standing_.end()) {
      list.push_back(warning);
    }
    standing.push_back(std::move(key));
  }
  standing_ = std::move(standing);
  return list;
}

void NumericsAlarm::show(const NumericsReport& report) {
  for (const NumericsWarning& warning : fresh(report)) log_warning("[numerics] " + warning.text());
}

}  // namespace moe8
