// SPDX-License-Identifier: BSD-3-Clause
// quantize_(): converts the Linears and expert weights of any model, in place, by name.
#pragma once

#include <functional>
#include <iosfwd>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moe8/config.h"

namespace torch::nn {
class Module;
}

namespace moe8 {

/// An ordered list of (key, config); a config can be a recipe's name, and one that is not set means
/// "leave alone". A key is the name of a parameter or module, "re:PATTERN" (Perl-compatible,
/// matched against the whole name) or "_default". Resolved parameter by parameter. A key counts for a parameter only if its config can
/// apply to it (grouped configs: 3-D parameters; linear configs: the weight of a Linear, or another
/// 2-D parameter that is not an Embedding's) or is not set. The first of these that exists decides:
///   1. the key equal to the parameter's name (an inapplicable config here is an error)
///   2. a key equal to the name of an enclosing module, the nearest first ("" is the root)
///   3. the first re: key that matches the parameter's name
///   4. the first re: key that matches the name of an enclosing module, the nearest first
///   5. _default: weights of Linear modules only
using FqnToConfig = std::vector<std::pair<std::string, ConfigOrNone>>;

/// Whether a module is to be converted; `fqn` is its name, "" for the root.
using FilterFn = std::function<bool(const torch::nn::Module& module, const std::string& fqn)>;

/// True for torch::nn::Linear: the default filter.
bool is_linear(const torch::nn::Module& module, const std::string& fqn);

/// What to do when a key matched nothing: a typo must not silently train in high precision.
enum class Unmatched { ERROR, WARN, IGNORE };

/// How quantize_ goes about it.
struct QuantizeOptions {
  Unmatched unmatched = Unmatched::ERROR;
  bool dry_run = false;  // only report
};

/// One parameter of a report.
struct ConversionRow {
  std::string fqn;
  std::vector<int64_t> shape;
  std::string dtype;                 // "bfloat16"
  std::optional<Config> config{};    // set: converted to this (now, or before this call)
  std::optional<Config> replaced{};  // set: this other config was replaced
  std::optional<std::string> key{};  // the key that decided; "" is the root, not set: none did
  std::string reason{};              // why it was left alone, or "converted" and what to know
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
/// Products that contract along whole rows of a weight's matrices are in low precision: by the whole
/// weight (bmm: groups of equally many rows), one expert's slice of it (one group), with the weight
/// on either side. Tensors that cat, stack, index_select and copies (clone, casts, autocast,
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

/// Takes conversion back for every parameter of the model: LibTorch's own kernels run again.
void dequantize_(torch::nn::Module& model);

}  // namespace moe8
