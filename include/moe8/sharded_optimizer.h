// SPDX-License-Identifier: BSD-3-Clause
// The optimizer of moe8/optimizer.h over several processes (ZeRO-1): each keeps masters and moments of
// a part of every parameter. `moe8 train` uses it; any training loop with groups of moe8/parallel.h can.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "moe8/optimizer.h"
#include "moe8/parallel.h"

namespace moe8 {

/// Of a matrix of which each rank of a tensor group holds an equal part: moe8/tensor_parallel.h.
struct MatrixPart {
  int64_t axis = 0;   // along which it was cut: 0 or 1
  int64_t first = 0;  // where along it this rank's part begins
  int64_t size = 0;   // of the whole along it; 0: the parameter is no such part
};

/// A parameter of a model that all ranks of a group hold. `parameter.number` and `first_element`
/// are set by the optimizer.
struct ShardedParameter {
  OptimizedParameter parameter{};
  /// Of a stack of experts of which this rank holds some: the first of them, and how many there are
  /// in all. Its gradients are summed over `expert_data`. 0 experts: the parameter is whole.
  int64_t first_expert = 0;
  int64_t experts = 0;
  /// Its gradients are summed over `part_data`.
  MatrixPart part{};
  double rate = 1;  // factor on the learning rate
};

/// Rows of the first dimension of a tensor that several ranks share out.
struct OwnedRows {
  std::string name{};
  int64_t first_row = 0;  // at which `tensor` begins in the whole one; 0 of scalars
  at::Tensor tensor{};
  int64_t first_column = 0;  // likewise along the second dimension, of a MatrixPart along it
};

/// Who holds what alike.
struct ShardingGroups {
  Group all;               // a rank's number in it is the order of sums
  Group expert_data = {};  // the ranks that hold the same experts; unused where none has experts
  Group part_data = {};    // that hold the same parts of matrices; unused where all are whole
};

/// How gradients and parameters travel.
struct ShardingOptions {
  /// Gradients and weights travel in buckets of about so many elements.
  int64_t bucket_elements = int64_t{1} << 25;
  /// Buckets of gradients that travel at once; each is held twice meanwhile, and one more that
  /// backward has just filled. Gradients of a layer's experts come all together: with less than their
  /// number a GPU waits for the first of them where it could compute the layer before.
  int64_t gradients_in_flight = 6;
  /// Buckets leave while backward still computes; else all in accumulate().
  bool overlap = true;
};

/// Steps all parameters on all ranks. A gradient of the model is the sum of those that the ranks
/// computed: each rank's loss must be divided by the number of micro-batches of all. Every rank
/// sends to every other the part of its gradients that the other steps, in the dtype in which
/// backward left them; the receiver adds them up in float32 in the order of ranks, after what
/// earlier calls of accumulate() brought. So rank r of n that computes micro-batches r, n + r, ...
/// ends up with the bits of one process that computes 0, 1, 2, ... (with masters or float32
/// parameters; bf16 parameters without masters get the float32 sum rounded once).
///
/// Every rank must call the same functions in the same order, with the same list of parameters. A
/// parameter without a gradient counts as one with zeros; one that requires none is left alone. Not to
/// be used by two threads at once.
class ShardedOptimizer {
 public:
  /// The parameters' values must be the same on all ranks that hold them.
  /// @param data         all ranks; a rank's number in it is the order of sums
  /// @param expert_data  the ranks that hold the same experts; unused where none has experts
  /// @throws c10::Error as Optimizer, and when experts and groups do not fit together.
  ShardedOptimizer(std::vector<ShardedParameter> parameters, const OptimizerOptions& options,
                   const Group& data, const Group& expert_data = {},
                   const ShardingOptions& sharding = {});
  /// The same with parts of matrices as well. These are stepped by AdamW: Muon needs whole ones.
  ShardedOptimizer(std::vector<ShardedParameter> parameters, const OptimizerOptions& options,
                   const ShardingGroups& groups, const ShardingOptions& sharding = {});
  ~ShardedOptimizer();
  ShardedOptimizer(ShardedOptimizer&&) noexcept;
  ShardedOptimizer& operator=(ShardedOptimizer&&) noexcept;

  /// Call it after every backward: takes the gradients from the parameters and adds up those of all
  /// ranks.
  void accumulate();

  /// The norm of the sums of all gradients of the model, each counted once: the same float32 on
  /// every rank, and the bits of one process. The step that follows clips by it, as Optimizer's.
  at::Tensor clip_gradients();

  void set_learning_rate(double learning_rate);

  /// Steps this rank's part and gathers the new parameters from all ranks.
  void step();

  /// This rank's part of Optimizer::state(); of all ranks together each element is there once.
  std::vector<OwnedRows> state() const;
  /// Takes over such a state, whoever wrote it: `read(rows)` gives what belongs into `rows.tensor` of
  /// the whole tensor `rows.name`; undefined when there is no such tensor.
  void restore(const std::function<at::Tensor(const OwnedRows& rows)>& read);

  /// This rank's part of the parameters themselves; they share memory.
  std::vector<OwnedRows> owned() const;

  /// Bytes that this rank has sent since the call before, gradients and parameters.
  int64_t take_bytes_sent();
  /// Seconds that the host waited for other ranks since the call before; on a GPU the wait is the
  /// stream's, and this is about 0.
  double take_seconds_waited();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moe8
