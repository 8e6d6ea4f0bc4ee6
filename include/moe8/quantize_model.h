// SPDX-License-Identifier: BSD-3-Clause
// quantize_(): converts the Linears and expert weights of any model, in place, by name.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe8/config.h"

namespace torch::nn {
class Module;
}

namespace moe8 {

/// An ordered list of (key, config); a config can be a recipe's name, and one that is not set means
/// "leave alone". A key is the name of a parameter or module, "re:PATTERN" (Perl-compatible,
/// matched against the whole name) or "_default". Resolved parameter by parameter.
///
/// A key counts for a parameter only if its config is not set or can apply to it: grouped configs
/// to 3-D parameters, linear configs to 2-D ones. Unless the key is exactly the parameter's name,
/// the parameter must also be one that may be a weight of a product. It may not where the class of
/// its owner (Conv1d, LSTM, Embedding, a norm), its name (a bias, a table of positions, A_log) or
/// its shape (1, S, D) speaks against it. The first of these that exists decides:
///   1. the key equal to the parameter's name (an inapplicable config here is an error)
///   2. a key equal to the name of an enclosing module, the nearest first ("" is the root)
///   3. the first re: key that matches the parameter's name
///   4. the first re: key that matches the name of an enclosing module, the nearest first; not one
///      that matches parameters inside that module, as it means those alone
///   5. _default: weights of Linear modules only
using FqnToConfig = std::vector<std::pair<std::string, ConfigOrNone>>;

/// Equal configs, or none on both sides: so that lists can be compared.
inline bool operator==(const ConfigOrNone& a, const ConfigOrNone& b) {
  return static_cast<const std::optional<Config>&>(a) ==
         static_cast<const std::optional<Config>&>(b);
}

/// Whether a module is to be converted; `fqn` is its name, "" for the root.
using FilterFn = std::function<bool(const torch::nn::Module& module, const std::string& fqn)>;

/// True for torch::nn::Linear: the default filter.
bool is_linear(const torch::nn::Module& module, const std::string& fqn);

/// What to do when a key matched nothing: a typo must not silently train in high precision.
enum class Unmatched { ERROR, WARN, IGNORE };

/// What to do when a converted weight trains in high precision after all, since the model uses it
/// in a way that has no low precision (see quantize_). Judged when a backward has ended, for the
/// weights that a gradient reached; weights that a step did not need (an expert without tokens, a
/// branch not taken) are judged when they are first needed. Frozen weights are judged by forward
/// use alone, and for them nothing is an error.
///   ERROR   that backward throws, after it has accumulated its gradients, and so does every later
///           one that reaches such a weight
///   WARN    one warning names all such weights, their shapes, operations and remedies; each once
///   IGNORE  nothing is said; check_conversion() still knows
enum class Unused { ERROR, WARN, IGNORE };

/// How quantize_ goes about it.
struct QuantizeOptions {
  Unmatched unmatched = Unmatched::ERROR;
  bool dry_run = false;  // only report
  Unused unused = Unused::WARN;
};

/// One parameter of a report.
struct ConversionRow {
  std::string fqn;
  std::vector<int64_t> shape;
  std::string dtype;                 // "bfloat16"
  std::optional<Config> config{};    // set: converted to this (now, or before this call)
  std::optional<Config> replaced{};  // set: this other config was replaced
  std::optional<std::string> key{};  // the key that decided; "" is the root, not set: none did
  /// Why it was left alone; or "converted" (the weight of a Linear), or "converted if used through
  /// ...", where names and shapes alone do not tell what a parameter is used for; and what to know.
  std::string reason{};
};

/// What became of every parameter.
struct ConversionReport {
  std::vector<ConversionRow> rows;  // every parameter of the model, in its order; tied ones once
  std::vector<std::string> unmatched_keys;

  std::vector<ConversionRow> converted() const;
  std::string to_table() const;  // for people
  std::string to_json() const;   // for programs
};

/// Writes report.to_table().
std::ostream& operator<<(std::ostream& out, const ConversionReport& report);

/// Converts the parameters that `config` names. They keep their identity: optimizers,
/// requires_grad, .grad, hooks, names and shapes are untouched; saving writes the plain
/// high-precision tensors; loading, Module::to and clone after conversion keep it. The model must
/// multiply by its weights with LibTorch's matrix products: torch::nn::Linear, linear, mm, addmm,
/// bmm, baddbmm, mv, addmv, matmul, einsum, _grouped_mm, their out=, in-place and dtype forms.
/// @throws c10::Error on an invalid key or pattern, a duplicate key, a config that cannot apply to
///         the parameter named exactly, a parameter under two names with two configs, or a key that
///         matched nothing (the nearest names are listed) or only parameters to which its config
///         cannot apply. Nothing is converted then.
/// Converting again with the same config changes nothing; with another config replaces the old one.
/// Not to be called while another thread runs the model.
///
/// Products that contract along whole rows of a weight's matrices are in low precision: by the
/// whole weight (bmm: groups of equally many rows), one expert's slice of it (one group), with the
/// weight on either side. Tensors that cat, stack, index_select and copies (clone, casts, autocast,
/// contiguous) make of weights of one config are converted weights, unless joined along the
/// contracted axis. docs/decisions/021-which-uses-are-converted.md has the list. Gradients are in
/// the precision of the forward.
///
/// What stays in high precision: contractions over experts, or over several axes at once;
/// convolutions, bilinear, addbmm; weights computed from others (W + delta, W * scale), or joined
/// with tensors that are not converted. Such products are noted by the weight's name. A weight
/// reassigned (linear->weight = other) is not converted. A tensor put into a converted weight, or
/// into a copy of one, by set_data computes as the weight does; detach() of it then is plain until
/// quantize_ is called again. The out_dtype of an at::_grouped_mm call, when given, replaces the
/// config's; other products have the dtype that they have without conversion.
ConversionReport quantize_(torch::nn::Module& model, const FqnToConfig& config,
                           const QuantizeOptions& options = {});

/// Asks filter(module, fqn) in pre-order; a module that passes converts the parameters of its
/// subtree to which the config can apply and is not descended into. A row's key is that module's
/// name.
/// @throws c10::Error when nothing is converted (see QuantizeOptions::unmatched).
ConversionReport quantize_(torch::nn::Module& model, const Config& config,
                           const FilterFn& filter = is_linear, const QuantizeOptions& options = {});

/// How the products of a converted weight ran since its conversion. Copies (a model's clone) count
/// with the weight that they are copies of.
enum class Use { NONE, LOW_PRECISION, HIGH_PRECISION, BOTH };
/// "none", "low precision", "high precision", "both"
std::string_view to_string(Use use);

/// One converted weight of a ConversionCheck.
struct WeightUse {
  std::string fqn{};
  std::vector<int64_t> shape{};
  Use use = Use::NONE;
  std::vector<std::string> ops{};  // that ran in high precision: "bmm"
  std::string remedy{};            // what is wrong and what to do; empty for LOW_PRECISION
};

/// What check_conversion found.
struct ConversionCheck {
  std::vector<WeightUse> weights;  // every converted one, in the model's order; tied ones once

  /// Those of whose products not all ran in low precision, or that had none.
  std::vector<WeightUse> complaints() const;
  std::string to_table() const;  // for people
  std::string to_json() const;   // for programs
  std::string to_line() const;   // the complaints alone, for errors and logs; "" without any
};

/// Writes check.to_table().
std::ostream& operator<<(std::ostream& out, const ConversionCheck& check);

/// Did every converted weight of the model compute in low precision so far? To be asked at any
/// time, best after a first step: before it, no weight had a product.
ConversionCheck check_conversion(const torch::nn::Module& model);

/// Takes conversion back for every parameter of the model: LibTorch's own kernels run again.
void dequantize_(torch::nn::Module& model);

}  // namespace moe8
