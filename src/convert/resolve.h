// SPDX-License-Identifier: BSD-3-Clause
// Which config every parameter gets, from names and shapes alone: quantize_ on a live model and
// `moe8 plan` on a checkpoint ask the same function. Nothing here knows tensors or modules.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moe8/quantize_model.h"

namespace moe8 {

/// The class of the module that owns a parameter, as far as conversion cares. WITHOUT_PRODUCTS: its
/// parameters are no weights of products that a conversion changes (convolutions, recurrent layers,
/// norms); OTHER: nothing is known, a model's own modules are of this kind.
enum class OwnerKind { LINEAR, EMBEDDING, WITHOUT_PRODUCTS, OTHER };

/// What resolution needs to know about one parameter.
struct ParameterInfo {
  std::string fqn;             // "layers.0.moe.experts.w1"
  std::vector<int64_t> shape;  // (E, N, K)
  OwnerKind owner = OwnerKind::OTHER;
  std::string dtype = "bfloat16";  // torch's name
  std::string owner_type{};        // "Conv1d", for messages: of WITHOUT_PRODUCTS only
  bool has_known_use = false;      // it is certain that products read it, as its owner's class says
  bool is_replaced = false;        // the owner computes with another tensor
};

/// Why `config` cannot apply to a parameter, as "expected ..., got ..."; nothing when it can.
std::optional<std::string> why_inapplicable(const Config& config, const ParameterInfo& parameter);

/// Why a parameter to which `config` can apply is left alone all the same, unless a key names it
/// exactly: by name or shape it is a bias, a table of positions, a convolution's or the like.
/// Nothing when it may well be a weight, or `owner` says that it is.
std::optional<std::string> why_unlikely(const Config& config, const ParameterInfo& parameter);

/// "converted", or what a conversion depends on where it is not known what a parameter is used for.
std::string converted_reason(const Config& config, const ParameterInfo& parameter);

/// The modules that enclose a parameter, the nearest first, the root ("") last.
std::vector<std::string> enclosing_modules(std::string_view fqn);

/// True for the parameter "weight" of a Linear.
bool is_linear_weight(const ParameterInfo& parameter);

/// The owner's kind where only names and shapes are known, as in a checkpoint: the 2-D "weight" of
/// a module whose name speaks of embeddings (embed, emb, wte, wpe) is an Embedding's, of any other
/// a Linear's.
OwnerKind guess_owner(const std::string& fqn, const std::vector<int64_t>& shape);

/// Resolves `config` by the precedence of FqnToConfig (moe8/quantize_model.h).
/// @param modules  names of all modules; may be empty: the enclosing modules of parameters follow
///                 from the parameters' names, the others matter to keys without a config only.
/// @param buffers  names of all buffers, for messages: no key can mean one.
/// @return one row per parameter, in order: config set: convert to it; not set with a key: that key
///         leaves it alone; neither: nothing decided, and `reason` says what came closest.
/// @throws c10::Error as quantize_ does, a key that matched nothing included (Unmatched::ERROR). A
///         key also matched nothing when its config can apply to none of the parameters it names.
ConversionReport resolve(const std::vector<ParameterInfo>& parameters,
                         const std::vector<std::string>& modules, const FqnToConfig& config,
                         Unmatched unmatched = Unmatched::ERROR,
                         const std::vector<std::string>& buffers = {});

}  // namespace moe8
