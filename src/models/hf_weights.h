// SPDX-License-Identifier: BSD-3-Clause
// The transformer's tensors out of a published model's files, and the other way round.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "models/families.h"
#include "models/hf_files.h"

namespace moe8 {

/// What a rank holds of a tensor of the transformer: its rows, or columns, from there on.
struct HeldPart {
  std::vector<int64_t> whole;  // sizes
  int64_t first_row = 0;       // of stacked experts the first one
  int64_t first_column = 0;    // of a matrix
};

/// Tensors of the transformer, made of those of files.
class HfWeights {
 public:
  /// @param config  as the files' config.json says
  /// @throws c10::Error unless the files hold all tensors of such a model of the family, and no others.
  HfWeights(const HfFiles& files, const Family& family, const TransformerConfig& config);

  /// Copies `part` of a tensor into `out`, which has its sizes, in the dtype of `out`; codes are rounded
  /// to bf16 first. On all threads.
  /// @param out  on the CPU
  /// @throws c10::Error unless sizes and dtype fit
  void read(const std::string& ours, const HeldPart& part, const at::Tensor& out) const;

 private:
  const HfFiles& files_;
  const Family& family_;
};

/// A tensor of a file, to be made of the transformer's.
struct HfTensor {
  std::string name;
  std::vector<std::pair<std::string, TensorLayout>> parts;  // of ours, with their layouts
  int64_t expert = 0;                                       // of TensorLayout::EXPERTS
  int64_t elements = 0;
  int64_t in = 1;  // the last size of ours
};

/// Those of a model, in its order.
std::vector<HfTensor> hf_tensors(const Family& family, const std::vector<ParameterShape>& ours);

/// @param read  gives the transformer's tensors by name
at::Tensor made_of(const HfTensor& tensor,
                   const std::function<at::Tensor(const std::string& name)>& read);

}  // namespace moe8
