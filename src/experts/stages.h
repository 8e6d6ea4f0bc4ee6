// SPDX-License-Identifier: BSD-3-Clause
// The stages of a fused layer of experts: what lies between its products. They pass operands on in
// the forms that the products read, so that a stage may write those forms itself. The list from which
// the stages of a call are chosen; MOE8_LOG=dispatch prints the winner and why the others refused.
//
// Letters as in include/moe8/routing.h: T tokens, k experts each, R = T * k rows, E experts; d the
// width of the model, h of an expert. The function that calls them: fused.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "autograd/training_formats.h"
#include "experts/token_wire.h"
#include "moe8/experts.h"
#include "operand/operand.h"

namespace moe8 {

/// What is known of a call beside its tensors, in forward and backward.
struct ExpertsCall {
  ExpertOrder order;
  TokenGroups
      groups;  // of order.offs; shared with the products, as is what is derived for a device
  at::Device device;
  int64_t dim = 0;     // d
  int64_t hidden = 0;  // h

  GateUpLayout layout = GateUpLayout::HALVES;  // of W13, b13, H and dH; separate weights: HALVES
  Activation activation = Activation::SWIGLU;
  double alpha = 0, limit = 0;
  ScorePlacement placement = ScorePlacement::OUTPUT;
  ColumnCodes column_codes = ColumnCodes::FROM_VALUES;
  SavedHidden saved_hidden = SavedHidden::SOURCE;

  TrainingFormats gate_up;        // of the products of W13
  TrainingFormats down;           // of the products of W2
  at::ScalarType x_dtype{};       // of x, out, dO, dX
  at::ScalarType hidden_dtype{};  // of H, A, dA, dH
  at::ScalarType row_dtype{};     // of Y

  /// numerics_observed() when the forward began: operands then must have their sources.
  bool is_observed = false;

  int64_t rows() const { return order.rows(); }
  std::string describe() const;
};

/// What stands beside H in the activation. Undefined tensors: there is none.
struct ActivationInputs {
  at::Tensor H;       // [R, 2h] hidden_dtype
  at::Tensor bias;    // b13 [E, 2h] float32
  at::Tensor scores;  // [T, k] float32
};

/// Which results of the activation's backward are asked for.
struct ActivationWants {
  std::vector<FormKey> dH{};  // forms that products will read; empty: dH is not wanted
  std::vector<FormKey> A{};   // the same of A'
  bool scores = false;
  bool bias = false;
};

struct ActivationGrads {
  std::optional<Operand> dH{};  // [R, 2h]
  std::optional<Operand> A{};   // A' [R, h]: A, times the scores where they are on the output
  at::Tensor scores;            // ds float32 [T, k], 0 for slots in no group. Without <dO, b2>
  at::Tensor bias;              // db13 float32 [E, 2h]
};

/// x: a tensor, or codes that came from other ranks.
struct Tokens {
  at::Tensor x;  // [T, d]; undefined where something stands for it
  std::optional<TokenCodes> codes{};

  at::Tensor values() const { return codes ? codes->values() : x; }
};

/// From what backward makes X again.
struct SavedTokens {
  Tokens tokens;                    // nothing where something stands for it, but for observers
  std::vector<at::Tensor> instead;  // what a stage made of x to be kept for backward
};

/// X, and what forward keeps of x instead of x itself; nothing: x itself.
struct GatheredTokens {
  Operand X;
  std::vector<at::Tensor> instead;
};

/// One way to compute the stages. The arithmetic is that of docs/numerics.md, section 6, whoever
/// computes. `keys` are the forms that the products will ask an operand for: the stage either makes
/// them, or gives the operand a source from which they can be made. Rows in no group hold 0 in every
/// matrix that a stage makes or is given; results for them are 0. Below autograd; deterministic; no
/// host synchronisation on a GPU with kernels of moe8.
class ExpertStages {
 public:
  ExpertStages() = default;
  ExpertStages(const ExpertStages&) = delete;
  ExpertStages& operator=(const ExpertStages&) = delete;
  virtual ~ExpertStages() = default;

  virtual const char* name() const = 0;
  /// Nothing when it can compute this call, forward and backward, else why not.
  virtual std::optional<std::string> refusal(const ExpertsCall& call) const = 0;

  /// Forward: X = x[slot_of_row / k], [R, d].
  /// @param for_backward  gather_saved() will be called
  virtual GatheredTokens gather_tokens(const ExpertsCall& call, const Tokens& tokens,
                                       const std::vector<FormKey>& keys,
                                       bool for_backward) const = 0;
  /// Backward: X again, for the gradient of W13.
  virtual Operand gather_saved(const ExpertsCall& call, const SavedTokens& saved,
                               const std::vector<FormKey>& keys) const = 0;
  /// Backward: G = dO[slot_of_row / k], [R, d], for dA and the gradient of W2.
  virtual Operand gather_grads(const ExpertsCall& call, const at::Tensor& grad_out,
                               const std::vector<FormKey>& keys) const = 0;

  /// Forward: A [R, h].
  virtual Operand activate(const ExpertsCall& call, const ActivationInputs& inputs,
                           const std::vector<FormKey>& keys) const = 0;
  /// Backward.
  /// @param dA  [R, h] hidden_dtype, the product of G and W2: without the scores. Undefined where
  ///            nothing but A' is wanted. Its memory may be taken for results
  virtual ActivationGrads activate_backward(const ExpertsCall& call, const ActivationInputs& inputs,
                                            const at::Tensor& dA,
                                            const ActivationWants& wants) const = 0;

  /// Forward, and backward for dx: out[t] = sum_j w_j (rows[row_of_slot[t * k + j]] + bias[e]) in
  /// float32, j ascending, rounded once to x_dtype.
  /// @param rows         [R, d]
  /// @param scores       w, float32 [T, k], or undefined for 1
  /// @param bias         b2, float32 [E, d], or undefined
  /// @param first_token  which token out[0] is
  /// @param out          [tokens, d], contiguous: some neighbouring tokens
  virtual void combine_into(const ExpertsCall& call, const at::Tensor& rows,
                            const at::Tensor& scores, const at::Tensor& bias, int64_t first_token,
                            const at::Tensor& out) const = 0;
  /// Of all tokens.
  at::Tensor combine(const ExpertsCall& call, const at::Tensor& rows, const at::Tensor& scores,
                     const at::Tensor& bias) const;
};

/// LibTorch's operations, on any device.
const ExpertStages& composite_stages();

/// The kernels of src/cuda/experts/; nullptr in a build without CUDA.
const ExpertStages* cuda_stages();

/// All of this build in the order of preference; the first that does not refuse computes.
const std::vector<const ExpertStages*>& expert_stages();

/// @throws c10::Error when all refuse, with the reasons.
const ExpertStages& choose_expert_stages(const ExpertsCall& call);

}  // namespace moe8
