// SPDX-License-Identifier: BSD-3-Clause
// Is low-precision training healthy? Watches the products of a model's converted weights for a
// while and reports, weight by weight: range, underflow, saturation and error of every operand,
// error of every product, tokens of every expert. Works with any training loop.
// What the numbers mean and what to do about them: docs/training_health.md.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moe8/formats.h"

namespace torch::nn {
class Module;
}

namespace moe8 {

/// One operand x of one product, and its low-precision values q. Shares are of the sampled values.
struct OperandNumerics {
  std::string name{};               // "input", "weight" or "grad_output"
  std::string format{};             // "mx float8_e4m3fn rceil"; "high precision": q is x
  std::optional<ElemDtype> elem{};  // of the format; not set: high precision
  int64_t sampled = 0;              // how many values the shares and sqnr_db are of
  double amax = 0;                  // largest |x| of the whole operand; NaN when it holds a NaN
  double underflow = 0;             // of the values that are not 0, the share whose q is 0
  double saturated = 0;             // share that lay beyond the format's largest value and was cut
  double nonfinite = 0;             // share whose q is NaN or Inf
  double sqnr_db = 0;               // 10 log10(sum x^2 / sum (x - q)^2); infinite when q is x
};

/// One of the three products of a linear or grouped linear layer.
struct ProductNumerics {
  std::string name{};       // "out", "grad_input" or "grad_weight"
  int64_t calls = 0;        // products that this sums up
  OperandNumerics left{};   // out: input; the others: grad_output
  OperandNumerics right{};  // out, grad_input: weight; grad_weight: input
  int64_t sampled = 0;      // how many values of the result sqnr_db is of
  double sqnr_db = 0;  // of the result against the product of the unquantized operands in float64
};

/// One weight and its products.
struct WeightNumerics {
  std::string fqn{};                        // the parameter's name in the model
  std::vector<ProductNumerics> products{};  // in the order out, grad_input, grad_weight; those seen
};

/// How many rows each expert of a module got.
struct ExpertTokens {
  std::string fqn{};  // of the module that owns the expert weights; "" is the root
  std::vector<int64_t> tokens{};
  int64_t top_k = 0;  // how many experts a token goes to; 0: not known, judged as 1

  double mean() const;
  double max_over_mean() const;  // rows of the busiest expert, relative to the mean; 0 without rows
  double largest() const;        // what max_over_mean can be at most: experts / top_k
  double min_over_mean() const;  // of the least busy one
  double idle_share() const;     // share of the experts without a row
  /// Entropy of the shares over its largest possible value: 1 when all get the same, 0 when one
  /// gets everything.
  double balance() const;
  bool operator==(const ExpertTokens&) const = default;
};

/// What a bound is about.
enum class NumericsQuantity {
  AMAX,
  UNDERFLOW_SHARE,
  SATURATED_SHARE,
  NONFINITE_SHARE,
  OPERAND_SQNR,  // dB
  PRODUCT_SQNR,  // dB; the format is that of the operand with fewer mantissa bits
  BUSIEST_EXPERT,
  IDLE_EXPERTS,
  PRODUCTS,  // in low precision, of a converted weight: 0 means that it computes in high precision
  STARVED_EXPERTS,  // how many got no row since the look before; known to moe8's trainer only
};
/// "amax", "underflow", "saturated", ...
std::string_view to_string(NumericsQuantity quantity);

/// Values outside [least, most] give a warning, and so does NaN.
struct NumericsBound {
  NumericsQuantity quantity;
  std::optional<ElemDtype> elem{};  // not set: every format, high precision too
  double least;
  double most;

  bool operator==(const NumericsBound&) const = default;
};

/// The table of bounds, the only one; docs/training_health.md prints it and says where they are
/// from. A row that names a format counts before one that names none.
const std::vector<NumericsBound>& default_numerics_bounds();

/// A value that left its bounds.
struct NumericsWarning {
  std::string place{};  // "layers.1.moe.experts.w2 grad_weight.input": does not change from report
                        // to report
  NumericsQuantity quantity;
  double value;
  NumericsBound bound;

  /// "layers.1.moe.experts.w2 grad_weight.input: underflow 0.31, expected at most 0.05"
  std::string text() const;
};

/// What a monitor saw. Deterministic: the same products and options give the same report.
struct NumericsReport {
  std::vector<WeightNumerics> weights{};    // converted ones, in the model's order, seen or not
  std::vector<ExpertTokens> experts{};      // of modules with grouped products, in the same order
  std::vector<NumericsWarning> warnings{};  // values out of their bounds, in the same order

  std::string to_table() const;  // for people
  std::string to_json() const;   // for programs: one object in one line; infinite and NaN are null
};

/// What is sampled. Samples change from monitor to monitor only if `seed` does.
struct NumericsOptions {
  uint64_t seed = 0;        // shifts what is sampled: pass the step to see all of it in time
  int64_t sampled = 16384;  // values of an operand, about; at least a few whole rows
  int64_t results = 2048;   // values of a product, about
  int64_t experts = 8;      // of weights, at most so many experts, evenly spaced
  std::vector<NumericsBound> bounds = default_numerics_bounds();
};

/// Watches, from construction to stop(), every low-precision product of the weights of `model`:
///
///   moe8::NumericsMonitor monitor(*model);
///   model->forward(x).sum().backward();
///   std::cout << monitor.report().to_table();
///
/// Sees weights converted by quantize_, their copies (autocast), and weights passed to
/// quantize_then_linear or quantize_then_scaled_grouped_mm directly; in backward those whose
/// forward it saw. Results of the model do not change by a bit, and no random numbers are drawn.
///
/// Read completely: operands for amax, offs for the tokens. Sampled: rows (or columns, for
/// products that contract rows) evenly spaced, and quantized as the product quantizes them, so each
/// value counted is one that the product used. On a CPU a product costs a few times its own time
/// while it is watched. On a GPU it costs the launch of two or three small kernels, the host waits once per set
/// of offs, and samples are measured when the report is asked for. Inputs are kept in high precision
/// until backward. So watch one step in fifty.
///
/// Safe with backward's threads; several monitors may live at a time. Deterministic for one thread.
class NumericsMonitor {
 public:
  /// Starts to watch. The parameters that `model` has now are kept alive.
  /// @throws c10::Error when options.sampled, results or experts is less than 1.
  explicit NumericsMonitor(const torch::nn::Module& model, NumericsOptions options = {});
  ~NumericsMonitor();
  NumericsMonitor(const NumericsMonitor&) = delete;
  NumericsMonitor& operator=(const NumericsMonitor&) = delete;

  /// Ends watching; report() keeps what was seen. Waits for products under way in other threads.
  void stop();

  /// What was seen so far. Products of one weight and kind are summed up (several micro-batches,
  /// a weight used twice): amax is the largest, shares and SQNRs are of all sampled values.
  NumericsReport report() const;
  /// The same on a thread of its own, for a loop that goes on: nothing waits for the device here.
  /// Destroy the monitor after the future has come true: memory that a GPU wrote goes with it.
  std::future<NumericsReport> report_later() const;

 private:
  class Watcher;
  std::shared_ptr<Watcher> watcher_;
};

/// Sifts the warnings of report after report: each counts when it comes up, and again only after a
/// report without it, so that a week of training does not repeat itself.
class NumericsAlarm {
 public:
  /// The warnings that the report before did not have.
  std::vector<NumericsWarning> fresh(const NumericsReport& report);
  /// Prints those, as warnings of the library (MOE8_LOG).
  void show(const NumericsReport& report);

 private:
  std::vector<std::string> standing_;
};

}  // namespace moe8
